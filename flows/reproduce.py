"""Run one DVC stage as a process that can be watched and stopped."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from threading import Event
from typing import Literal, NamedTuple

from cocomix.plumbing.lock import ROOT, signs_of_life

GRACE_SECONDS = 8.0
"""Time for a stage to stop at a safe point, from its last sign of life (`cocomix.plumbing.lock`).

Prefect kills a cancelled flow after 30 s. A stage that is still saving then finishes by itself, and the next one waits
for it.
"""

Outcome = Literal["ran", "restored", "up to date", "failed"]

Cause = Literal["busy", "killed", "out of memory", "other"]
"""Cause of a failure. busy: another DVC or stage holds what is needed; it may be a killed one that is not yet reaped.
killed: a signal ended the stage or DVC, but neither for lack of memory nor because the caller was stopped."""

# DVC's messages, from dvc/repo/reproduce.py, dvc/stage and dvc/rwlock.py; it has no machine-readable output of a run.
_SAYS: dict[Outcome, str] = {
    "ran": r"Running stage '{stage}':",
    "restored": r"Stage '{stage}' is cached - skipping run, checking out outputs",
    "up to date": r"Stage '{stage}' didn't change, skipping",
}
_BUSY = re.compile("is busy, it is being blocked by|is already at work on this stage")
_BLOCKER = re.compile(r"  (\(PID \d+\): .*)")
_STATUS = re.compile(r"failed to run: .*, exited with (-?\d+)$")
# Messages of torch, CUDA's libraries, Arrow, NumPy, C and Python; torch prefixes them with the rank: "[rank1]: ".
_NO_MEMORY = re.compile(
    r"OutOfMemoryError: |(CUDA|HIP|MPS backend)( error:)? out of memory|_STATUS_ALLOC_FAILED\b|std::bad_alloc"
    r"|[Cc]an(no|')t allocate memory|alloc of size \d+ failed|^(\[rank\d+\]: )?([\w.]+\.)?\w*MemoryError\b"
)
_KILLERS = {signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGBUS}

_LOOK_SECONDS = 0.2
"""Time between two looks at whether a stage must stop."""
_at_work = set[object]()
"""One for each stage that runs or is being stopped."""


class Stopped(Exception):  # noqa: N818  (no error)
    """A stage was stopped on request."""


class Result(NamedTuple):
    """Result of running a stage."""

    outcome: Outcome
    error: str = ""
    """One line after a failure: the stage's own `error: ...` if it wrote one, else DVC's message."""
    cause: Cause = "other"


def reproduce(
    stage: str,
    log: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
    end: Event | None = None,
    folder: Path = Path(),
) -> Result:
    """Bring one stage up to date, whatever the state of the stages before it.

    An exception that ends this call early, such as KeyboardInterrupt, also ends all processes of the stage within
    seconds. Several threads may each run a stage: DVC releases its lock of the project while a command runs, and
    refuses a stage whose inputs or outputs another DVC is writing.

    Args:
        log: called with each line that DVC and the stage write, as soon as it is written.
        environment: variables that differ from this process's.
        end: when it is set, the stage must stop; signals reach only the main thread.
        folder: the project's, or a copy of it.

    Raises:
        Stopped: after `end` is set.
    """
    work = object()
    _at_work.add(work)
    try:
        return _reproduce(stage, log, environment or {}, end or Event(), folder)
    finally:
        _at_work.remove(work)


def wait_for_stages() -> None:
    """Wait until this process runs no stage."""
    while _at_work:
        time.sleep(_LOOK_SECONDS)


def _reproduce(
    stage: str, log: Callable[[str], None], environment: Mapping[str, str], end: Event, folder: Path
) -> Result:
    if end.is_set():
        raise Stopped
    kills = _kills_for_memory()
    process = subprocess.Popen(
        # --wait-for-lock, because a finished stage is lost if DVC cannot take its lock to record it.
        [sys.executable, "-u", "-m", "flows.dvc", "--wait-for-lock", "repro", "--single-item", stage],
        cwd=folder,
        env=_environment() | dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    outcome: Outcome = "failed"
    cause: Cause = "other"
    said = {each: re.compile(f"^{text.format(stage=re.escape(stage))}") for each, text in _SAYS.items()}
    complaints = {"error: ": "", "ERROR: ": ""}
    try:
        for line in _lines(process, end):
            log(line)
            outcome = next((each for each, pattern in said.items() if pattern.match(line)), outcome)
            complaints |= {prefix: line.removeprefix(prefix) for prefix in complaints if line.startswith(prefix)}
            if blocker := _BLOCKER.fullmatch(line):
                complaints["ERROR: "] += f" {blocker[1]}"
            if _NO_MEMORY.search(line):
                cause, complaints["error: "] = "out of memory", line
        status = process.wait()
    except BaseException:
        _stop(process, log, folder / ROOT)
        raise
    if not status:
        return Result(outcome)
    error = complaints["ERROR: "]
    if cause == "other" and any(_BUSY.search(each) for each in complaints.values()):
        cause = "busy"
    if cause == "other" and (killer := _killer(status, error)):
        cause = "out of memory" if killer == signal.SIGKILL and _kills_for_memory() > kills else "killed"
    return Result("failed", complaints["error: "] or error or f"dvc ended with status {status}", cause)


def _lines(process: "subprocess.Popen[bytes]", end: Event) -> Iterator[str]:
    """The lines that a process writes, without blank ones, until all that can write have ended.

    Raises:
        Stopped: when `end` is set.
    """
    assert process.stdout is not None
    begun = b""
    with DefaultSelector() as selector:
        selector.register(process.stdout, EVENT_READ)
        while not end.is_set():
            if not selector.select(_LOOK_SECONDS):
                continue
            written = os.read(process.stdout.fileno(), 1 << 16)
            *whole, begun = re.split(rb"[\r\n]", begun + (written or b"\n"))
            yield from filter(None, (each.decode(errors="replace").rstrip() for each in whole))
            if not written:
                return
    raise Stopped


def _killer(status: int, error: str) -> int | None:
    """The signal that ended DVC, or else the stage, if one did."""
    if status > 0 and (said := _STATUS.search(error)):
        status = int(said[1])
    number = -status if status < 0 else status - 128
    return number if number in _KILLERS else None


def _kills_for_memory() -> int:
    """Number of processes that Linux has killed for lack of memory since it booted."""
    counters = Path("/proc/vmstat")
    found = re.search(r"^oom_kill (\d+)$", counters.read_text(), re.MULTILINE) if counters.exists() else None
    return int(found[1]) if found else 0


def _environment() -> dict[str, str]:
    # dvc.yaml runs `python`, which must be the one with the project's packages.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return os.environ | {"PATH": path, "FLOW_PID": str(os.getpid())}


def _stop(process: "subprocess.Popen[bytes]", log: Callable[[str], None], root: Path) -> None:
    """Stop DVC and its stage, which may run although DVC is dead; a stage that is saving its work gets the time.

    Args:
        root: of the lock files of the stages.
    """
    _signal_group(process, signal.SIGINT)
    start, signs = time.monotonic(), set[tuple[int, int]]()
    deadline, has_said = start + GRACE_SECONDS, False
    try:
        while time.monotonic() < deadline:
            with suppress(subprocess.TimeoutExpired):
                rest, _ = process.communicate(timeout=0.2)  # until all of them have ended
                for line in filter(None, rest.decode(errors="replace").splitlines()):
                    log(line)
                break
            if (new := signs_of_life(partial(_is_in_group, process.pid), root)) != signs:
                signs, deadline = new, time.monotonic() + GRACE_SECONDS
            if not has_said and time.monotonic() > start + GRACE_SECONDS:
                log("the stage saves its work; waiting for it")
                has_said = True
    finally:
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _is_in_group(leader: int, process: int) -> bool:
    try:
        return os.getpgid(process) == leader
    except ProcessLookupError:
        return False


def _signal_group(leader: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, number)
