"""One DVC stage, as a process that can be watched and stopped."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

GRACE_SECONDS = 8.0
"""What a stage gets to stop at a safe point. Prefect kills a cancelled flow after 30 s."""

Outcome = Literal["ran", "restored", "up to date", "failed"]

# What DVC says, in dvc/repo/reproduce.py and dvc/stage; dvc has no machine-readable account of a run.
_SAYS: dict[Outcome, str] = {
    "ran": r"Running stage '{stage}':",
    "restored": r"Stage '{stage}' is cached - skipping run, checking out outputs",
    "up to date": r"Stage '{stage}' didn't change, skipping",
}


class Result(NamedTuple):
    """How a stage ended."""

    outcome: Outcome
    error: str
    """One line after a failure: the stage's own `error: ...` if it wrote one, else what DVC says."""


def reproduce(stage: str, log: Callable[[str], None]) -> Result:
    """Bring one stage up to date, whatever the state of the stages before it.

    Whatever ends this call early, such as KeyboardInterrupt, also ends all processes of the stage, within seconds.

    Args:
        log: is given each line that DVC and the stage write, when it is written.
    """
    process = subprocess.Popen(
        # A finished stage is lost when DVC cannot take its lock to record it: hence --wait-for-lock.
        [sys.executable, "-u", "-m", "flows.dvc", "--wait-for-lock", "repro", "--single-item", stage],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    outcome: Outcome = "failed"
    said = {each: re.compile(f"^{text.format(stage=re.escape(stage))}") for each, text in _SAYS.items()}
    complaints = {"error: ": "", "ERROR: ": ""}
    try:
        assert process.stdout is not None
        for line in map(str.rstrip, process.stdout):
            if line:
                log(line)
            outcome = next((each for each, pattern in said.items() if pattern.match(line)), outcome)
            complaints |= {prefix: line.removeprefix(prefix) for prefix in complaints if line.startswith(prefix)}
        status = process.wait()
    finally:
        _stop(process, log)
    if status:
        return Result("failed", complaints["error: "] or complaints["ERROR: "] or f"dvc ended with status {status}")
    return Result(outcome, "")


def _environment() -> dict[str, str]:
    # dvc.yaml says `python`, which must be the one with the project's packages.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return os.environ | {"PATH": path, "FLOW_PID": str(os.getpid())}


def _stop(process: "subprocess.Popen[str]", log: Callable[[str], None]) -> None:
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGINT)
    try:
        rest, _ = process.communicate(timeout=GRACE_SECONDS)
        for line in filter(None, rest.splitlines()):
            log(line)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
