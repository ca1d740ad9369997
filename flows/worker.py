"""A Prefect worker for this folder, as an alternative to `flows.serve`: `python -m flows.worker POOL`.

Prefect's own worker runs what a deployment on the server says: its steps, its command, its entrypoint. This worker runs
only this folder's flows, whatever the server says, and one run at a time.
"""

import argparse
import asyncio
import os
import signal
import sys
from typing import Any

import anyio
import anyio.abc
from prefect import Flow
from prefect.client.schemas.objects import FlowRun
from prefect.runner._flow_run_executor import FlowRunExecutionResult, FlowRunExecutorContext
from prefect.runner._process_manager import ProcessHandle
from prefect.runner._starter_direct import DirectSubprocessStarter
from prefect.states import Failed
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from cocomix.plumbing.errors import UserError
from flows import signals
from flows.serve import FLOWS
from flows.server import RUNNER_PID, check_proxies, check_server


class Worker(ProcessWorker):
    """Runs the project's flows for a work pool, as `flows.serve` does."""

    @classmethod
    def __dispatch_key__(cls) -> str:
        """A key of its own in Prefect's table of workers, which warns of two classes for `process`."""
        return __name__

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,  # noqa: ARG002 (defined by the server, so ignored)
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Run a flow run of the pool; a flow that is not the project's fails with one line."""
        started = task_status or anyio.TASK_STATUS_IGNORED
        name = (await self.client.read_flow(flow_run.flow_id)).name
        flow = next((each for each in FLOWS.values() if each.name == name), None)
        if flow is None:
            message = f"{name}: no flow of this project; nothing was run"
            self.get_flow_run_logger(flow_run).error(message)
            await self.client.set_flow_run_state(flow_run.id, Failed(message=message), force=True)
            started.started(0)
            return ProcessWorkerResult(status_code=0, identifier="")
        execution = await _execute(flow_run, flow, started)
        if execution is None or execution.status_code is None:
            raise RuntimeError("the run's process did not start")
        return ProcessWorkerResult(status_code=execution.status_code, identifier=str(execution.handle.pid))


async def _execute(
    flow_run: FlowRun, flow: Flow[..., Any], started: anyio.abc.TaskStatus[int]
) -> FlowRunExecutionResult | None:
    """Run a flow to its end in its own process, which can be cancelled."""
    execution: FlowRunExecutionResult | None = None

    async def own_flow(_run: FlowRun) -> Flow[..., Any]:
        return flow

    async with FlowRunExecutorContext() as context:
        starter = DirectSubprocessStarter(flow=flow, control_channel=context.control_channel)
        executor = context.create_executor(flow_run, starter, resolve_flow=own_flow, propose_submitting=False)

        async def execute(*, task_status: anyio.abc.TaskStatus[ProcessHandle]) -> None:
            nonlocal execution
            execution = await executor.submit(task_status=task_status)

        async with anyio.create_task_group() as group:
            handle = await group.start(execute)
            started.started(handle.pid or 0)
    return execution


def main() -> None:
    """Run the command line."""
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="python -m flows.worker", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pool", metavar="POOL", help="the work pool whose runs it takes")
    given = parser.parse_args()
    if "PREFECT_API_URL" not in os.environ:
        sys.exit("error: PREFECT_API_URL must be a server's address")
    with signals.end_in_order():
        try:
            check_proxies()
            check_server()
        except UserError as error:
            sys.exit(f"error: {error}")
    os.environ[RUNNER_PID] = str(os.getpid())
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.default_int_handler)  # asyncio replaces the handler of SIGINT by its own
    try:
        asyncio.run(Worker(work_pool_name=given.pool, limit=1).start())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
