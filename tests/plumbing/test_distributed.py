"""Real processes that shall share work: wrong variables, others that never come, and ends while they start."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cocomix.plumbing.distributed import VARIABLES, check_variables, stand_alone
from cocomix.plumbing.errors import UserError
from tests.stages.test_stage import ENVIRONMENT, ROOT, SHARED, errors_in, lives, processes, run, start, wait_until

MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29876"}
STARTED = "while it started; the same command starts it again"


@pytest.fixture(autouse=True)
def _project(folder: Path) -> Iterator[None]:
    shutil.copy(ROOT / "params.yaml", folder)
    yield
    assert not [each for each in processes() if lives(each)], "a process is left behind"


@pytest.fixture
def port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"RANK": ""}, "WORLD_SIZE: missing"),
        ({"RANK": "0"}, "WORLD_SIZE: missing"),
        ({"WORLD_SIZE": "1"}, "RANK: missing"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "RANK: ''"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK: 'one'"),
        ({"RANK": "\u0661", "WORLD_SIZE": "2"}, "RANK: '\u0661'"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK: '-1'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK: '2'"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE: '0'"),
        ({"RANK": "0", "WORLD_SIZE": "1e9"}, "WORLD_SIZE: '1e9'"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "29500"}, "MASTER_ADDR: must be"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "", "MASTER_PORT": "29500"}, "MASTER_ADDR: must be"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT: missing"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "65536"}, "MASTER_PORT: '65536'"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "x", **MEETING}, "LOCAL_RANK: 'x'"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "2", **MEETING}, "LOCAL_RANK: '2'"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "3", **MEETING}, "LOCAL_WORLD_SIZE: '3'"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1", **MEETING}, "LOCAL_RANK: '1'"),
    ],
)
def test_a_wrong_variable_of_torchruns_is_named(
    given: dict[str, str], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in VARIABLES:
        monkeypatch.delenv(each, raising=False)
    for name, text in given.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(UserError) as error:
        check_variables()
    assert str(error.value).startswith(wrong)
    assert str(error.value).endswith("torchrun sets it; to run without torchrun, unset RANK and WORLD_SIZE")


@pytest.mark.parametrize(
    "given",
    [
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"RANK": "1", "WORLD_SIZE": "2", **MEETING},
        {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **MEETING},
    ],
)
def test_a_place_among_others_is_kept(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in given.items():
        monkeypatch.setenv(name, text)
    check_variables()
    assert given.items() <= os.environ.items()


def test_what_is_left_of_torchruns_variables_without_a_rank_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8", **MEETING}.items():
        monkeypatch.setenv(name, text)
    check_variables()
    assert not set(VARIABLES) & os.environ.keys()
    stand_alone()


def test_a_wrong_variable_ends_a_stage_in_one_line() -> None:
    done = run(*SHARED, RANK="")
    assert done.returncode == 2
    assert len(errors_in(done.stderr)) == 1
    assert done.stderr.startswith("error: WORLD_SIZE: missing")


@pytest.mark.parametrize("left", [{"RANK": ""}, {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "x"}])
def test_a_stage_that_shares_no_work_does_it_whatever_is_left_in_the_environment(left: dict[str, str]) -> None:
    done = run("alone", **left)
    assert (done.returncode, errors_in(done.stderr)) == (0, [])
    assert Path("artifacts/toy/manifest.json").exists()


@pytest.mark.parametrize(
    ("rank", "number", "said"),
    [
        ("0", signal.SIGTERM, "1 of 2 processes are there; waiting for RANK 1 at 127.0.0.1:{port}"),
        ("1", signal.SIGINT, "RANK 1 of 2 waits for RANK 0, which does not answer at 127.0.0.1:{port}"),
    ],
)
def test_a_process_that_waits_for_others_says_for_which_and_obeys_a_signal(
    rank: str, number: signal.Signals, said: str, port: str
) -> None:
    place = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with start(*SHARED, COCOMIX_LOG_SECONDS="0.1", **place) as process:
        assert process.stderr
        assert process.stderr.readline() == f"{said.format(port=port)}\n"
        process.send_signal(number)
        assert process.wait() == 128 + number
        assert process.stderr.read().splitlines()[-1] == f"stopped by {number.name} {STARTED}"


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run(*SHARED, RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    assert done.returncode == 2
    assert errors_in(done.stderr) == [
        f"error: MASTER_ADDR, MASTER_PORT: 127.0.0.1:{port}: RANK 0 cannot listen there (Address already in use)"
    ]


@pytest.mark.slow
def test_a_wrong_interface_is_one_line() -> None:
    done = run(*SHARED, GLOO_SOCKET_IFNAME="none7")
    assert done.returncode == 2
    (line,) = errors_in(done.stderr)
    assert "cannot join the other processes" in line
    assert "none7" in line


@pytest.mark.slow
def test_two_that_call_themselves_the_same_are_told(port: str) -> None:
    place = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    everyone = [start(*SHARED, RANK=rank, **place) for rank in ("0", "1", "1")]
    wait_until(lambda: any(each.poll() is not None for each in everyone[1:]))
    for each in everyone:
        each.terminate()
    said = "".join(each.communicate()[1] for each in everyone)
    assert f"error: RANK: 1: another process is RANK 1 already at 127.0.0.1:{port}" in said


def ranks(process: "subprocess.Popen[str]", count: int = 2) -> list[psutil.Process]:
    """The processes that a launcher has started, as soon as they are there."""
    wait_until(lambda: len(psutil.Process(process.pid).children()) == count)
    return sorted(psutil.Process(process.pid).children(), key=lambda each: each.pid)


def gone(*several: psutil.Process) -> bool:
    return not any(map(lives, (each.pid for each in several)))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_killed_before_it_joins_ends_the_others(rank: int) -> None:
    with start(*SHARED) as process:
        children = ranks(process)
        children[rank].kill()
        assert process.wait() == 128 + signal.SIGKILL
        assert process.stderr
        assert process.stderr.read().splitlines()[-1].startswith("error: a process was ended by SIGKILL")
    assert gone(*children)


def test_a_launcher_killed_at_its_start_leaves_no_process() -> None:
    with start(*SHARED) as process:
        children = ranks(process)
        process.kill()
    wait_until(lambda: gone(*children))


def test_a_terminals_ctrl_c_while_several_start_is_one_line() -> None:
    with start(*SHARED) as process:
        children = ranks(process)
        for each in children:
            wait_until(lambda each=each: catches_sigterm(each.pid))
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait() == 128 + signal.SIGINT
        assert process.stderr
        assert process.stderr.read() == f"stopped by SIGINT {STARTED}\n"
    assert gone(*children)


@pytest.mark.slow  # the process is given ten seconds
def test_a_process_whose_partner_never_comes_obeys_a_signal() -> None:
    with start(*SHARED, "lockstep") as process:
        wait_until(lambda: all(Path(f"steps-{rank}").exists() for rank in (0, 1)))
        wait_until(lambda: Path("steps-1").stat().st_size > 5)
        first, second = ranks(process)
        second.suspend()
        first.send_signal(signal.SIGTERM)
        wait_until(lambda: gone(first))
        second.kill()
        assert process.wait() == 128 + signal.SIGTERM
        assert process.stderr
        (line,) = errors_in(process.stderr.read())
        assert line.startswith("stopped by SIGTERM before it came to a safe point; what is finished is kept")


def save_slowly(seconds: float, grace: float = 1.5) -> "subprocess.Popen[str]":
    """Two processes, told to stop, of which the first takes so long for each of 20 pieces of its checkpoint."""
    process = start(*SHARED, "save", str(seconds), TOY_GRACE=str(grace))
    wait_until(lambda: Path("steps-1").exists() and Path("steps-1").stat().st_size > 5)
    process.terminate()
    wait_until(Path("saving").exists)
    return process


def checkpoints() -> list[Path]:
    return list(Path("artifacts/.work/toy").glob("*/scratch/step-*.pt"))


def test_a_launcher_waits_for_a_checkpoint_as_long_as_it_grows() -> None:
    with save_slowly(0.2) as process:
        assert process.wait() == 128 + signal.SIGTERM
    assert len(checkpoints()) == 1


@pytest.mark.slow
def test_the_next_run_waits_for_one_that_still_saves() -> None:
    with save_slowly(0.3, grace=300) as process:
        (first, *_) = ranks(process, count=1)  # the other one has ended
        first.suspend()
        with start("alone") as after:
            assert after.stderr
            waiting = f"toy: waiting for process {first.pid}, which was stopped and saves its work\n"
            assert after.stderr.readline() == waiting
            assert checkpoints() == []
            first.resume()
            assert after.wait() == 0


@pytest.mark.slow
def test_a_process_that_hangs_while_it_saves_is_killed_in_the_end() -> None:
    with save_slowly(1000) as process:
        assert process.wait() == 128 + signal.SIGTERM
    assert checkpoints() == []


@pytest.mark.slow
def test_a_second_signal_ends_a_save_at_once() -> None:
    with save_slowly(1.0) as process:
        wait_until(lambda: "stopping" in Path("artifacts/.work/toy/lock").read_text())
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)  # longer than an echo may take
        process.terminate()
        assert process.wait() == 128 + signal.SIGTERM
    assert checkpoints() == []


@pytest.mark.slow
def test_a_save_outlives_the_launcher() -> None:
    with save_slowly(0.1) as process:
        process.kill()
    wait_until(lambda: not any(map(lives, processes())))
    assert len(checkpoints()) == 1


DVC = "import subprocess, sys; print(subprocess.run(['/bin/sh', '-c', sys.argv[1]]).returncode)"
STAGE = f"exec {sys.executable} -m stages.pretrain ntp 0"


def catches_sigterm(process: int) -> bool:
    """Whether a process has come to the first lines of its stage."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    caught = next(line for line in lines if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of a parent's end")
def test_a_stage_ends_with_dvc_while_it_imports() -> None:
    environment = ENVIRONMENT | {"DVC_STAGE": "pretrain@ntp-0", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", DVC, STAGE], env=environment, stderr=subprocess.DEVNULL) as dvc:
        wait_until(lambda: len(psutil.Process(dvc.pid).children()) == 1)
        (stage,) = psutil.Process(dvc.pid).children()
        dvc.kill()
    wait_until(lambda: not lives(stage.pid))
    assert not Path("artifacts").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_stage_imports_is_one_line(number: signal.Signals) -> None:
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stages.pretrain", "ntp", "0"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: catches_sigterm(process.pid))
        process.send_signal(number)
        assert process.wait() == 128 + number
        assert process.stderr
        assert process.stderr.read() == f"stopped by {number.name} {STARTED}\n"
