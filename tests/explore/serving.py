"""The server in a thread of the tests."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import uvicorn

from cocomix.explore.server import settings
from cocomix.explore.session import Session


@contextmanager
def serving(session: Session) -> Iterator[str]:
    """Inside, it answers; gives host and port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(settings(session, listening))
        server.config.timeout_graceful_shutdown = 1
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
