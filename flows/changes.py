"""Reasons why DVC would run a stage, also with other contents of params.yaml and of the output of `check`."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any

from dvc.dependency import Dependency, ParamsDependency
from dvc.fs import LocalFileSystem
from dvc.stage import Stage

from cocomix.check import external
from cocomix.params import FILE
from flows.overrides import leaves

Status = Sequence[Mapping[str, Mapping[str, Any]] | str]
"""DVC's status of a stage: `{"changed deps": {path: what}}`, `{"changed outs": ..}`, `changed command`."""


class WithContents(LocalFileSystem):
    """The local file system, with other contents for some files when DVC reads parameters from them as text.

    When DVC computes digests, which it caches, it reads the files as they are.

    Args:
        contents: function that returns the content, by file; called when the content is needed.
    """

    def __init__(self, contents: Mapping[Path, Callable[[], bytes]]) -> None:
        super().__init__()
        self._contents = {path.absolute(): content for path, content in contents.items()}

    def open(self, path: str, mode: str = "r", **kwargs: Any) -> IO[Any]:
        """Open a file."""
        content = self._contents.get(Path(path).absolute())
        if content is None or "b" in mode:
            return super().open(path, mode=mode, **kwargs)
        return io.StringIO(content().decode())

    def exists(self, path: str | list[str], callback: Any = None, batch_size: int | None = None) -> bool | list[bool]:
        """Whether a file exists."""
        if isinstance(path, str) and Path(path).absolute() in self._contents:
            return True
        return super().exists(path, callback, batch_size)


def ran(stage: Stage) -> bool:
    """Whether dvc.lock records a run of the stage."""
    return any(out.hash_info for out in stage.outs)


def ran_with(stage: Stage) -> dict[str, Any]:
    """The parameters of the stage's last run, by key; empty if it never ran."""
    return {key: value for dep in _params_of(stage) for key, value in (dep.hash_info.value or {}).items()}


def only_keys(stage: Stage, needed: Stage) -> bool:
    """Whether `stage` reads the outputs of `needed` only by keys of a file, as parameters."""
    made = [Path(out.fs_path) for out in needed.outs]

    def reads(dep: Dependency) -> bool:
        path = Path(dep.fs_path)
        return any(path.is_relative_to(each) or each.is_relative_to(path) for each in made)

    return all(isinstance(dep, ParamsDependency) for dep in stage.deps if reads(dep))


def reasons(stage: Stage, status: Status) -> list[str]:
    """Reasons why DVC would run the stage, apart from changes that earlier stages will make to its inputs."""
    if status and not ran(stage):
        return ["never run"]
    found = []
    for entry in status:
        if isinstance(entry, str):
            found += {"changed command": ["its command changed"], "always changed": []}.get(entry, [entry])
        else:
            found += _changed_files(stage, entry)
    return found


def found_outside(digests: Mapping[str, str | None]) -> list[str]:
    """External files and packages named by parameters that differ from external.json; empty if that is missing."""
    if (before := external.noted()) is None:
        return []
    return [f"what {key} names changed" for key, digest in digests.items() if before.get(key) != digest]


def _changed_files(stage: Stage, entry: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for path, what in entry.get("changed outs", {}).items():
        yield f"{path} is {'missing' if what == 'deleted' else what}"
    for path, what in entry.get("changed deps", {}).items():
        if path == str(FILE):
            yield from chain.from_iterable(_changed_params(dep) for dep in _params_of(stage))
        elif path == str(external.FILE) and isinstance(what, Mapping):
            yield from (f"what {key} names changed" for key in what)
        elif isinstance(what, Mapping):
            yield from (f"{path}: {key}" for key in what)
        else:
            yield f"{path} is {'missing' if what == 'deleted' else what}"


def _params_of(stage: Stage) -> list[ParamsDependency]:
    return [dep for dep in stage.deps if isinstance(dep, ParamsDependency) and Path(dep.fs_path).name == str(FILE)]


def _changed_params(dep: ParamsDependency) -> Iterator[str]:
    now, before = leaves(dep.read_params()), leaves(dep.hash_info.value or {})
    for key in (*now, *(each for each in before if each not in now)):
        if key not in before:
            yield f"{key}: new, {now[key]}"
        elif key not in now:
            yield f"{key}: {before[key]} -> gone"
        elif now[key] != before[key]:
            yield f"{key}: {before[key]} -> {now[key]}"
