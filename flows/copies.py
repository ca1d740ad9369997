"""Copies of the project's folder, in which settings of a sweep run beside each other, each with its own params.yaml.

A copy holds the code, and the artifacts as hard links, so it takes little disk. It uses the project's DVC cache.
"""

import os
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any

from dvc.config import Config
from dvc.repo import Repo

from cocomix.params import FILE
from flows.workspace import LOCK, SAVED, SMALL

FOLDER = SAVED / "copies"
ARTIFACTS = Path("artifacts")
_COPIED = {Path("cocomix"), Path("stages"), Path("flows"), Path("dvc.yaml"), Path(".dvcignore"), FILE, LOCK, *SMALL}
"""What a stage may write, or a person may edit meanwhile. All other files of the folder are links."""


def copy_of_project(setting: str) -> Path:
    """Make a copy of the working directory, whose params.yaml holds the setting.

    A copy of the same setting with the same params.yaml is updated; its unfinished work stays.
    """
    folder = FOLDER / sha256(setting.encode() + b"\0" + FILE.read_bytes()).hexdigest()[:16]
    kept = folder / ARTIFACTS / ".work"
    kept.mkdir(parents=True, exist_ok=True)
    for each in [*folder.iterdir(), *(folder / ARTIFACTS).iterdir()]:
        if each not in (folder / ARTIFACTS, kept):
            _remove(each)
    for each in Path().iterdir():
        if each in _COPIED and each.is_dir():
            shutil.copytree(each, folder / each, ignore=shutil.ignore_patterns("__pycache__"))
        elif each in _COPIED:
            shutil.copyfile(each, folder / each)
        elif each not in (ARTIFACTS, Path(".dvc"), Path(".git")):
            (folder / each).symlink_to(each.absolute())
    for each in ARTIFACTS.glob("*/"):
        if each.name != ".work":
            shutil.copytree(each, folder / each, copy_function=os.link)
    _configure(folder)
    return folder


def remove(folder: Path) -> None:
    """Remove a copy; the DVC cache has what its stages have finished."""
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
        cache = repo.cache.local.path
    with Config(str(own), validate=False).edit("local") as config:
        config.setdefault("cache", {})["dir"] = cache
        config.setdefault("core", {}).update(no_scm=True, site_cache_dir=str((own / "site").absolute()))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
