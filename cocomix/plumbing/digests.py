"""Digests of external files, cached by file state, so that unchanged files are not read again.

Digests cover content and relative names, not times, so copying files makes no difference. Digests of files written in
the last seconds are not cached: another write might leave the same timestamp.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cocomix.plumbing.artifact import write_atomically
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.lock import file_lock
from cocomix.plumbing.progress import progress
from cocomix.plumbing.sources import State, state_of

KEPT = Path("artifacts/.work/digests.json")
LOCK = KEPT.with_suffix(".lock")
SETTLED_NS = 3_000_000_000
"""Age from which a file's digest is cached; some file systems have timestamps with a resolution of two seconds."""
_CHUNK = 1 << 22


def digest_of_files(paths: Sequence[Path], folder: Path = Path()) -> str:
    """Digest of the files' content and names; names are relative to `folder` for files in it.

    Raises:
        UserError: when one cannot be read.
    """
    found = _contents(paths)
    named = [(str(path.relative_to(folder) if path.is_relative_to(folder) else path), found[path]) for path in paths]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def digest_of_path(path: Path) -> str | None:
    """Digest of a file, or of all files in a folder, recursively, except hidden ones; None: the path does not exist."""
    if not os.path.isdir(path):  # unlike Path.is_dir, also false for a name that no file can have
        return digest_of_files([path], path.parent) if os.path.isfile(path) else None
    files = (each for each in path.rglob("*") if each.is_file())
    return digest_of_files(
        sorted(each for each in files if not any(part.startswith(".") for part in each.relative_to(path).parts)), path
    )


def _contents(paths: Sequence[Path]) -> dict[Path, str]:
    """SHA-256 of each file."""
    with _readable():
        now = {path: state_of(path) for path in paths}
    with file_lock(LOCK):
        kept = _read()
    found = {path: kept[key][1] for path in paths if kept.get(key := _key(path), (None,))[0] == now[path]}
    missing = [path for path in paths if path not in found]
    if not missing:
        return found
    began = time.time_ns()
    with progress("reading files that params.yaml names", sum(now[path][0] for path in missing), "B") as bar:
        for path in missing:
            digest = hashlib.sha256()
            with _readable(), path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    bar.advance(len(chunk))
            found[path] = digest.hexdigest()
    with _readable():
        settled = [path for path in missing if _written(now[path]) < began - SETTLED_NS and state_of(path) == now[path]]
    with file_lock(LOCK):
        _write(_read() | {_key(path): (now[path], found[path]) for path in settled})
    return found


@contextmanager
def _readable() -> Iterator[None]:
    """Name the file of an error. What is raised while digests are kept, such as for a full disk, is none of these."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None


def _key(path: Path) -> str:
    return str(path.absolute())


def _written(state: State) -> int:
    _, modified, changed, *_ = state
    return max(modified, changed)


def _read() -> dict[str, tuple[State, str]]:
    try:
        return {path: (tuple(state), digest) for path, (state, digest) in json.loads(KEPT.read_bytes()).items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):  # missing or damaged
        return {}


def _write(kept: Mapping[str, tuple[State, str]]) -> None:
    write_atomically(KEPT, json.dumps(kept, indent=0).encode())
