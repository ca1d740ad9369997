"""The pipeline as a Prefect flow with a task for each DVC stage: `python -m flows.pipeline [STAGE ...]`."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_args

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import WithJsonSchema

from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import runtime
from flows import publish
from flows.arguments import count
from flows.dag import Mode, names, outdated_inputs, read_dag, select
from flows.overrides import Overrides, assignments, current, flat, overridden, override
from flows.owner import check_definition
from flows.preset import FOLDER
from flows.server import end_with_runner, run_here
from flows.tasks import bring_up_to_date
from flows.workspace import alone, check_folder

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
_NOW = ", ".join(f"`{key}={json.dumps(now[key], ensure_ascii=False)}`" for key in COMMON if key in (now := current()))
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
    changes = bool(overrides or preset)
    dag = read_dag(overridden(overrides, preset) if changes else None)
    nodes = select(dag, targets, mode)
    if changes:  # not before: for a stage that does not exist, nothing is written
        override(overrides, preset)
    publish.parameters(flat(overrides), preset)
    if outdated := outdated_inputs(dag, nodes):
        get_run_logger().warning(f"not run, as mode is {mode}, although out of date: {', '.join(outdated)}")
    ended = bring_up_to_date(nodes)
    if ended.failed:
        return Failed(message="\n".join(dict.fromkeys(ended.failed.values())))
    return Completed(message=", ".join(_tally(list(ended.states.values()))))


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
    add_trainings(parser)
    return parser.parse_args(arguments)


def add_trainings(parser: argparse.ArgumentParser) -> None:
    """Add the option `--trainings`."""
    about = "trainings and evaluations at a time, each with a share of the machine; instead of COCOMIX_TRAININGS"
    parser.add_argument("--trainings", type=count, metavar="N", help=about)


def set_trainings(trainings: int | None) -> None:
    """Make `runtime().trainings` what the option `--trainings` says.

    Raises:
        UserError: when a runtime setting is wrong.
    """
    if trainings is not None:
        os.environ["COCOMIX_TRAININGS"] = str(trainings)
    runtime()


def main() -> None:
    """Run the command line."""
    given = command_line()
    try:
        check_folder()
        set_trainings(given.trainings)
        assignments(given.set)  # reports errors before a server starts
    except UserError as error:
        sys.exit(f"error: {error}")
    run_here(lambda: pipeline(tuple(given.stages), given.mode, CURRENT, tuple(given.set), return_state=True))


if __name__ == "__main__":
    main()
