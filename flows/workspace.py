"""Lock the project's folder for one run at a time, and restore it after runs with changed parameters."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import chain, count
from pathlib import Path
from typing import Any

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
HELD = Path(".dvc/tmp/rwlock")
"""DVC's list of locks: what each DVC that works in this folder reads and writes."""
TORN = Path("dvc.lock.torn")
WITHOUT_LOCK = "what is finished is published again, not computed"
SMALL = (Path("metrics"), Path("plots"))
"""Results that DVC does not store in its cache."""
SAVED = Path("artifacts/.work/sweep")
BEFORE = SAVED / "before"
"""The state before a sweep that has not ended."""
WRITTEN = SAVED / "written"
"""Digests of contents that the sweep has written into params.yaml; the folder is missing if it wrote nothing."""
ASIDE = SAVED / "aside"
"""`BEFORE` while it is being created or deleted."""
IN_USE = Path("artifacts/.work/workspace.lock")


def to_stderr(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr, flush=True)


def repair_locks(say: Callable[[str], None] = to_stderr) -> None:
    """Move a truncated dvc.lock aside, and delete a list of locks that is truncated or has no living process.

    They are left by a DVC that was killed. With a truncated file, DVC refuses to continue. Of a dead process, it warns
    at each path that the process held, also days later, and it waits for a new process with the same number. No results
    are lost: a lock counts only while its process lives, and the stages know without dvc.lock what they have finished.
    """
    if HELD.exists():
        with suppress(LockError), make_lock(f"{HELD}.lock", tmp_dir=str(HELD.parent)):  # otherwise it is being written
            if not any(psutil.pid_exists(each["pid"]) for each in _holders()):
                HELD.unlink(missing_ok=True)
    if lock_is_torn():
        with suppress(DvcException), Repo() as repo, repo.lock:  # otherwise it is being written
            if lock_is_torn():
                LOCK.replace(TORN)
                say(f"{LOCK} was not whole and is now {TORN}: {WITHOUT_LOCK}")


def lock_is_torn() -> bool:
    """Whether dvc.lock exists but is incomplete."""
    try:
        strictyaml.load(str(LOCK), Lockfile.SCHEMA)
        return not LOCK.read_bytes().endswith(b"\n")
    except FileNotFoundError:
        return False
    except DvcException:
        return True


def dvc_at_work() -> str:
    """A DVC process that works in this folder, from DVC's list of locks; empty if there is none."""
    return next((f"process {each['pid']}: {each['cmd']}" for each in _holders() if _is_dvc(each["pid"])), "")


def _holders() -> list[dict[str, Any]]:
    """The processes in DVC's list of locks; none if it is missing, truncated or being written."""
    try:
        locks = json.loads(HELD.read_bytes())
    except (FileNotFoundError, ValueError):
        return []
    return [*locks.get("write", {}).values(), *chain(*locks.get("read", {}).values())]


def _is_dvc(process: int) -> bool:
    """Whether a process exists and is DVC; its number may have been reused after a kill."""
    with suppress(psutil.Error):
        return any("dvc" in word for word in psutil.Process(process).cmdline())
    return False


def check_folder() -> None:
    """Check that the working directory is the project's folder and holds a usable artifacts folder.

    Raises:
        UserError: when it does not.
    """
    if not FILE.exists():
        raise UserError(f"{FILE}: no such file; run from the project's folder")
    check_place(IN_USE.parents[1])


@contextmanager
def alone(*, wait: bool = False, say: Callable[[str], None] = to_stderr) -> Iterator[None]:
    """Lock the project's folder against other flows, sweeps and presets, which could change parameters meanwhile.

    A killed process leaves no lock. First, other remains of killed processes are repaired: files of DVC, and the
    changes of a sweep, unless params.yaml has been edited since.

    Args:
        wait: whether to wait for another run to end.
        say: called with a line for each repair, and for what a person must know.

    Raises:
        UserError: when another run is active and `wait` is false.
    """
    check_folder()
    lock = file_lock(IN_USE)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        holder = IN_USE.read_text(encoding="utf-8")
        busy = f"another run is at work in this folder ({holder})"
        if not wait:
            raise UserError(f"{busy}; wait for it") from None
        say(f"{busy}: waiting for it to end")
        lock.acquire(poll_interval=0.2)
    try:
        command = " ".join(" ".join(sys.orig_argv[1:]).split())
        # Arguments need not be text.
        IN_USE.write_text(f"process {os.getpid()}: python {command}", encoding="utf-8", errors="backslashreplace")
        repair_locks(say)
        if BEFORE.exists():
            _end_sweep(say, killed=True)
        yield
    finally:
        lock.release()


@contextmanager
def kept(*, wait: bool = False, say: Callable[[str], None] = to_stderr) -> Iterator[Callable[[bytes], None]]:
    """Restore params.yaml, dvc.lock, metrics, plots and artifacts at the end, even after an error or a signal.

    After a `kill -9`, the next run that is `alone` restores them. Edits of params.yaml by a person are kept, and so are
    the results of sweeps.

    Args:
        wait: see `alone`.
        say: see `alone`.

    Yields:
        A function that writes a content into params.yaml, or raises a UserError if a person has edited the file.

    Raises:
        UserError: when a flow or another sweep is active in the folder.
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
    """Restore the state before a sweep. If a person has edited params.yaml, it stays, and the one before is kept.

    If the sweep was killed, nothing else is restored then: the person may have changed it since.
    """
    now, original = (_digest(each.read_bytes()) if each.exists() else "missing" for each in (FILE, BEFORE / FILE))
    ours = (WRITTEN / now).exists()
    edited = WRITTEN.exists() and not ours and now != original
    if ours:
        (WRITTEN / original).touch()  # if this is killed too, the next process starts over
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
    from cocomix.report.tuning import SWEEPS  # imports NumPy, which most callers of `alone` do not need

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
