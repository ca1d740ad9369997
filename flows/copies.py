"""Copies of the project's folder, in which settings of a sweep run beside each other, each with its own params.yaml.

A copy holds the code, and the artifacts as hard links, so it takes little disk. It uses the project's DVC cache.
"""

import re
import shutil
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any

from dvc.config import Config
from dvc.repo import Repo

from cocomix.params import FILE
from cocomix.plumbing.artifact import place_file
from flows.run_cache import remember_copy
from flows.workspace import LOCK, SAVED, SMALL

FOLDER = SAVED / "copies"
ARTIFACTS = Path("artifacts")
_COPIED = {Path("cocomix"), Path("stages"), Path("flows"), Path("dvc.yaml"), Path(".dvcignore"), LOCK, *SMALL}
"""What a stage may write, or a person may edit meanwhile. All other files of the folder are links."""
_OWN = {ARTIFACTS, Path(".dvc"), Path(".git"), FILE}
"""What a copy has in a form of its own."""


def copy_for(sweep: str, setting: str) -> Path:
    """Where the copy for a setting of a sweep is; it need not exist."""
    shown = re.sub(r"[^\w.,=-]+", "-", setting, flags=re.ASCII)[:60]
    digest = sha256(f"{sweep}\0{setting}".encode()).hexdigest()
    return FOLDER / f"{shown}-{digest[:16]}"


def update(folder: Path, params: bytes) -> None:
    """Make a copy of the working directory, or update one; unfinished work in it stays.

    Args:
        params: content of its params.yaml.
    """
    kept = folder / ARTIFACTS / ".work"
    kept.mkdir(parents=True, exist_ok=True)
    for each in [*folder.iterdir(), *(folder / ARTIFACTS).iterdir()]:
        if each not in (folder / ARTIFACTS, kept):
            _remove(each)
    (folder / FILE).write_bytes(params)
    for each in Path().iterdir():
        if each in _COPIED and each.is_dir():
            shutil.copytree(each, folder / each, ignore=shutil.ignore_patterns("__pycache__"))
        elif each in _COPIED:
            shutil.copyfile(each, folder / each)
        elif each not in _OWN:
            (folder / each).symlink_to(each.absolute())
    for each in ARTIFACTS.iterdir():
        if each.name != kept.name and each.is_dir():
            shutil.copytree(each, folder / each, copy_function=_link)
        elif each.name != kept.name:
            _link(each, folder / each)
    if Path(".git").is_dir():  # from a file, which a worktree has, git would take the copy for the worktree
        (folder / ".git").symlink_to(Path(".git").absolute())  # the metrics name the commit
    _configure(folder)


def remove_finished(folders: Iterable[Path]) -> None:
    """Remove copies without unfinished work. DVC's run cache has what their stages have finished."""
    for folder in folders:
        unfinished = any(folder.glob("artifacts/.work/*/*/scratch"))
        if not unfinished and (not (folder / LOCK).exists() or remember_copy(folder)):
            shutil.rmtree(folder)


def leaves_the_folder(values: Mapping[str, Any]) -> bool:
    """Whether a parameter names a path through `..`, which would lead elsewhere from a copy."""
    return any(
        leaves_the_folder(each)
        if isinstance(each, Mapping)
        else any(isinstance(item, str) and ".." in PurePath(item).parts for item in _items(each))
        for each in values.values()
    )


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _configure(folder: Path) -> None:
    """Make the copy a DVC project without git, with the project's cache."""
    own = folder / ".dvc"
    own.mkdir()
    for each in Path(".dvc").glob("config*"):
        shutil.copyfile(each, own / each.name)
    with Repo() as repo:
        cache = repo.cache.local_cache_dir
    with Config(str(own), validate=False).edit("local") as config:
        config.setdefault("cache", {})["dir"] = cache
        config.setdefault("core", {}).update(no_scm=True, site_cache_dir=str((own / "site").absolute()))


def _link(source: str | Path, target: str | Path) -> None:
    place_file(Path(source), Path(target), link=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
