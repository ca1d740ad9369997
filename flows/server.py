"""The Prefect server that a flow reports to, and the process that it runs for."""

import os

import httpx
from prefect import get_client
from prefect.runtime import deployment
from prefect.settings import PREFECT_API_URL

from cocomix.errors import UserError
from cocomix.parent import end_with_parent, end_with_this_process

RUNNER_PID = "RUNNER_PID"
"""The environment variable with the process that starts runs of deployments, if it is `flows.serve`."""


def end_with_runner() -> None:
    """Within a run of a deployment: end with what started it. Without that, nobody could cancel the run."""
    if deployment.id:
        end_with_parent(int(os.environ.get(RUNNER_PID, os.getppid())))  # a worker does not say who it is


def connect() -> None:
    """Use the server at PREFECT_API_URL or, where none is set, one that this starts here and that ends with this.

    Raises:
        UserError: when the server does not answer, or not to this client.
    """
    if PREFECT_API_URL.value():
        check_server()
    else:
        _start_server()


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

    server = SubprocessASGIServer()
    server.start()
    if server.server_process:
        end_with_this_process(server.server_process.pid)
