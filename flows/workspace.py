"""The project's folder: one run at a time, and as a person left it through a time of changed parameters."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import chain, count
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from dvc.dvcfile import Lockfile
from dvc.exceptions import DvcException
from dvc.lock import LockError, make_lock
from dvc.repo import Repo
from dvc.utils import strictyaml
from filelock import Timeout

from cocomix.check.preflight import check_place
from cocomix.params import FILE
from cocomix.plumbing.artifact import write_atomically
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.lock import file_lock

LOCK = Path("dvc.lock")
TORN = Path("dvc.lock.torn")
WITHOUT_LOCK = "what is finished is published again, not computed"
SMALL = (Path("metrics"), Path("plots"))
"""Results that DVC does not keep in its cache."""
SAVED = Path("artifacts/.work/sweep")
BEFORE = SAVED / "before"
"""What a sweep that has not ended had found."""
WRITTEN = SAVED / "written"
"""Digests of what it has written into params.yaml; no folder where it wrote nothing."""
ASIDE = SAVED / "aside"
"""`BEFORE` in the making, or on its way out."""
IN_USE = Path("artifacts/.work/workspace.lock")


def to_stderr(line: str) -> None:
    """Say something beside the output."""
    print(line, file=sys.stderr, flush=True)


def drop_torn_locks(say: Callable[[str], None] = to_stderr) -> None:
    """Let DVC go on after one that was killed while it wrote dvc.lock, or the list of its locks, in place.

    DVC itself refuses to. Nothing is lost: an entry of the list counts only as long as its process lives, and the
    stages know, without dvc.lock, what they have finished.
    """
    held = Path(".dvc/tmp/rwlock")
    if held.exists():
        with suppress(LockError), make_lock(f"{held}.lock", tmp_dir=str(held.parent)):  # else: it is being written
            try:
                json.loads(held.read_bytes())
            except FileNotFoundError:
                pass
            except ValueError:
                held.unlink()
    if lock_is_torn():
        with suppress(DvcException), Repo() as repo, repo.lock:  # else: it is being written
            if lock_is_torn():
                LOCK.replace(TORN)
                say(f"{LOCK} was not whole and is now {TORN}: {WITHOUT_LOCK}")


def lock_is_torn() -> bool:
    """Whether dvc.lock is there, but not as DVC writes it."""
    try:
        strictyaml.load(str(LOCK), Lockfile.SCHEMA)
        return not LOCK.read_bytes().endswith(b"\n")
    except FileNotFoundError:
        return False
    except DvcException:
        return True


def dvc_at_work() -> str:
    """A process of DVC that works in this folder, by DVC's list of locks; empty if none does."""
    try:
        locks = json.loads(Path(".dvc/tmp/rwlock").read_bytes())
    except (FileNotFoundError, ValueError):  # none, or being written
        return ""
    holders = [*locks.get("write", {}).values(), *chain(*locks.get("read", {}).values())]
    return next((f"process {each['pid']}: {each['cmd']}" for each in holders if _is_dvc(each["pid"])), "")


def _is_dvc(process: int) -> bool:
    """Whether a process is there, and is not another one with the number of a DVC that was killed."""
    with suppress(psutil.Error):
        return any("dvc" in word for word in psutil.Process(process).cmdline())
    return False


def check_folder() -> None:
    """Check that the working directory is the project's folder, in which its files can be written.

    Raises:
        UserError: otherwise.
    """
    if not FILE.exists():
        raise UserError(f"{FILE}: no such file; run from the project's folder")
    check_place(IN_USE.parents[1])


@contextmanager
def alone(*, wait: bool = False, say: Callable[[str], None] = to_stderr) -> Iterator[None]:
    """Keep other flows, sweeps and presets, which would change parameters underneath, out of the project's folder.

    A process that is killed leaves no lock behind. What else it may leave is put right first: files of DVC that are
    torn, and what a sweep has changed, unless params.yaml has been edited since.

    Args:
        wait: for another one that is at work to end.
        say: is called with a line for each thing that is put right, or that a person must know.

    Raises:
        UserError: when another one is at work, and this does not wait.
    """
    check_folder()
    lock = file_lock(IN_USE)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        busy = f"another run is at work in this folder ({IN_USE.read_text()})"
        if not wait:
            raise UserError(f"{busy}; wait for it") from None
        say(f"{busy}: waiting for it to end")
        lock.acquire(poll_interval=0.2)
    try:
        command = " ".join(" ".join(sys.orig_argv[1:]).split())
        IN_USE.write_text(f"process {os.getpid()}: python {command}")
        drop_torn_locks(say)
        if BEFORE.exists():
            _end_sweep(say, killed=True)
        yield
    finally:
        lock.release()


@contextmanager
def kept(*, wait: bool = False, say: Callable[[str], None] = to_stderr) -> Iterator[Callable[[bytes], None]]:
    """Leave params.yaml, dvc.lock, metrics, plots and artifacts as they were, whatever ends this early.

    What a `kill -9` leaves is put back by the next one that is `alone`. What a person writes into params.yaml meanwhile
    stays. Results of sweeps are left alone.

    Args:
        wait: as of `alone`.
        say: likewise.

    Yields:
        What writes another content into params.yaml; a UserError where a person has edited it.

    Raises:
        UserError: when a flow or another sweep is at work in the folder.
    """
    with alone(wait=wait, say=say):
        shutil.rmtree(WRITTEN, ignore_errors=True)
        _save()
        last = (BEFORE / FILE).read_bytes()

        def write(content: bytes) -> None:
            nonlocal last
            if FILE.read_bytes() != last:
                raise UserError(f"{FILE}: edited while the sweep was at work; the same command goes on")
            WRITTEN.mkdir(exist_ok=True)
            (WRITTEN / _digest(content)).touch()
            write_atomically(FILE, content)
            last = content

        try:
            yield write
        finally:
            _end_sweep(say, killed=False)


def _end_sweep(say: Callable[[str], None], *, killed: bool) -> None:
    """Put back what a sweep had found. A params.yaml that a person has edited stays, and the one before is kept.

    After a kill nothing else is put back then: it may be what the person has made since.
    """
    now, original = (_digest(each.read_bytes()) if each.exists() else "missing" for each in (FILE, BEFORE / FILE))
    ours = (WRITTEN / now).exists()
    edited = WRITTEN.exists() and not ours and now != original
    if ours:
        (WRITTEN / original).touch()  # if this is killed in turn, the next one begins again
    if ours or (WRITTEN.exists() and not killed):
        _put_back(say, but={FILE} if edited else set())
    if edited:
        kept_as = next(each for number in count(1) if not (each := SAVED / f"before-{number}").exists())
        BEFORE.rename(kept_as)
        say(f"{FILE} was edited after a sweep had written it: it stays; as it was before, it is {kept_as / FILE}")
        return
    BEFORE.rename(ASIDE)
    shutil.rmtree(ASIDE)
    if ours and killed:
        say(f"a sweep was killed here: {FILE}, {LOCK} and results are put back as they were before it")


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def _files() -> set[Path]:
    from cocomix.report.tuning import SWEEPS  # NumPy, which most who are `alone` do not need

    small = {each for folder in SMALL for each in folder.rglob("*") if each.is_file()}
    return {FILE} | {each for each in small if not each.is_relative_to(SWEEPS)} | ({LOCK} if LOCK.exists() else set())


def _save() -> None:
    shutil.rmtree(ASIDE, ignore_errors=True)
    for path in _files():
        (ASIDE / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, ASIDE / path)
    ASIDE.rename(BEFORE)


def _put_back(say: Callable[[str], None], but: set[Path]) -> None:
    saved = {each.relative_to(BEFORE) for each in BEFORE.rglob("*") if each.is_file()}
    for path in saved - but:
        write_atomically(path, (BEFORE / path).read_bytes())
    for path in _files() - saved - {LOCK}:
        path.unlink()
    if LOCK in saved:
        try:
            with Repo(_wait_for_lock=True) as repo:
                repo.checkout(force=True)
        except DvcException as error:
            say(f"artifacts: {' '.join(str(error).split())}; `dvc repro` makes them again")
