"""What is said of a server that is not there, is none, or does not let one in."""

import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import prefect
import pytest
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from cocomix.plumbing.errors import UserError
from flows.server import check_server

ANSWERS = {
    "password": (401, b'{"exception_message": "Unauthorized"}'),
    "forbidden": (403, b""),
    "missing": (404, b""),
    "broken": (500, b"Unauthorized"),
    "gateway": (503, b"<html>"),
    "page": (200, b"<html>"),
    "mapping": (200, b'{"version": 3}'),
    "word": (200, b'"hello"'),
    "newer": (200, b'"99.0.0"'),
    "same": (200, f'"{prefect.__version__}"'.encode()),
}
"""Status and content, by the first part of the path."""
ANOTHER = "PREFECT_API_AUTH_STRING: the server at {0} asks for another"
NONE = "PREFECT_API_URL: {0}: what answers is no Prefect server, whose address ends in /api"


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.split("/")[1]
        if name == "hangs":
            time.sleep(3)
        if name not in ANSWERS:
            return  # the connection ends
        status, content = ANSWERS[name]
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    """The address of a web server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def check(address: str) -> None:
    settings = {PREFECT_API_URL: address, PREFECT_API_REQUEST_TIMEOUT: 1, PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(settings):
        check_server()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("password", ANOTHER),
        ("forbidden", ANOTHER),
        ("missing", "PREFECT_API_URL: {0}: the server answers 404 Not Found"),
        ("broken", "PREFECT_API_URL: {0}: the server answers 500 Internal Server Error"),
        ("gateway", "PREFECT_API_URL: {0}: the server answers 503 Service Unavailable"),
        ("page", NONE),
        ("mapping", NONE),
        ("word", NONE),
        ("newer", "PREFECT_API_URL: {0}: Found incompatible versions: client: " + prefect.__version__),
        ("hangs", "PREFECT_API_URL: {0}: timed out; `make ui` starts a server"),
        ("ends", "PREFECT_API_URL: {0}: Server disconnected without sending a response; `make ui` starts a server"),
    ],
)
def test_what_is_wrong_with_a_server_is_said_in_one_line_with_its_address(web: str, name: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        check(f"http://{web}/{name}")
    said = str(error.value)
    assert said.startswith(message.format(f"http://{web}/{name}"))
    assert "\n" not in said


def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(UserError, match=r"^PREFECT_API_URL: here:? ?.*'http://' or 'https://'"):
        check("here")


def test_a_password_in_the_address_is_not_shown() -> None:
    with pytest.raises(UserError, match=r"^PREFECT_API_URL: http://127\.0\.0\.1:1/api: ") as error:
        check("http://someone:secret@127.0.0.1:1/api")
    assert "secret" not in str(error.value)


def test_a_server_of_this_version_will_do(web: str) -> None:
    check(f"http://{web}/same")
