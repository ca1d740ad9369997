"""The pipeline as DVC reads it: dvc.yaml is its only definition."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from dvc.exceptions import DvcException
from dvc.repo import Repo

from cocomix.check import external
from cocomix.params import FILE, Params, load
from cocomix.plumbing.checked import mapping, parse
from cocomix.plumbing.errors import UserError, suggestion
from flows.changes import WithContents, found_outside, only_keys, ran_with, reasons
from flows.workspace import LOCK, WITHOUT_LOCK, lock_is_torn

Mode = Literal["upstream", "only", "downstream"]
"""Which other stages to run: those that the named stages need, none, or those that depend on them."""


@dataclass(frozen=True)
class Stage:
    """A node of the DAG."""

    name: str
    """Name in DVC: `sae`, `pretrain@ntp-0`."""
    needs: tuple[str, ...]
    """The stages whose outputs it reads."""
    changed: bool
    """Whether DVC finds changed parameters, inputs, code, command or outputs since its last run."""
    metrics: tuple[Path, ...]
    """The files in metrics/ that it writes."""
    gpu: bool
    """Whether it computes on a GPU if there is one: `meta: {gpu: true}` in dvc.yaml."""
    reads_keys_of: frozenset[str] = frozenset()
    """The subset of `needs` of which it reads only keys of a file, as parameters."""
    reasons: tuple[str, ...] = ()
    """The changes, in words."""
    ran_with: Mapping[str, Any] = field(default_factory=dict)
    """The parameters of its last run, by key."""
    writes: bytes | None = None
    """For the stage `check`: the external.json that it will write; `changed` of other stages is based on it."""
    folder: Path = Path()
    """Where it runs: the project's folder, or a copy of it (`flows/copies.py`)."""
    setting: str = ""
    """The setting of a sweep that it runs for."""

    @property
    def title(self) -> str:
        """Name of its task in logs and in the UI."""
        return titled(self.name, self.setting)

    @property
    def needed_titles(self) -> set[str]:
        """The titles of `needs`, under the same setting."""
        return {titled(each, self.setting) for each in self.needs}

    def as_foreseen(self) -> bool:
        """Whether external.json has the content `writes`."""
        return self.writes is not None and external.FILE.exists() and external.FILE.read_bytes() == self.writes


def titled(stage: str, setting: str) -> str:
    """See `Stage.title`."""
    return f"{stage} {setting}" if setting else stage


def read_dag(params: bytes | None = None) -> dict[str, Stage]:
    """Read all stages by name, in topological order, without changing the project's folder.

    Args:
        params: content of params.yaml to plan for; None: that of the file.

    Raises:
        UserError: when dvc.yaml or dvc.lock cannot be read.
    """
    if lock_is_torn():
        raise UserError(f"{LOCK}: not whole, as after a kill of DVC; remove it, as a flow does: {WITHOUT_LOCK}")

    @cache
    def digests() -> dict[str, str | None]:
        return external.digests(load() if params is None else parse(Params, mapping(params, str(FILE)), str(FILE)))

    contents = {external.FILE: lambda: external.to_json(digests())}
    if params is not None:
        contents[FILE] = lambda: params
    try:
        with TemporaryDirectory() as own, Repo(fs=WithContents(contents), _wait_for_lock=True) as repo:
            repo.tmp_dir = own  # no list of locks: a reader needs none, and the list may be truncated
            graph = repo.index.graph
            status = repo.status()
            root = Path(repo.root_dir)
            stages = {
                stage.addressing: Stage(
                    name=stage.addressing,
                    needs=tuple(sorted(each.addressing for each in graph.successors(stage))),
                    changed=stage.addressing in status,
                    metrics=tuple(
                        path
                        for out in stage.outs
                        if (path := Path(out.fs_path).relative_to(root)).parts[0] == "metrics"
                    ),
                    gpu=bool((stage.meta or {}).get("gpu")),
                    reads_keys_of=frozenset(
                        each.addressing for each in graph.successors(stage) if only_keys(stage, each)
                    ),
                    reasons=tuple(reasons(stage, status.get(stage.addressing, []))),
                    ran_with=ran_with(stage),
                )
                for stage in graph
            }
            for stage in graph:
                if any(Path(out.fs_path) == external.FILE.parent.absolute() for out in stage.outs):
                    stages[stage.addressing] = _looked_ahead(stages[stage.addressing], digests())
    except DvcException as error:
        said = " ".join(str(error).split())
        remedy = "; git init makes one" if said.endswith("is not a git repository") else ""
        raise UserError(f"dvc.yaml: {said}{remedy}") from None
    order = TopologicalSorter({name: stages[name].needs for name in sorted(stages)}).static_order()
    return {name: stages[name] for name in order}


def _looked_ahead(stage: Stage, digests: Mapping[str, str | None]) -> Stage:
    """The stage `check`, which DVC always runs, marked as changed only if it will find something new."""
    why = stage.reasons + tuple(found_outside(digests))
    return replace(stage, changed=bool(why), reasons=why, writes=external.to_json(digests))


def select(dag: Mapping[str, Stage], targets: Iterable[str], mode: Mode = "upstream") -> list[Stage]:
    """The named stages and those that `mode` adds, in topological order; no name selects the whole pipeline.

    Args:
        targets: names in dvc.yaml; the name of a matrix (`pretrain`) selects all its stages.

    Raises:
        UserError: when a stage is unknown.
    """
    wanted = {name for target in targets for name in _named(target, dag)} or set(dag)
    if mode == "upstream":
        wanted |= _upstream(wanted, dag)
    if mode == "downstream":
        wanted |= {name for name in dag if _upstream({name}, dag) & wanted}
    return [stage for stage in dag.values() if stage.name in wanted]


def outdated_inputs(dag: Mapping[str, Stage], selected: Iterable[Stage]) -> list[str]:
    """Changed stages that the selected ones depend on but that are not selected."""
    chosen = {stage.name for stage in selected}
    return [name for name in dag if name in _upstream(chosen, dag) - chosen and dag[name].changed]


def names() -> list[str]:
    """All possible targets, in the order of dvc.yaml; empty in a folder without a pipeline."""
    try:
        with Repo() as repo:
            found = [stage.addressing for stage in repo.index.stages]
    except DvcException:
        return []
    return list(dict.fromkeys(name for each in found for name in (each.partition("@")[0], each)))


def _named(target: str, dag: Iterable[str]) -> list[str]:
    found = [name for name in dag if target in (name, name.partition("@")[0])]
    if not found:
        allowed = {name.partition("@")[0] for name in dag} | set(dag)
        raise UserError(f"{target}: no such stage in dvc.yaml; {suggestion(target, allowed)}")
    return found


def _upstream(stages: Iterable[str], dag: Mapping[str, Stage]) -> set[str]:
    found: set[str] = set()
    waiting = [need for name in stages for need in dag[name].needs]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(dag[name].needs)
    return found
