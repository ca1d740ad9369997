"""The pipeline as a Prefect flow with a task for each DVC stage: `python -m flows.pipeline [STAGE ...]`."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, get_args

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import WithJsonSchema

from cocomix.plumbing.checked import whole_number
from cocomix.plumbing.dialect import load_yaml
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import runtime
from flows import publish
from flows.dag import Mode, names, outdated_inputs, read_dag, select
from flows.overrides import Overrides, flat, nested, override
from flows.owner import check_definition
from flows.server import end_with_runner, run_here
from flows.tasks import bring_up_to_date
from flows.workspace import alone, check_folder

StageName = Annotated[str, WithJsonSchema({"type": "string"} | ({"enum": found} if (found := names()) else {}))]
"""A target in dvc.yaml; the form in the UI offers those that exist."""


@flow(persist_result=False)
def pipeline(
    stages: tuple[StageName, ...] = (),
    mode: Mode = "upstream",
    overrides: Overrides = {},  # noqa: B006 (never modified; its JSON is the form's default)
) -> State[None]:
    """Bring stages of `dvc.yaml` up to date. What is up to date already is not run again.

    Args:
        stages: None: the whole pipeline. A name without `@` stands for all methods and seeds.
        mode: What is run besides: `upstream`: what the stages need; `only`: nothing; `downstream`: what follows.
        overrides: Parameters to write into `params.yaml` first; the others stay. As JSON: `{"sae.k": 16}`.
    """
    end_with_runner()
    log = get_run_logger()
    try:
        check_definition("flows.pipeline.pipeline")
        with alone(wait=True, say=log.warning):
            return _pipeline(stages, mode, overrides)
    except UserError as error:
        return Failed(message=str(error))


def _pipeline(targets: tuple[str, ...], mode: Mode, overrides: dict[str, Any]) -> State[None]:
    runtime()
    if overrides:
        override(overrides)
    dag = read_dag()
    nodes = select(dag, targets, mode)
    publish.parameters(flat(overrides))
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
    parser.add_argument("--trainings", type=whole_number, metavar="N", help=about)


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
        overrides = nested(_assignment(each) for each in given.set)
    except UserError as error:
        sys.exit(f"error: {error}")
    run_here(lambda: pipeline(tuple(given.stages), given.mode, overrides, return_state=True))


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if key and equals:
        return key, load_yaml(value, text, lines=False)
    raise UserError(f"{text}: must be KEY=VALUE, such as sae.k=16, with the value in YAML")


if __name__ == "__main__":
    main()
