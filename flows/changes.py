"""Why DVC would run a stage, in words; also with parameters that are not in params.yaml."""

import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any

from dvc.dependency import Dependency, ParamsDependency
from dvc.fs import LocalFileSystem
from dvc.stage import Stage

from cocomix.params import FILE

Status = Sequence[Mapping[str, Mapping[str, Any]] | str]
"""What DVC says of a stage: `{"changed deps": {path: what}}`, `{"changed outs": ..}`, `changed command`."""


class WithParams(LocalFileSystem):
    """This machine's files, with another content of params.yaml.

    Args:
        params: the content.
    """

    def __init__(self, params: bytes) -> None:
        super().__init__()
        self._params = params

    def open(self, path: str, mode: str = "r", **kwargs: Any) -> IO[Any]:
        """A file, opened."""
        if Path(path).absolute() != FILE.absolute():
            return super().open(path, mode=mode, **kwargs)
        return io.BytesIO(self._params) if "b" in mode else io.StringIO(self._params.decode())


def ran(stage: Stage) -> bool:
    """Whether dvc.lock knows a run of the stage."""
    return any(out.hash_info for out in stage.outs)


def ran_with(stage: Stage) -> dict[str, Any]:
    """The parameters of the stage's last run, by key; none, when it never ran."""
    return {key: value for dep in _params_of(stage) for key, value in (dep.hash_info.value or {}).items()}


def only_keys(stage: Stage, needed: Stage) -> bool:
    """Whether `stage` reads nothing of what `needed` makes but keys of a file, as parameters."""
    made = [Path(out.fs_path) for out in needed.outs]

    def reads(dep: Dependency) -> bool:
        path = Path(dep.fs_path)
        return any(path.is_relative_to(each) or each.is_relative_to(path) for each in made)

    return all(isinstance(dep, ParamsDependency) for dep in stage.deps if reads(dep))


def reasons(stage: Stage, status: Status) -> list[str]:
    """Why DVC would run the stage, without what an earlier stage will change for it."""
    if status and not ran(stage):
        return ["never run"]
    found = []
    for entry in status:
        if isinstance(entry, str):
            found.append("its command changed" if entry == "changed command" else entry)
        else:
            found += _changed_files(stage, entry)
    return found


def _changed_files(stage: Stage, entry: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for path, what in entry.get("changed outs", {}).items():
        yield f"{path} is {'missing' if what == 'deleted' else what}"
    for path, what in entry.get("changed deps", {}).items():
        if path == str(FILE):
            yield from chain.from_iterable(_changed_params(dep) for dep in _params_of(stage))
        elif isinstance(what, Mapping):
            yield from (f"{path}: {key}" for key in what)
        else:
            yield f"{path} is {'missing' if what == 'deleted' else what}"


def _params_of(stage: Stage) -> list[ParamsDependency]:
    return [dep for dep in stage.deps if isinstance(dep, ParamsDependency) and Path(dep.fs_path).name == str(FILE)]


def _changed_params(dep: ParamsDependency) -> Iterator[str]:
    now, before = _flat(dep.read_params()), _flat(dep.hash_info.value or {})
    for key in (*now, *(each for each in before if each not in now)):
        if key not in before:
            yield f"{key}: new, {now[key]}"
        elif key not in now:
            yield f"{key}: {before[key]} -> gone"
        elif now[key] != before[key]:
            yield f"{key}: {before[key]} -> {now[key]}"


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """`{"sae": {"k": 8}}` as `{"sae.k": 8}`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found
