"""Part `interruption`: SIGTERM to a training stage at work, and going on. It needs what the part `pipeline` made."""

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.gpu.parts import Measurement
from benchmarks.gpu.pipeline import PRESET, change, made
from benchmarks.gpu.setting import ROOT, Setting, values_of
from cocomix.plumbing.errors import UserError

STAGE = "pretrain cocomix 0"


def measurements(setting: Setting) -> dict[str, Measurement]:
    return {"sigterm": partial(sigterm, made(setting.folder / "project"), setting.sizes.interrupted_steps)}


def sigterm(project: Path, steps: int) -> dict[str, object]:
    """Stop a run that would take `steps` steps, and run it again until it has gone on.

    Returns the exit status (143: 128 + SIGTERM), the seconds until the end, the step of the saved state, and whether
    the second run began there.
    """
    training = {"steps": steps, "checkpoint_every": steps, "eval_every": steps}
    change(project, values_of("smoke"), PRESET | {"pretrain": PRESET["pretrain"] | {"training": training}})
    first = _start(project)
    _until(first, r"cocomix-0: +[1-9]")
    started = time.monotonic()
    first.send_signal(signal.SIGTERM)
    status = first.wait()
    seconds = time.monotonic() - started
    saved = [int(path.name.split("-")[1]) for path in project.glob("artifacts/.work/pretrain*/*/scratch/step-*.pt")]
    second = _start(project)
    went_on = _until(second, r"going on from step (\d+)")
    second.send_signal(signal.SIGTERM)
    second.wait()
    return {"status": status, "seconds": seconds, "saved": saved, "went_on_from": int(went_on)}


def _start(project: Path) -> "subprocess.Popen[str]":
    name, *item = STAGE.split()
    command = [sys.executable, "-m", f"stages.{name}", *item]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COCOMIX_LOG_SECONDS": "0.5"}
    return subprocess.Popen(command, cwd=project, env=environment, stderr=subprocess.PIPE, text=True)


def _until(process: "subprocess.Popen[str]", pattern: str) -> str:
    """Read what a process prints until a line matches. Returns the match's last group, or all of it.

    Raises:
        UserError: when the process ends before.
    """
    assert process.stderr is not None
    last = ""
    for last in process.stderr:
        if found := re.search(pattern, last):
            return found[found.lastindex or 0]
    raise UserError(f"{STAGE}: status {process.wait()}: {last.strip()}")
