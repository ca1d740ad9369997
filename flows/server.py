"""The Prefect server that a flow reports to, and the process that it runs for."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
from prefect import get_client
from prefect.client.schemas.objects import State
from prefect.runtime import deployment
from prefect.settings import PREFECT_API_URL, get_current_settings

from cocomix.errors import UserError
from cocomix.parent import end_with_parent, end_with_this_process
from flows.gate import LOOPBACK, command

RUNNER_PID = "RUNNER_PID"
"""The environment variable with the process that starts runs of deployments, if it is `flows.serve`."""


def end_with_runner() -> None:
    """Within a run of a deployment: end with what started it. Without that, nobody could cancel the run."""
    if deployment.id:
        end_with_parent(int(os.environ.get(RUNNER_PID, os.getppid())))  # a worker does not say who it is


def run_here(run: Callable[[], State[Any]]) -> None:
    """Run a flow for a command line, and exit as it ended.

    Its server is the one at PREFECT_API_URL; where none is set, one that starts here and ends with this process.
    """
    # Prefect passes SIGTERM on to the handler that it found; exiting, rather than dying, also ends Prefect's server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if PREFECT_API_URL.value():
            check_server()
        else:
            _start_server()
        state = run()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    if not state.is_completed():
        sys.exit(f"error: {state.message}")


def check_server() -> None:
    """Ask the server at PREFECT_API_URL whether it is there.

    Raises:
        UserError: when it does not answer, or not to this client.
    """
    try:
        with get_client(sync_client=True) as client:
            client.raise_for_api_version_mismatch()
    except (httpx.HTTPError, RuntimeError, ValueError) as error:
        # Prefect itself says only that it failed; its cause says why.
        raise UserError(_trouble(error.__cause__ or error)) from None


def _trouble(error: BaseException) -> str:
    address = httpx.URL(PREFECT_API_URL.value()).copy_with(userinfo=b"")
    match error:
        case httpx.HTTPStatusError(response=response) if response.status_code in (401, 403):
            return f"PREFECT_API_AUTH_STRING: the server at {address} asks for another"
        case httpx.HTTPStatusError(response=response):
            what = f"the server answers {response.status_code} {response.reason_phrase}"
        case httpx.HTTPError():
            what = f"{str(error).rstrip('.')}; `make ui` starts a server"
        case ValueError():
            what = "what answers is no Prefect server, whose address ends in /api"
        case _:  # other versions
            what = str(error)
    return f"PREFECT_API_URL: {address}: {what}"


def _start_server() -> None:
    """The server that Prefect itself would start and end, but that would stay where this process is killed."""
    from prefect.server.api.server import SubprocessASGIServer  # seconds, which no run of a worker needs

    class Gated(SubprocessASGIServer):
        def _run_uvicorn_command(self) -> "subprocess.Popen[bytes]":
            assert self.port
            kind = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
            settings = get_current_settings().to_environment_variables(exclude_unset=True)
            return subprocess.Popen(command(LOOPBACK[0], self.port, "error"), env=os.environ | kind | settings)

    server = Gated()
    server.start()
    if server.server_process:
        end_with_this_process(server.server_process.pid)
