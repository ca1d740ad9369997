"""The pipeline as a Prefect flow with a task for each DVC stage: `python -m flows.pipeline [STAGE ...]`."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Annotated, Any, get_args

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled, Completed, Failed
from prefect.tasks import exponential_backoff
from pydantic import WithJsonSchema

from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import runtime
from flows import publish
from flows.dag import Mode, Stage, names, outdated_inputs, read_dag, select
from flows.gpu import has_gpu, one_at_a_time
from flows.overrides import Overrides, assignments, current, flat, override
from flows.owner import check_definition
from flows.preset import FOLDER
from flows.reproduce import Result, reproduce
from flows.server import end_with_runner, run_here
from flows.workspace import alone, check_folder

UP_TO_DATE = "Up to date"
FIRST_MICRO_BATCH = 8
"""Windows per forward pass in the first retry after the stage's own choice ran out of memory."""

StageName = Annotated[str, WithJsonSchema({"type": "string"} | ({"enum": found} if (found := names()) else {}))]
"""A target in dvc.yaml; the form in the UI offers those that exist."""
CURRENT = "current"
"""In place of a preset: params.yaml as it is."""
PresetName = Annotated[
    str, WithJsonSchema({"type": "string", "enum": [CURRENT, *sorted(path.stem for path in FOLDER.glob("*.yaml"))]})
]
"""A preset, or `CURRENT`; the form offers those that exist."""
COMMON = (
    "pretrain.methods",
    "pretrain.seeds",
    "pretrain.training.steps",
    "pretrain.training.learning_rate",
    "pretrain.cocomix.concept_weight",
    "sae.latents",
    "sae.k",
)
"""Parameters whose values the form shows."""
_NOW = ", ".join(f"`{key}={json.dumps(now[key])}`" for key in COMMON if key in (now := current()))
Lines = Annotated[
    tuple[str, ...],
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "string", "pattern": r"^[^=\s]+\s*=.*$"},
            "description": "Parameters to change after that, one a line, such as `sae.k=16`; the others stay. "
            f"In `params.yaml` when this form was made: {_NOW}.",
        }
    ),
]
"""Overrides as `key=value`."""


def _can_pass(_task: object, _run: object, state: State[Any]) -> bool:
    return state.name in ("Busy", "Killed")


@task(
    task_run_name="{title}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=4,
    retry_delay_seconds=exponential_backoff(2),
    retry_jitter_factor=0.5,
    retry_condition_fn=_can_pass,
)
def stage(node: Stage, changed: bool, title: str) -> State[None]:  # noqa: ARG001 (the title names the run)
    """Bring one stage up to date.

    Its state is Completed, Restored (from DVC's run cache), Up to date, Failed, or Cancelled (by a signal). Busy
    (another DVC holds a resource) and Killed are failures that are retried with growing delays.

    Args:
        changed: whether the stage may have something to do; only then DVC is asked, which decides.
        title: name of the task run.
    """
    if not changed:
        return Completed(name=UP_TO_DATE, message="nothing changed")
    try:
        with one_at_a_time() if node.gpu and has_gpu() else nullcontext():
            result = _run(node.name)
    except (KeyboardInterrupt, TerminationSignal):
        return Cancelled()  # Prefect would report Crashed
    if result.outcome in ("ran", "restored"):
        publish.metrics(node.name, node.metrics)
    match result.outcome:
        case "ran":
            return Completed()
        case "restored":
            return Completed(name="Restored", message="from DVC's run cache")
        case "up to date":
            return Completed(name=UP_TO_DATE, message="nothing changed")
        case "failed":
            name = {"busy": "Busy", "killed": "Killed"}.get(result.cause, "Failed")
            return Failed(name=name, message=result.error)


def _run(name: str) -> Result:
    """Run a stage; after each out-of-memory error, retry with half as many windows per forward pass."""
    log = get_run_logger()
    progress = publish.StageProgress(name)
    windows, environment = runtime().micro_batch, dict[str, str]()

    def note(line: str) -> None:
        log.info(line)
        progress.read(line)

    while (result := reproduce(name, note, environment)).cause == "out of memory" and windows != 1:
        windows = FIRST_MICRO_BATCH if windows == "auto" else windows // 2
        environment = {"COCOMIX_MICRO_BATCH": str(windows)}
        log.warning(f"out of memory; once more with COCOMIX_MICRO_BATCH={windows}")
    if result.outcome == "ran":
        progress.finish()
    return result


@flow(persist_result=False)
def pipeline(
    stages: tuple[StageName, ...] = (),
    mode: Mode = "upstream",
    preset: PresetName = CURRENT,
    overrides: Lines = (),
) -> State[None]:
    """Bring stages of `dvc.yaml` up to date. What is up to date already is not run again.

    Args:
        stages: None: the whole pipeline. A name without `@` stands for all methods and seeds.
        mode: What is run besides: `upstream`: what the stages need; `only`: nothing; `downstream`: what follows.
        preset: Parameters to switch to first; `current`: those of `params.yaml` as it is.
    """
    return _checked("flows.pipeline.pipeline", stages, mode, lambda: assignments(overrides), preset)


@flow(persist_result=False)
def custom(
    stages: tuple[StageName, ...] = (),
    mode: Mode = "upstream",
    overrides: Overrides = {},  # noqa: B006 (never modified; its JSON is the form's default)
) -> State[None]:
    """The same, with a field for each parameter.

    Args:
        stages: None: the whole pipeline. A name without `@` stands for all methods and seeds.
        mode: What is run besides: `upstream`: what the stages need; `only`: nothing; `downstream`: what follows.
        overrides: Parameters to write into `params.yaml` first; the others stay. As JSON: `{"sae.k": 16}`.
    """
    return _checked("flows.pipeline.custom", stages, mode, lambda: overrides)


def _checked(
    entrypoint: str, targets: tuple[str, ...], mode: Mode, read: Callable[[], dict[str, Any]], preset: str = CURRENT
) -> State[None]:
    """Run the stages, with errors of one line.

    Args:
        read: returns the overrides.
    """
    end_with_runner()
    log = get_run_logger()
    try:
        check_definition(entrypoint)
        with alone(wait=True, say=log.warning):
            return _pipeline(targets, mode, read(), None if preset == CURRENT else preset)
    except UserError as error:
        return Failed(message=str(error))


def _pipeline(targets: tuple[str, ...], mode: Mode, overrides: dict[str, Any], preset: str | None) -> State[None]:
    runtime()
    if overrides or preset:
        override(overrides, preset)
    dag = read_dag()
    nodes = select(dag, targets, mode)
    publish.parameters(flat(overrides), preset)
    if outdated := outdated_inputs(dag, nodes):
        get_run_logger().warning(f"not run, as mode is {mode}, although out of date: {', '.join(outdated)}")
    return bring_up_to_date(nodes)


def bring_up_to_date(nodes: Iterable[Stage], title: str = "") -> State[None]:
    """Run stages within a flow, each as a task, until one fails.

    Args:
        nodes: stages in topological order, as `select` returns them.
        title: suffix of the task names.
    """
    states: dict[str, State[Any]] = {}
    unsure = set[str]()  # stages that ran: their dependents may have changed
    # In sequence in the main thread, where signals, and so a cancellation, reach the running stage.
    for node in nodes:
        inputs = [states[name] for name in node.needs if name in states]
        changed = node.changed or not unsure.isdisjoint(node.needs)
        states[node.name] = state = stage(
            node, changed, f"{node.name} {title}".rstrip(), wait_for=inputs, return_state=True
        )
        if state.is_cancelled():
            raise TerminationSignal(signal.SIGTERM)  # as if the flow had just received it
        if state.name != UP_TO_DATE and not node.as_foreseen():
            unsure.add(node.name)
        if not state.is_completed():
            return Failed(message=f"{node.name}: {state.message}")
    return Completed(message=", ".join(_tally(list(states.values()))))


def _tally(states: list[State[Any]]) -> list[str]:
    found = [state.name or "" for state in states]
    return [f"{found.count(name)} {name.lower()}" for name in dict.fromkeys(found)]


def command_line(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line: `stages`, `mode`, and `set` with KEY=VALUE items.

    Args:
        arguments: None: those of this process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m flows.pipeline", description="Bring stages of dvc.yaml up to date: all, if none is named."
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="a stage of dvc.yaml, such as sae or pretrain@ntp-0")
    parser.add_argument("--mode", choices=get_args(Mode), default="upstream", help="what is run besides")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="write parameters first: sae.k=16"
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Run the command line."""
    given = command_line()
    try:
        check_folder()
        assignments(given.set)  # reports errors before a server starts
    except UserError as error:
        sys.exit(f"error: {error}")
    run_here(lambda: pipeline(tuple(given.stages), given.mode, CURRENT, tuple(given.set), return_state=True))


if __name__ == "__main__":
    main()
