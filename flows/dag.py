"""The pipeline as DVC sees it: dvc.yaml is the only definition."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter

from dvc.exceptions import DvcException
from dvc.repo import Repo

from cocomix.errors import UserError, suggestion


@dataclass(frozen=True)
class Stage:
    """One node of the DAG."""

    name: str
    """As DVC addresses it: `sae`, `pretrain@ntp-0`."""
    needs: tuple[str, ...]
    """The stages whose results it reads."""
    changed: bool
    """Whether DVC finds a parameter, an input, the code, the command or the result changed since it last ran."""


def plan(targets: Iterable[str] = ()) -> list[Stage]:
    """The named stages and all that they need, what is needed first; no name means the whole pipeline.

    Args:
        targets: names as in dvc.yaml; that of a matrix (`pretrain`) stands for all its stages.

    Raises:
        UserError: when a stage is unknown, or dvc.yaml cannot be read.
    """
    try:
        with Repo(_wait_for_lock=True) as repo:
            graph = repo.index.graph
            needs = {
                stage.addressing: tuple(sorted(each.addressing for each in graph.successors(stage))) for stage in graph
            }
            changed = set(repo.status())
    except DvcException as error:
        raise UserError(f"dvc.yaml: {' '.join(str(error).split())}") from None
    wanted = [name for target in targets for name in _named(target, needs)]
    selected = _with_needs(wanted or needs, needs)
    order = TopologicalSorter({name: needs[name] for name in sorted(selected)}).static_order()
    return [Stage(name, needs[name], name in changed) for name in order]


def _named(target: str, names: Iterable[str]) -> list[str]:
    found = [name for name in names if target in (name, name.partition("@")[0])]
    if not found:
        allowed = {name.partition("@")[0] for name in names} | set(names)
        raise UserError(f"{target}: no such stage in dvc.yaml; {suggestion(target, allowed)}")
    return found


def _with_needs(wanted: Iterable[str], needs: Mapping[str, tuple[str, ...]]) -> set[str]:
    selected: set[str] = set()
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        if name not in selected:
            selected.add(name)
            waiting.extend(needs[name])
    return selected
