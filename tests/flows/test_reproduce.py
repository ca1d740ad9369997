import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cocomix.plumbing.artifact import Work
from flows.reproduce import _NO_MEMORY, GRACE_SECONDS, Result, reproduce
from flows.run_cache import remember
from tests.flows.conftest import set_params


def test_a_stage_runs_then_is_up_to_date_then_is_restored(project: Path) -> None:
    lines: list[str] = []
    assert reproduce("number", lines.append) == Result("ran")
    assert "counting:  50% 1/2 [00:01<00:01,  1.00 numbers/s]" in lines
    assert reproduce("number", lines.append) == Result("up to date")
    remember()
    set_params(number=2)
    assert reproduce("number", lines.append) == Result("ran")
    set_params(number=1)
    assert reproduce("number", lines.append) == Result("restored")
    assert Path("number.txt").read_text() == "1"


def test_a_failure_is_told_in_the_words_of_the_stage(project: Path) -> None:
    set_params(number=13)
    assert reproduce("number", lambda _: None) == Result("failed", "params.yaml: sae.seed: 13: must not be 13")


def test_a_stage_that_says_nothing_fails_in_the_words_of_dvc(project: Path) -> None:
    Path("number.py").write_text("raise SystemExit(3)")
    result = reproduce("number", lambda _: None)
    assert result.outcome == "failed"
    assert "number" in result.error
    assert "exited with 3" in result.error


@pytest.mark.parametrize(
    ("ending", "cause"),
    [
        ("os.kill(os.getpid(), 9)", "killed"),
        ("sys.exit(143)", "killed"),
        ("os.kill(os.getpid(), 2)", "other"),
        ("raise MemoryError", "out of memory"),
    ],
)
def test_a_failure_has_a_cause(project: Path, ending: str, cause: str) -> None:
    Path("number.py").write_text(f"import os, sys\n{ending}")
    assert reproduce("number", lambda _: None).cause == cause


@pytest.mark.parametrize(
    "line",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "error: CUDA out of memory. Tried to allocate 2.00 GiB. Set COCOMIX_MICRO_BATCH, to compute fewer",
        "RuntimeError: CUDA error: out of memory",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "RuntimeError: HIP out of memory. Tried to allocate 2.00 GiB.",
        "RuntimeError: MPS backend out of memory (MPS allocated: 17.91 GB)",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory",
        "pyarrow.lib.ArrowMemoryError: malloc of size 1073741824 failed",
        "error: corpus: realloc of size 1073741824 failed",
        "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 8.00 GiB for an array",
        "[rank0]: MemoryError",
        "RuntimeError: std::bad_alloc",
        "OSError: [Errno 12] Cannot allocate memory",
    ],
)
def test_what_libraries_say_when_memory_is_short_is_known(line: str) -> None:
    assert _NO_MEMORY.search(line)


@pytest.mark.parametrize(
    "line",
    [
        "error: a process was ended by SIGKILL; out of memory? A smaller COCOMIX_MICRO_BATCH needs less",
        "error: params.yaml: sae.seed: 13: must not be 13",
        "explain: concept 7: errors of a program that runs out of memory",
        "    except MemoryError:",
    ],
)
def test_other_lines_tell_of_no_lack_of_memory(line: str) -> None:
    assert not _NO_MEMORY.search(line)


def test_a_process_ended_by_the_kernel_for_its_memory_lacked_memory(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([4, 5])
    monkeypatch.setattr("flows.reproduce._kills_for_memory", lambda: next(counts))
    Path("number.py").write_text("import os; os.kill(os.getpid(), 9)")
    assert reproduce("number", lambda _: None).cause == "out of memory"


def test_a_stage_that_another_dvc_holds_is_busy(project: Path) -> None:
    held = {str(project / "number.txt"): {"pid": os.getpid(), "cmd": "another dvc"}}
    Path(".dvc/tmp").mkdir(exist_ok=True)
    Path(".dvc/tmp/rwlock").write_text(json.dumps({"write": held}))
    result = reproduce("number", lambda _: None)
    assert result.cause == "busy"
    assert result.error.endswith(f"is busy, it is being blocked by: (PID {os.getpid()}): another dvc")
    assert "\n" not in result.error


def test_of_what_a_killed_dvc_held_there_is_no_warning(project: Path) -> None:
    with subprocess.Popen(["true"]) as dead:
        pass
    held = {"pid": dead.pid, "cmd": "dvc repro"}
    Path(".dvc/tmp").mkdir(exist_ok=True)
    locks = {"write": {str(project / "number.txt"): held}, "read": {str(project / "number.py"): [held]}}
    Path(".dvc/tmp/rwlock").write_text(json.dumps(locks))
    said = list[str]()
    assert reproduce("number", said.append).outcome == "ran"
    assert not [line for line in said if "killed" in line]
    assert lock_holders() == []


def test_a_stage_that_another_process_works_on_is_busy(project: Path) -> None:
    Path("number.py").write_text(
        "from pathlib import Path\n"
        "from cocomix.plumbing.artifact import Work\n"
        "from stages.stage import main\n"
        "main(lambda _: Work('number', Path('artifacts/number'), {}, {}).__enter__())\n"
    )
    with Work("number", Path("artifacts/number"), {}, {}):
        result = reproduce("number", lambda _: None)
    assert result.cause == "busy"
    assert result.error == f"number: process {os.getpid()} is already at work on this stage; wait for it"


CALLER = """
from flows import reproduce as module
from flows.reproduce import reproduce
module.GRACE_SECONDS = float({grace})
reproduce("wait", print)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_a_signal_to_the_caller_ends_the_stage_and_the_next_run_goes_on(project: Path, name: str) -> None:
    for stage in ("number", "parity", "each@x"):
        reproduce(stage, lambda _: None)
    set_params(number=1, wait=60)
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER.format(grace=GRACE_SECONDS)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stage = wait_for_pid()
    caller.send_signal(signal.Signals[name])
    caller.wait(60)
    assert ends(stage)
    # A killed DVC, while nobody has reaped it, still holds what it had locked.
    assert all(ends(holder, reaped=True) for holder in lock_holders())
    set_params(number=1, wait=0)
    assert reproduce("wait", lambda _: None) == Result("ran")


def test_a_signal_to_the_caller_ends_a_stage_that_stops_for_nothing_though_its_dvc_is_dead(project: Path) -> None:
    Path("number.py").write_text(
        "import os, pathlib, signal, time\n"
        "for each in (signal.SIGINT, signal.SIGTERM):\n"
        "    signal.signal(each, signal.SIG_IGN)\n"
        "pathlib.Path('pid').write_text(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER.format(grace=0.5).replace('"wait"', '"number"')],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    stage = wait_for_pid()
    dvc = psutil.Process(stage).parent()
    assert dvc
    dvc.kill()
    assert ends(dvc.pid)
    caller.send_signal(signal.SIGINT)
    _, said = caller.communicate(timeout=60)
    assert ends(stage)
    assert said.splitlines()[-1] == "KeyboardInterrupt"  # what ended the call is what it raises


SAVING = """
import os, pathlib, signal, time
from cocomix.plumbing import interrupt
from cocomix.plumbing.artifact import Work
from cocomix.plumbing.parent import end_with_parent
end_with_parent(os.getppid(), signal.SIGTERM)
interrupt.install()
with Work("number", pathlib.Path("artifacts/number"), {}, {}):
    pathlib.Path("pid").write_text(str(os.getpid()))
    while not interrupt.received():
        time.sleep(0.01)
    pathlib.Path("saving").touch()
    for _ in range(30):
        time.sleep(0.1)
        interrupt.alive()
    pathlib.Path("saved").touch()
raise SystemExit(130)
"""


@pytest.mark.parametrize("again", [[], [signal.SIGINT], [signal.SIGKILL]], ids=["waits", "twice", "killed"])
def test_a_caller_waits_for_a_stage_that_saves_its_work_and_the_stage_outlives_a_killed_caller(
    project: Path, again: list[signal.Signals]
) -> None:
    Path("number.py").write_text(SAVING)
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER.format(grace=1).replace('"wait"', '"number"')],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stage = wait_for_pid()
    caller.send_signal(signal.SIGINT)
    while not Path("saving").exists():
        time.sleep(0.01)
    for each in again:
        time.sleep(1.2)  # longer than an echo may take
        caller.send_signal(each)
    caller.wait(60)
    assert ends(stage)
    assert Path("saved").exists() == (signal.SIGINT not in again)


def wait_for_pid() -> int:
    """The process of the stage `wait`, when it has begun."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if Path("pid").exists() and (text := Path("pid").read_text()):
            return int(text)
        time.sleep(0.05)
    raise TimeoutError


def lock_holders() -> list[int]:
    """The processes in DVC's lock file."""
    text = Path(".dvc/tmp/rwlock").read_text()
    return [int(each) for each in re.findall(r'"pid": (\d+)', text)]


def ends(process: int, *, reaped: bool = False) -> bool:
    """Whether a process that is no child of this one is gone within some seconds, or at least a zombie."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(process, 0)
            if not reaped and Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False
