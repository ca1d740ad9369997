"""Read everything that DVC and the stages keep, and report damage: `python -m flows.verify [--remove]`.

DVC checks whether a file was written, not whether the disk still holds its content. Artifacts, unfinished work and
DVC's cache may be links to one file, and are then damaged together. Each file is read once, whatever its links:

    artifacts/*              against the manifest; the manifest against dvc.lock, or the work that it was made from
    artifacts/.work/*/*      finished files, against the journal
    DVC's cache              objects in dvc.lock, or with --all every object, against their names
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dvc.exceptions import DvcException
from dvc.repo import Repo
from pydantic import ValidationError

from cocomix.plumbing.artifact import MANIFEST, Artifact, Manifest, read_journal
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.progress import progress
from flows.workspace import alone, check_folder

ARTIFACTS = Path("artifacts")
WORK = ARTIFACTS / ".work"
REMEDY = "`python -m flows.verify --remove`, then `dvc repro` (or `dvc pull`, where a remote has it)"
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Expected:
    """A file with the digest that it should have."""

    path: Path
    kind: Literal["sha256", "md5"]
    digest: str
    remove: Path
    """What to remove if the file is damaged."""


@dataclass(frozen=True)
class Damage:
    """A damaged, missing or foreign file."""

    path: Path
    what: str
    remove: Path

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def verify(*, whole_cache: bool = False) -> list[Damage]:
    """Read all files and report damage.

    Args:
        whole_cache: whether to include objects of DVC's cache that dvc.lock does not name.
    """
    found, expected = list[Damage](), list[Expected]()
    with Repo() as repo:
        cache = Path(repo.cache.local.path)
        noted = {
            Path(out.fs_path): str(out.hash_info.value)
            for out in repo.index.outs
            if out.use_cache and out.hash_info and out.hash_info.name == "md5"
        }
    listed = {path: _children(cache, digest) for path, digest in noted.items() if digest.endswith(".dir")}
    for each in (*_published(listed), *_work()):
        if isinstance(each, Damage):
            found.append(each)
        else:
            expected.append(each)
    objects = set(noted.values()) | {each for known in listed.values() for each in known.values()}
    paths = cache.glob("??/*") if whole_cache else (_object(cache, each) for each in sorted(objects))
    expected += [
        Expected(path, "md5", path.parent.name + path.name.removesuffix(".dir"), path)
        for path in paths
        if path.is_file() and not path.name.endswith(".unpacked")
    ]
    return found + _read(expected)


def cut_short() -> list[str]:
    """Damage that is visible without reading: artifacts with missing or truncated files."""
    found = []
    for manifest in _manifests():
        try:
            Artifact(manifest.parent)
        except UserError as error:
            found.append(str(error))
    return found


def remove(damage: Iterable[Damage]) -> None:
    """Remove damaged files; for an artifact, all of it, so that DVC makes it again."""
    for path in {each.remove for each in damage}:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _manifests() -> list[Path]:
    found = filter(Path.is_file, ARTIFACTS.rglob(MANIFEST))
    return sorted(each for each in found if not any(part.startswith(".") for part in each.relative_to(ARTIFACTS).parts))


def _published(listed: dict[Path, dict[str, str]]) -> Iterator[Damage | Expected]:
    for folder in (each.relative_to(Path.cwd()) for each in listed):
        if not (folder / MANIFEST).is_file():
            yield Damage(folder / MANIFEST if folder.exists() else folder, "missing", folder)
    works = {path.read_bytes() for path in WORK.glob(f"*/*/{MANIFEST}")}
    for path in _manifests():
        folder, content = path.parent, path.read_bytes()
        noted = listed.get(folder.absolute(), {}).get(MANIFEST)
        if noted and content not in works and hashlib.md5(content).hexdigest() != noted:
            yield Damage(path, "altered", folder)
        try:
            manifest = Manifest.model_validate_json(content)
        except ValidationError:
            yield Damage(path, "altered: not a manifest", folder)
            continue
        for each in sorted(folder.rglob("*")):
            name = str(each.relative_to(folder))
            if each.is_file() and name != MANIFEST and name not in manifest.files:
                yield Damage(each, "not of this artifact", folder)
        for name, record in manifest.files.items():
            if (folder / name).is_file():
                yield Expected(folder / name, "sha256", record.sha256, folder)
            else:
                yield Damage(folder / name, "missing", folder)


def _work() -> Iterator[Expected]:
    for journal in sorted(WORK.glob("*/*/journal.jsonl")):
        files = journal.parent / "files"
        for name, record in read_journal(journal).items():
            if (files / name).is_file():  # a missing file is computed again
                yield Expected(files / name, "sha256", record.sha256, files / name)


def _object(cache: Path, digest: str) -> Path:
    return cache / digest[:2] / digest[2:]


def _children(cache: Path, digest: str) -> dict[str, str]:
    """Digests of a folder's files by name, from its list in DVC's cache; empty if the list is damaged."""
    try:
        content: list[dict[str, Any]] = json.loads(_object(cache, digest).read_bytes())
        return {each["relpath"]: each["md5"] for each in content}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _read(expected: Iterable[Expected]) -> list[Damage]:
    """Compare files with their expected digests; files with several links are read once."""
    inodes: dict[tuple[int, int], list[Expected]] = {}
    size = 0
    for each in expected:
        status = each.path.stat()
        inode = status.st_dev, status.st_ino
        size += status.st_size if inode not in inodes else 0
        inodes.setdefault(inode, []).append(each)
    found = []
    with progress("verify", size, "B") as bar:
        for places in inodes.values():
            digests = {kind: hashlib.new(kind) for kind in {each.kind for each in places}}
            try:
                with places[0].path.open("rb") as file:
                    while chunk := file.read(_CHUNK):
                        for digest in digests.values():
                            digest.update(chunk)
                        bar.advance(len(chunk))
            except OSError as error:
                found += [Damage(each.path, f"cannot be read: {error.strerror}", each.remove) for each in places]
                continue
            found += [
                Damage(each.path, "altered since it was written", each.remove)
                for each in places
                if digests[each.kind].hexdigest() != each.digest
            ]
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.verify", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="also what DVC's cache keeps of earlier runs")
    parser.add_argument("--remove", action="store_true", help="remove what is damaged, so that `dvc repro` makes it")
    given = parser.parse_args()
    try:
        check_folder()
        # Nothing may be made anew between its reading and its removal.
        with alone(wait=False, say=print) if given.remove else nullcontext():
            found = verify(whole_cache=given.all)
            for each in found:
                print(each)
            if given.remove:
                remove(found)
        if not found:
            print("All is as it was written.")
        elif given.remove:
            print("Removed; `dvc repro` makes it again, or `dvc pull` brings it where a remote has it.")
        else:
            sys.exit(f"damaged places: {len(found)}; {REMEDY}")
    except DvcException as error:
        sys.exit(f"error: dvc.yaml: {' '.join(str(error).split())}")
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
