from pathlib import Path

import pytest

from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import runtime


def test_every_knob_has_a_default(folder: Path) -> None:
    assert runtime().device == "auto"


def test_the_environment_wins_over_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "runtime.yaml").write_text("processes: 3\nthreads: 2\n")
    monkeypatch.setenv("COCOMIX_PROCESSES", "4")
    assert (runtime().processes, runtime().threads) == (4, 2)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PROCESSES", "0", "'0': input should be greater than or equal to 1 or 'auto'"),
        ("PROCESSES", "-1", "'-1': input should be greater than or equal to 1 or 'auto'"),
        ("PROCESSES", "", "'': input should be a valid integer"),
        ("THREADS", "x", "'x': input should be a valid integer"),
        ("WORKERS", "1.5", "'1.5': input should be a valid integer"),
        ("DEVICE", "tpu", "'tpu': allowed: auto, cpu, mps, cuda, or cuda:N"),
        ("PRECISION", "fp16", "'fp16': input should be 'auto', 'fp32' or 'bf16'"),
        ("COMPILE", "maybe", "'maybe': input should be a valid boolean"),
        ("LOG_SECONDS", "0", "'0': input should be greater than 0"),
        ("PROCESES", "2", "unknown key; did you mean 'processes'?"),
    ],
)
def test_a_wrong_variable_is_one_line_that_names_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(f"COCOMIX_{name}", value)
    with pytest.raises(UserError) as error:
        runtime()
    assert str(error.value).startswith(f"COCOMIX_{name}: {message}")
    assert "\n" not in str(error.value)


def test_a_wrong_value_in_the_file_names_the_file_and_the_key(folder: Path) -> None:
    (folder / "runtime.yaml").write_text("threads: many\n")
    with pytest.raises(UserError, match=r"^runtime\.yaml: threads: 'many': "):
        runtime()


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("6400000 100000", 8)],
)
def test_cores_are_at_most_the_quota_of_the_container(
    folder: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("cocomix.plumbing.runtime.CPU_QUOTA", folder / "cpu.max")
    assert runtime().cores == 8
    (folder / "cpu.max").write_text(f"{quota}\n")
    assert runtime().cores == cores
