"""Prefect on this machine: `python -m flows.ui` (`make ui`) starts its server and UI, and what runs the deployments.

All it keeps is in `.prefect/`. Ctrl-C ends everything, runs at work included; the next start goes on with them.

Environment:
    PREFECT_SERVER_API_HOST, PREFECT_SERVER_API_PORT: the address, 127.0.0.1:4200 by default.
    PREFECT_SERVER_API_AUTH_STRING: `user:password`, which is asked for; needed on any other host than loopback.
    PREFECT_SERVER_DATABASE_CONNECTION_URL: such as postgresql+asyncpg://user:password@host/name, in place of SQLite.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

from cocomix.errors import UserError
from cocomix.parent import end_with_parent

HOME = Path(".prefect")
REPORT = Path("artifacts/report")
REPORT_URL = "REPORT_URL"
"""The environment variable with the address that the report is served at, if it is."""
LOOPBACK = ("127.0.0.1", "localhost")
START_SECONDS = 120.0
STOP_SECONDS = 40.0
"""Prefect itself gives a run 30 s to stop."""


def main() -> None:
    """The command line."""
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="python -m flows.ui", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda number, _frame: sys.exit(128 + number))
    try:
        _run()
    except UserError as error:
        sys.exit(f"error: {error}")


def _run() -> None:
    host = os.environ.get("PREFECT_SERVER_API_HOST", LOOPBACK[0])
    port = _port(os.environ.get("PREFECT_SERVER_API_PORT", "4200"))
    password = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    if host not in LOOPBACK and not password:
        raise UserError(f"PREFECT_SERVER_API_HOST: {host}: others can reach it: set PREFECT_SERVER_API_AUTH_STRING too")
    for each in (port, port + 1):
        _check_free(each)
    here = "127.0.0.1" if host == "0.0.0.0" else host
    address, report = f"http://{here}:{port}", f"http://127.0.0.1:{port + 1}"
    HOME.mkdir(exist_ok=True)
    environment = os.environ | {
        "PREFECT_HOME": str(HOME.absolute()),
        "PREFECT_API_URL": f"{address}/api",
        REPORT_URL: report,
    }
    if password:
        environment["PREFECT_API_AUTH_STRING"] = password
    children: list[subprocess.Popen[bytes]] = []
    try:
        with (HOME / "server.log").open("ab") as log:
            server = [sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", str(port)]
            children.append(_start(server, environment, log))
        _wait_for(f"{address}/api/health", children[0])
        children.append(_start([sys.executable, "-m", "flows.serve"], environment, None))
        _serve_report(port + 1)
        print(f"Prefect: {address}\nreport:  {report}\nCtrl-C ends both, and what runs.", flush=True)
        while all(child.poll() is None for child in children):
            time.sleep(0.2)
        raise UserError(f"Prefect ended by itself; see above and {HOME / 'server.log'}")
    finally:
        for child in reversed(children):
            _stop(child)


def _port(text: str) -> int:
    if text.isascii() and text.isdecimal() and 0 < int(text) < 65535:
        return int(text)
    raise UserError(
        f"PREFECT_SERVER_API_PORT: {text}: must be a whole number from 1 to 65534 (the report has the next)"
    )


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise UserError(
                f"port {port} is in use; set PREFECT_SERVER_API_PORT to another (the next one too)"
            ) from None


def _start(command: list[str], environment: dict[str, str], output: IO[bytes] | None) -> "subprocess.Popen[bytes]":
    """A child that a Ctrl-C in the terminal does not reach: it is stopped when its turn comes."""
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output and subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=partial(end_with_parent, os.getpid(), signal.SIGTERM),  # safe: this process has no threads yet
    )


def _stop(child: "subprocess.Popen[bytes]") -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.1)
    raise UserError(f"Prefect's server did not start; see {HOME / 'server.log'}")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


def _serve_report(port: int) -> None:
    pages = ThreadingHTTPServer(("127.0.0.1", port), partial(_Quiet, directory=str(REPORT)))
    threading.Thread(target=pages.serve_forever, daemon=True).start()


if __name__ == "__main__":
    main()
