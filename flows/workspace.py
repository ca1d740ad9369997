"""The project's folder: one run at a time, and as a person left it through a time of changed parameters."""

import fcntl
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.lock import LockError, make_lock
from dvc.repo import Repo

from cocomix.artifact import write_atomically
from cocomix.errors import UserError
from cocomix.params import FILE

LOCK = Path("dvc.lock")
SMALL = (Path("metrics"), Path("plots"))
"""Results that DVC does not keep in its cache."""
SAVED = Path("artifacts/.work/sweep")
IN_USE = Path("artifacts/.work/workspace.lock")


def drop_torn_locks() -> None:
    """Let DVC go on after one that was killed while it wrote the list of its locks, in place: DVC itself refuses to.

    Nothing is lost: an entry of the list counts only as long as its process lives.
    """
    held = Path(".dvc/tmp/rwlock")
    if held.exists():
        with suppress(LockError), make_lock(f"{held}.lock", tmp_dir=str(held.parent)):  # else: it is being written
            try:
                json.loads(held.read_bytes())
            except FileNotFoundError:
                return
            except ValueError:
                held.unlink()


@contextmanager
def alone(waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Keep other flows and sweeps, which would change parameters underneath, out of the project's folder.

    A process that is killed leaves no lock behind.

    Args:
        waiting: is called before this waits for another one to end; none: it does not wait.

    Raises:
        UserError: when another one is at work, and this is not to wait.
    """
    IN_USE.parent.mkdir(parents=True, exist_ok=True)
    with IN_USE.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waiting:
                raise UserError("another flow or sweep is at work in this folder; wait for it") from None
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def kept(apart_from: Path) -> Iterator[Callable[[bytes], None]]:
    """Leave params.yaml, dvc.lock, metrics, plots and artifacts as they were, whatever ends this early.

    What a `kill -9` leaves is put back first by the next call, unless params.yaml has been edited since.

    Args:
        apart_from: a folder of metrics or plots that is left alone.

    Yields:
        What writes another content into params.yaml.

    Raises:
        UserError: when a flow or another sweep is at work in the folder.
    """
    SAVED.mkdir(parents=True, exist_ok=True)
    with alone():
        before, written = SAVED / "before", SAVED / "written"
        if before.exists():
            if (written / _digest(FILE.read_bytes())).exists():
                _put_back(before, apart_from)
            shutil.rmtree(before)
        shutil.rmtree(written, ignore_errors=True)
        _save(before, apart_from)

        def write(content: bytes) -> None:
            written.mkdir(exist_ok=True)
            (written / _digest(content)).touch()
            write_atomically(FILE, content)

        try:
            yield write
        finally:
            if written.exists():
                _put_back(before, apart_from)
            shutil.rmtree(before)


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def _files(apart_from: Path) -> set[Path]:
    small = {each for folder in SMALL for each in folder.rglob("*") if each.is_file()}
    return (
        {FILE} | {each for each in small if not each.is_relative_to(apart_from)} | ({LOCK} if LOCK.exists() else set())
    )


def _save(before: Path, apart_from: Path) -> None:
    aside = SAVED / "saving"
    shutil.rmtree(aside, ignore_errors=True)
    for path in _files(apart_from):
        (aside / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, aside / path)
    aside.rename(before)


def _put_back(before: Path, apart_from: Path) -> None:
    saved = {each.relative_to(before) for each in before.rglob("*") if each.is_file()}
    for path in saved:
        write_atomically(path, (before / path).read_bytes())
    for path in _files(apart_from) - saved - {LOCK}:
        path.unlink()
    if LOCK in saved:
        try:
            with Repo(_wait_for_lock=True) as repo:
                repo.checkout(force=True)
        except DvcException as error:
            print(f"artifacts: {' '.join(str(error).split())}; `dvc repro` makes them again", file=sys.stderr)
