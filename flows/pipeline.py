"""The pipeline as a Prefect flow, a task for each DVC stage: `python -m flows.pipeline [STAGE ...]`."""

import argparse
import signal
import sys
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from cocomix.errors import UserError
from flows.dag import plan
from flows.reproduce import reproduce

UP_TO_DATE = "Skipped"


def _is_busy(_task: object, _run: object, state: State[Any]) -> bool:
    """Whether another DVC holds what the stage needs: perhaps one that was killed and is not yet reaped."""
    return "is busy, it is being blocked by" in (state.message or "")


@task(
    task_run_name="{name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=5,
    retry_delay_seconds=2,
    retry_condition_fn=_is_busy,
)
def stage(name: str, changed: bool) -> State[None]:
    """Bring one stage up to date; its state is Completed, Restored (by DVC's run cache), Skipped or Failed.

    Args:
        changed: whether the stage may have something to do. DVC decides, and is only asked then.
    """
    if not changed:
        return Completed(name=UP_TO_DATE, message="up to date")
    result = reproduce(name, get_run_logger().info)
    match result.outcome:
        case "ran":
            return Completed()
        case "restored":
            return Completed(name="Restored", message="from DVC's run cache")
        case "up to date":
            return Completed(name=UP_TO_DATE, message="up to date")
        case "failed":
            return Failed(message=result.error)


@flow(persist_result=False)
def pipeline(stages: list[str] | None = None) -> State[None]:
    """Bring the named stages of dvc.yaml, and those that they need, up to date: all stages if none is named."""
    states: dict[str, State[Any]] = {}
    try:
        nodes = plan(stages or ())
    except UserError as error:
        return Failed(message=str(error))
    # One after another in the main thread: there signals, and so a cancellation, reach the running stage.
    for node in nodes:
        inputs = [states[name] for name in node.needs]
        changed = node.changed or any(state.name != UP_TO_DATE for state in inputs)
        states[node.name] = state = stage(node.name, changed, wait_for=inputs, return_state=True)
        if not state.is_completed():
            return Failed(message=f"{node.name}: {state.message}")
    return Completed(message=", ".join(_tally(list(states.values()))))


def _tally(states: list[State[Any]]) -> list[str]:
    names = [state.name or "" for state in states]
    return [f"{names.count(name)} {name.lower()}" for name in dict.fromkeys(names)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description=pipeline.__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="a stage of dvc.yaml, such as sae or pretrain@ntp-0")
    arguments = parser.parse_args()
    # Prefect passes SIGTERM on to the handler that it found; exiting, rather than dying, also ends Prefect's server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        state = pipeline(arguments.stages, return_state=True)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    if not state.is_completed():
        sys.exit(f"error: {state.message}")


if __name__ == "__main__":
    main()
