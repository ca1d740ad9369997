"""Serve the deployments of prefect.yaml from a Prefect server, and run them here: `python -m flows.serve`.

A run always executes one of this folder's own flows, whatever the server says about the deployment. Runs execute one at
a time. A run whose process was lost, with this process or with the machine, resumes first.
"""

import asyncio
import logging
import os
import re
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, Literal, NoReturn

from prefect import Flow, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    Operator,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import TerminationSignal
from prefect.runner import Runner
from prefect.schedules import Cron
from prefect.states import AwaitingRetry, Cancelled, Crashed
from prefect.types.entrypoint import EntrypointType
from pydantic import BaseModel

from cocomix.plumbing.checked import parse, read_yaml
from cocomix.plumbing.errors import UserError
from flows import signals
from flows.owner import check_owner, owner_tag
from flows.pipeline import custom, pipeline
from flows.server import RUNNER_PID, check_proxies, check_server
from flows.sweep import sweep
from flows.workspace import alone

FLOWS: dict[str, Flow[..., Any]] = {
    "flows.pipeline.pipeline": pipeline,
    "flows.pipeline.custom": custom,
    "flows.sweep.sweep": sweep,
}
"""The flows that can be deployed, by entrypoint in prefect.yaml."""
ATTEMPTS = 5
"""Maximum attempts at a run whose process is lost each time."""


class _Runner(Runner):
    def handle_sigterm(self, *_: Any) -> NoReturn:
        """Leave the event loop; Prefect's also calls `stop`, which there makes a coroutine that nobody awaits."""
        sys.exit(0)


class _Schedule(BaseModel):
    cron: str
    timezone: str
    active: bool


class _Deployment(BaseModel):
    name: str
    description: str
    entrypoint: Literal["flows.pipeline.pipeline", "flows.pipeline.custom", "flows.sweep.sweep"]
    parameters: dict[str, object] = {}
    schedules: list[_Schedule] = []
    concurrency_limit: ConcurrencyLimitConfig


class _File(BaseModel):
    deployments: list[_Deployment]


def deployments() -> list[tuple[Flow[..., Any], dict[str, Any]]]:
    """The deployments in prefect.yaml: flows, with the arguments that deploy them."""
    path = Path("prefect.yaml")
    return [
        (
            FLOWS[each.entrypoint],
            {
                "name": each.name,
                "description": each.description,
                "parameters": each.parameters,
                "schedules": [Cron(at.cron, timezone=at.timezone, active=at.active) for at in each.schedules],
                "concurrency_limit": each.concurrency_limit,
                "tags": [owner_tag()],
                "entrypoint_type": EntrypointType.MODULE_PATH,
            },
        )
        for each in parse(_File, read_yaml(path), str(path)).deployments
    ]


def resume_lost(names: list[str]) -> None:
    """Reschedule the last run of these deployments if its process is lost; end older lost runs.

    Only for runs in this folder: call it when no flow runs there.
    """
    # The flow sets its start time seconds after its process starts, in state PENDING; a scheduled run has neither.
    has_begun = FlowRunFilter(
        operator=Operator.or_,  # type: ignore[call-arg]  # a field from a mixin, which mypy does not see
        start_time=FlowRunFilterStartTime(is_null_=False),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PENDING, StateType.CANCELLING])),
    )
    with get_client(sync_client=True) as client:
        begun = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[each.name for each in FLOWS.values()])),
            flow_run_filter=has_begun,
            deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=names)),
            sort=FlowRunSort.START_TIME_DESC,
            limit=50,
        )
        for run in begun:
            _settle(client, run, last=run is begun[0])


def _settle(client: SyncPrefectClient, run: FlowRun, *, last: bool) -> None:
    lost = {StateType.RUNNING, StateType.PENDING}
    state: State[None]
    if run.state_type == StateType.CANCELLING:
        state = Cancelled(message="its process is gone")
    elif last and run.state_type in lost | {StateType.CRASHED} and run.run_count < ATTEMPTS:
        state = AwaitingRetry(message="its process was lost; it goes on where it was")
    elif run.state_type in lost:
        state = Crashed(message="its process is gone")
    else:
        return
    client.set_flow_run_state(run.id, state, force=True)


def main() -> None:
    """Run the command line."""
    if "PREFECT_API_URL" not in os.environ:
        sys.exit("error: PREFECT_API_URL must be a server's address; `python -m flows.ui` starts one and this as well")
    with signals.end_in_order():
        try:
            found = deployments()
            check_proxies()
            check_server()
            check_owner([f"{flow.name}/{arguments['name']}" for flow, arguments in found])
            with alone(wait=True):
                resume_lost([arguments["name"] for _, arguments in found])
        except UserError as error:
            sys.exit(f"error: {error}")
    os.environ[RUNNER_PID] = str(os.getpid())
    for name in ("prefect.runner", "prefect.flows"):
        logging.getLogger(name).addFilter(_is_news)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # asyncio replaces it by its own handler
    try:
        runner = _Runner(limit=1, pause_on_shutdown=False)
        for flow, arguments in found:
            # The runner gets the flow itself, so nothing is loaded from where a deployment points.
            runner.add_flow(flow, **arguments)
        asyncio.run(runner.start())
        signals.leave(signal.SIGINT)
    except KeyboardInterrupt:
        signals.leave(signal.SIGINT)
    except (SystemExit, TerminationSignal):  # Prefect ends by SystemExit after SIGTERM
        signals.leave(signal.SIGTERM)
    except Exception:
        traceback.print_exc()
    finally:
        # Returning would wait for threads, and one of Prefect's may wait forever if its server is gone too.
        os._exit(1)


def _is_news(record: logging.LogRecord) -> bool:
    """Filter out what Prefect repeats every two seconds while a run waits, and its message about Ctrl-C."""
    return not re.search("scheduled runs skipped|^Received KeyboardInterrupt", record.getMessage())


if __name__ == "__main__":
    main()
