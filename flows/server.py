"""The Prefect server that a flow reports to, and the process that started its run."""

import atexit
import logging
import os
import socket
import sys
from collections.abc import Callable
from threading import Event, Thread
from typing import Any

import httpx
from prefect import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.runtime import deployment
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_UI_URL,
    get_current_settings,
    temporary_settings,
)

from cocomix.plumbing.errors import UserError
from cocomix.plumbing.loopback import LOOPBACK
from cocomix.plumbing.parent import end_with_parent
from flows import gate, signals
from flows.children import server_log, start_server, stop
from flows.reproduce import wait_for_stages

RUNNER_PID = "RUNNER_PID"
"""Environment variable with the id of the process that starts runs of deployments, if it is `flows.serve`."""


class _Stops(logging.Filter):
    """Hides Prefect's errors about a stop: a cancelled run shows none, and a command prints its own line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to show a record."""
        in_flight = isinstance(sys.exc_info()[1], TerminationSignal)
        is_of_stop = in_flight or record.getMessage().startswith("Finished in state Cancelled")
        return not is_of_stop or (record.levelno < logging.ERROR and bool(deployment.id))


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_Stops())


def end_with_runner() -> None:
    """In a run of a deployment: end with the process that started it, since otherwise nobody could cancel the run."""
    if deployment.id:
        end_with_parent(int(os.environ.get(RUNNER_PID, os.getppid())))  # Prefect's own worker sets no RUNNER_PID


def run_here(run: Callable[[], State[Any]]) -> None:
    """Run a flow for a command line, and exit with its status.

    It reports to the server at PREFECT_API_URL; if none is set, to one that starts here and ends with this process.
    """
    with signals.end_in_order():
        try:
            check_proxies()
            settings: dict[Any, Any] = {}
            if PREFECT_API_URL.value():
                check_server()
            else:
                settings = {PREFECT_API_URL: f"{_start_server()}/api", PREFECT_UI_URL: ""}  # without a UI
            signals.bound(wait_for_stages)
            with temporary_settings(settings):
                state = run()
        except UserError as error:
            sys.exit(f"error: {error}")
        if not state.is_completed():
            sys.exit(f"error: {state.message}")


def _start_server() -> str:
    """Start a server that ends with this process; return its address."""
    with socket.create_server((LOOPBACK[0], 0)) as probe:
        port = probe.getsockname()[1]
    address = f"http://{LOOPBACK[0]}:{port}"
    command = gate.command(LOOPBACK[0], port, "error")
    kind = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    home = PREFECT_HOME.value()
    server = start_server(command, address, os.environ | settings | kind | {"PREFECT_HOME": str(home)})
    ended = Event()

    def end() -> None:
        ended.set()
        stop(server, within=5)

    def watch() -> None:
        server.wait()
        if not ended.is_set():
            signals.end_because(f"error: Prefect's server ended by itself; see {server_log(home)}")

    atexit.register(end)  # called after Prefect's own exit handlers, which send their last data to the server
    Thread(target=watch, daemon=True).start()
    return address


def check_proxies() -> None:
    """Check that HTTP clients accept the proxies of the environment; even clients of loopback parse them.

    Raises:
        UserError: when a proxy is of an unknown kind.
    """
    try:
        httpx.Client().close()
    except (ValueError, httpx.InvalidURL) as error:
        raise UserError(f"http_proxy, https_proxy or all_proxy: {error}") from None


def check_server() -> None:
    """Check that the server at PREFECT_API_URL answers.

    Raises:
        UserError: when it does not answer, or refuses this client.
    """
    try:
        with get_client(sync_client=True) as client:
            client.raise_for_api_version_mismatch()
    except (httpx.HTTPError, RuntimeError, ValueError) as error:
        # Prefect's own message has no reason; its cause does.
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
