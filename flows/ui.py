"""Prefect on this machine: `python -m flows.ui` (`make ui`) starts its server and UI, and runs the deployments.

All its files are in `.prefect/`. Ctrl-C ends everything, including active runs, which the next start resumes.

Environment:
    PREFECT_HOME: a folder other than `.prefect/`.
    PREFECT_SERVER_API_HOST, PREFECT_SERVER_API_PORT: the address, 127.0.0.1:4200 by default.
    PREFECT_SERVER_API_AUTH_STRING: `user:password` that clients must send; required on a host other than loopback.
    PREFECT_SERVER_DATABASE_CONNECTION_URL: such as postgresql+asyncpg://user:password@host/name, instead of SQLite.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.gate import Gate, netloc
from cocomix.plumbing.loopback import LOOPBACK, ask_directly
from flows import gate, signals
from flows.children import server_log, start, start_server, stop

REPORT = Path("artifacts/report")
REPORT_URL = "REPORT_URL"
"""Environment variable with the address of the report, if it is served."""


def main() -> None:
    """Run the command line."""
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="python -m flows.ui", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    with signals.end_in_order():
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
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    ask_directly(here)
    address, report = f"http://{netloc(here, port)}", f"http://127.0.0.1:{port + 1}"
    environment = os.environ | {
        "PREFECT_API_URL": f"{address}/api",
        REPORT_URL: report,
        signals.QUIET: str(os.getpid()),
    }
    if password:
        environment["PREFECT_API_AUTH_STRING"] = password
    children: list[subprocess.Popen[bytes]] = []
    try:
        children.append(start_server(gate.command(host, port), address, environment))
        children.append(start([sys.executable, "-m", "flows.serve"], environment, ends_by=signal.SIGTERM))
        _serve_report(port + 1)
        print(f"Prefect: {address}\nreport:  {report}\nCtrl-C ends both, and what runs.", flush=True)
        while all(child.poll() is None for child in children):
            time.sleep(0.2)
        raise UserError(f"Prefect ended by itself; see above and {server_log(Path(environment['PREFECT_HOME']))}")
    finally:
        for child in reversed(children):
            stop(child)


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


def _serve_report(port: int) -> None:
    server = uvicorn.Server(uvicorn.Config(Gate(report_pages(), port), log_level="error"))
    listening = socket.create_server((LOOPBACK[0], port))
    threading.Thread(target=server.run, args=([listening],), daemon=True).start()


def report_pages() -> Starlette:
    """Serve the files in the report's manifest, if their content is unaltered."""
    return Starlette(routes=[Route("/", _report_file), Route("/{name}", _report_file)])


def _report_file(request: Request) -> Response:
    try:
        return FileResponse(Artifact(REPORT).file(request.path_params.get("name", "index.html")))
    except UserError as error:
        return PlainTextResponse(f"{error}\n", 404)


if __name__ == "__main__":
    main()
