"""Real stage processes, told to stop, killed, and run again."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cocomix.params import load
from cocomix.plumbing.artifact import Artifact
from flows.reproduce import _NO_MEMORY
from stages.early import END_CLAIM
from stages.stage import _machine_trouble, _processes, to_json
from tests.faults.mounting import in_namespace

ROOT = Path(__file__).parents[2]
OUT = Path("artifacts/toy")
ALONE, SHARED = ("alone",), ("shared",)
CLEAN = {name: text for name, text in os.environ.items() if not name.startswith("COCOMIX_")}
ENVIRONMENT = CLEAN | {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests/stages'}",
    "COCOMIX_PROCESSES": "2",
    "OMP_NUM_THREADS": "1",
}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "toy_stage", *arguments]


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(*arguments), env=ENVIRONMENT | environment, stderr=subprocess.PIPE, text=True)


def start(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(*arguments),
        env=ENVIRONMENT | environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def errors_in(stderr: str) -> list[str]:
    """Lines that are no progress."""
    return [line for line in stderr.splitlines() if not line.startswith("toy:")]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def finished_files() -> int:
    return len(list(Path("artifacts/.work/toy").glob("*/files/*")))


def processes() -> list[int]:
    path = Path("pids")
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def lives(process: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], stdout=subprocess.PIPE, text=True).stdout
    return bool(state) and not state.startswith("Z")


def content() -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in sorted(OUT.iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run publishes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        shutil.copy(ROOT / "params.yaml", "params.yaml")
        assert run(*ALONE).returncode == 0
        return content()


@pytest.fixture(autouse=True)
def _project(folder: Path) -> Iterator[None]:
    shutil.copy(ROOT / "params.yaml", folder)
    yield
    assert not [each for each in processes() if lives(each)], "a process is left behind"


def test_a_stage_publishes_and_a_second_run_computes_nothing() -> None:
    assert run(*ALONE).returncode == 0
    assert Artifact(OUT).verified() == OUT
    again = run(*ALONE)
    assert again.returncode == 0
    assert again.stderr == "toy: already computed, publishing it\n"


def test_what_the_first_process_finds_counts_for_all(whole: dict[str, bytes]) -> None:
    assert run(*ALONE).returncode == 0
    again = run(*SHARED, "blind")
    assert (again.returncode, errors_in(again.stderr)) == (0, [])
    assert "already computed" in again.stderr
    assert content() == whole


def test_lines_that_are_lost_from_the_journal_lose_no_file(whole: dict[str, bytes]) -> None:
    done = run(*SHARED, "lose")
    assert (done.returncode, errors_in(done.stderr)) == (0, [])
    assert content() == whole


def usage() -> dict[str, float]:
    return json.loads(Path("metrics/toy.json").read_text())["usage"]


def test_the_metrics_say_what_the_stage_took() -> None:
    assert run(*ALONE).returncode == 0
    check_usage(1)


def check_usage(count: int) -> None:
    """What the metrics say of a run of so many processes."""
    took = usage()
    assert took["seconds"] >= 0.02 * 12 / count
    assert took["bytes"] == 12 * 20_000
    assert took["peak_memory"] > 2**20
    assert took["processes"] == count
    assert took["startup_seconds"] > 0.01


def test_the_seconds_of_a_stopped_process_count_too() -> None:
    with start(*ALONE) as process:
        wait_until(lambda: finished_files() >= 6)
        process.terminate()
    (first,) = Path("artifacts/.work/toy").glob("*/startup_seconds")
    started = float(first.read_text())
    assert run(*ALONE).returncode == 0
    assert usage()["seconds"] >= 0.02 * 12
    assert usage()["startup_seconds"] > started


def test_bad_input_is_one_line_and_status_2() -> None:
    done = run(*ALONE, "0", "user-error")
    assert done.returncode == 2
    assert errors_in(done.stderr) == ["error: toy.k: 7: must be even"]


def test_a_bad_parameter_is_one_line_and_status_2() -> None:
    Path("params.yaml").write_text("sae: {}\n")
    done = run(*SHARED)
    assert done.returncode == 2
    assert errors_in(done.stderr) == ["error: params.yaml: corpus: missing; it must be given"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("twice", [False, True], ids=["once", "and its echo"])
def test_a_signal_stops_it_at_a_safe_point_and_it_goes_on_from_there(
    number: signal.Signals, twice: bool, whole: dict[str, bytes]
) -> None:
    with start(*ALONE) as process:
        wait_until(lambda: finished_files() >= 2)
        process.send_signal(number)
        if twice:
            time.sleep(0.003)
            process.send_signal(number)
        assert process.wait() == 128 + number
        assert process.stderr
        assert errors_in(process.stderr.read()) == [
            f"stopped by {number.name}; what is finished is kept in artifacts/.work, "
            "and the same command goes on from there"
        ]
    kept = finished()
    assert run(*ALONE).returncode == 0
    assert content() == whole
    assert kept.items() <= finished().items()


def finished() -> dict[str, int]:
    """The inodes of the finished files, by name: a file that is written again has another one."""
    return {each.name: each.stat().st_ino for each in Path("artifacts/.work/toy").glob("*/files/*")}


def kill_until_done(arguments: tuple[str, ...], chance: random.Random, longest: float) -> int:
    """Kill again and again, each time a little later, until one run gets through."""
    kills = 0
    while True:
        with start(*arguments) as process:
            try:
                process.wait(timeout=chance.uniform(0.2, longest + 0.2 * kills))
            except subprocess.TimeoutExpired:
                process.send_signal(chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
                kills += 1
            status = process.wait()
        wait_until(lambda: not any(map(lives, processes())))
        if status == 0:
            return kills


@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 40))])
def test_killed_at_random_times_it_ends_with_the_same_bytes(seed: int, whole: dict[str, bytes]) -> None:
    kill_until_done(ALONE, random.Random(seed), longest=0.6)
    assert content() == whole


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_several_processes_killed_at_random_times_end_with_the_same_bytes(seed: int, whole: dict[str, bytes]) -> None:
    kill_until_done(SHARED, random.Random(seed), longest=4)
    assert content() == whole


def test_several_processes_make_the_same_bytes_as_one(whole: dict[str, bytes]) -> None:
    done = run(*SHARED)
    assert (done.returncode, errors_in(done.stderr)) == (0, [])
    assert content() == whole
    check_usage(2)


def test_an_error_in_any_process_is_one_line_and_ends_all() -> None:
    done = run(*SHARED, "1", "user-error")
    assert done.returncode == 2
    assert errors_in(done.stderr) == ["error: toy.k: 7: must be even"]


def test_a_killed_process_ends_all_and_is_named() -> None:
    done = run(*SHARED, "1", "killed")
    assert done.returncode == 128 + signal.SIGKILL
    assert "error: a process was ended by SIGKILL" in errors_in(done.stderr)[-1]
    assert "Traceback" not in done.stderr


def test_a_killed_worker_is_one_line_and_the_status_of_a_killed_process() -> None:
    done = run(*ALONE, "worker-killed", COCOMIX_WORKERS="2")
    assert done.returncode == 128 + signal.SIGKILL
    assert [line[:34] for line in errors_in(done.stderr)] == ["error: a worker process has died ("]


def test_a_signal_that_ends_the_workers_too_stops_the_stage() -> None:
    with start(*ALONE, "group-stopped", COCOMIX_WORKERS="2") as process:
        assert process.wait() == 128 + signal.SIGTERM
        assert process.stderr
        assert [line[:19] for line in errors_in(process.stderr.read())] == ["stopped by SIGTERM;"]


@pytest.mark.parametrize("whom", ["parent", pytest.param("group", marks=pytest.mark.slow)])
def test_a_signal_to_the_parent_or_to_all_stops_all_and_keeps_their_work(whom: str, whole: dict[str, bytes]) -> None:
    with start(*SHARED) as process:
        wait_until(lambda: finished_files() >= 2)
        (os.kill if whom == "parent" else os.killpg)(process.pid, signal.SIGINT)
        assert process.wait() == 128 + signal.SIGINT
        assert process.stderr
        assert [line[:18] for line in errors_in(process.stderr.read())] == ["stopped by SIGINT;"]
    assert run(*ALONE).returncode == 0
    assert content() == whole


def test_processes_in_lockstep_stop_at_the_same_step_when_one_is_told_to() -> None:
    with start(*SHARED, "lockstep") as process:
        wait_until(lambda: all(Path(f"steps-{rank}").exists() for rank in (0, 1)))
        wait_until(lambda: Path("steps-1").stat().st_size > 5)
        os.kill(processes()[0], signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
    assert Path("steps-0").stat().st_size == Path("steps-1").stat().st_size


def test_a_killed_parent_leaves_no_process() -> None:
    with start(*SHARED) as process:
        wait_until(lambda: finished_files() >= 2)
        process.kill()
    wait_until(lambda: not any(map(lives, processes())))


def test_a_killed_dvc_leaves_no_process(whole: dict[str, bytes]) -> None:
    dvc = "import subprocess, sys; subprocess.run(['/bin/sh', '-c', sys.argv[1]])"
    environment = ENVIRONMENT | {"DVC_STAGE": "toy"}
    with subprocess.Popen([sys.executable, "-c", dvc, " ".join(command(*ALONE))], env=environment) as process:
        wait_until(lambda: finished_files() >= 2)
        process.kill()
    wait_until(lambda: not any(map(lives, processes())))
    assert finished_files() < len(whole)


@pytest.mark.parametrize("arguments", [ALONE, SHARED])
def test_a_second_writer_is_refused_in_one_line(arguments: tuple[str, ...], whole: dict[str, bytes]) -> None:
    with start(*ALONE) as first:
        wait_until(lambda: finished_files() >= 1)
        first.send_signal(signal.SIGSTOP)
        second = run(*arguments)
        first.send_signal(signal.SIGCONT)
        assert second.returncode == 2
        assert errors_in(second.stderr) == [
            f"error: toy: process {first.pid} is already at work on this stage; wait for it"
        ]
        assert first.wait() == 0
    assert content() == whole


def test_a_full_disk_is_one_line_and_earlier_work_is_kept() -> None:
    Path("artifacts").mkdir()
    stage = " ".join(command(*ALONE))
    done = in_namespace(
        f"""
        mount -t tmpfs -o size=160k none artifacts
        {stage} || echo status $?
        ls artifacts/.work/toy/*/files
        mount -o remount,size=1m artifacts
        {stage}
        ls artifacts/toy
    """,
        Path(),
        ENVIRONMENT,
    )
    assert done.returncode == 0
    status, *names = done.stdout.split("\n")
    assert status == "status 2"
    assert names[0] == "0.bin"
    assert "manifest.json" in names
    assert [line[:36] for line in errors_in(done.stderr)] == ["error: no space left for artifacts ("]


def test_a_folder_that_cannot_be_written_is_one_line() -> None:
    Path("artifacts").mkdir()
    done = in_namespace(f"mount -t tmpfs -o ro none artifacts\n{' '.join(command(*ALONE))}", Path(), ENVIRONMENT)
    assert done.returncode == 2
    assert len(errors_in(done.stderr)) == 1
    assert "Read-only file system" in done.stderr
    assert "must be writable" in done.stderr


@pytest.mark.parametrize("claim", [{}, {END_CLAIM: "claimed"}], ids=["alone", "one of several"])
def test_a_second_signal_does_not_end_a_stage_before_it_has_said_why(claim: dict[str, str]) -> None:
    program = (
        "import os, signal; from stages import early; early.end_by_signals(); write = os.write;"
        "os.write = lambda *line: (signal.raise_signal(signal.SIGTERM), write(*line));"
        "signal.raise_signal(signal.SIGINT)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT | claim, stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr == "stopped by SIGINT while it started; the same command starts it again\n"


def test_json_for_people_is_indented_and_ends_with_a_newline() -> None:
    assert to_json({"a": 1}) == b'{\n  "a": 1\n}\n'


@pytest.mark.parametrize(("cores", "processes"), [(2, 2), (64, 16)])
def test_there_are_no_more_processes_than_windows_of_a_training_step(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int
) -> None:
    monkeypatch.delenv("COCOMIX_PROCESSES", raising=False)
    monkeypatch.setattr("stages.stage._devices", lambda: cores)
    params = load(ROOT / "params.yaml")
    assert params.pretrain.training.batch_size == 16
    assert _processes(params) == processes


def test_there_are_no_more_processes_than_validation_windows(
    tokens_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COCOMIX_PROCESSES", raising=False)
    monkeypatch.setattr("stages.stage._devices", lambda: 64)
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes().replace(b"batch_size: 16 ", b"batch_size: 48 "))
    params = load(Path("params.yaml"))
    assert params.base.training.batch_size == params.pretrain.training.batch_size == 48
    assert _processes(params) == Artifact(tokens_folder).rows("validation.npy") == 24


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 64.0 GiB for an array"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 68719476736 bytes."),
    ],
)
def test_a_machine_without_room_is_one_line_by_which_a_flow_knows_it(error: Exception) -> None:
    said = str(_machine_trouble(error))
    assert said == f"cannot allocate memory ({error}); set COCOMIX_MICRO_BATCH, to compute fewer windows at a time"
    assert _NO_MEMORY.search(f"error: {said}")


def test_a_gpu_without_room_is_one_line_with_the_remedy() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a capacity of 79 GiB.")
    assert _machine_trouble(error) == (
        "CUDA out of memory. Tried to allocate 2.00 GiB. Set COCOMIX_MICRO_BATCH, to compute fewer windows at a time"
    )
