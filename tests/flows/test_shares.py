import os

import pytest

from cocomix.plumbing.runtime import Runtime
from flows import shares as module
from flows.shares import Share, shares


@pytest.mark.parametrize(
    ("trainings", "cores", "environment", "given"),
    [
        (1, 8, {}, {}),
        (2, 8, {}, {"COCOMIX_PROCESSES": "1", "COCOMIX_THREADS": "4"}),
        (3, 8, {}, {"COCOMIX_PROCESSES": "1", "COCOMIX_THREADS": "2"}),
        (4, 2, {}, {"COCOMIX_PROCESSES": "1", "COCOMIX_THREADS": "1"}),
        (2, 8, {"COCOMIX_PROCESSES": "2"}, {"COCOMIX_THREADS": "2"}),
        (2, 8, {"COCOMIX_THREADS": "3"}, {"COCOMIX_PROCESSES": "1"}),
        (2, 8, {"OMP_NUM_THREADS": "3"}, {"COCOMIX_PROCESSES": "1"}),
    ],
)
def test_each_training_gets_its_part_of_the_cores_and_what_a_user_has_set_stays(
    monkeypatch: pytest.MonkeyPatch, trainings: int, cores: int, environment: dict[str, str], given: dict[str, str]
) -> None:
    _set(monkeypatch, trainings, cores, environment, ())
    assert shares() == [Share(given, ())] * trainings


@pytest.mark.parametrize(
    ("trainings", "gpus", "parts"),
    [
        (1, "0,1", [{}]),
        (2, "0", [{}]),
        (4, "0,1", [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]),
        (2, "0,1,2", [{"CUDA_VISIBLE_DEVICES": "0,2"}, {"CUDA_VISIBLE_DEVICES": "1"}]),
    ],
)
def test_each_training_gets_its_own_gpus_and_no_gpu_has_two(
    monkeypatch: pytest.MonkeyPatch, trainings: int, gpus: str, parts: list[dict[str, str]]
) -> None:
    _set(monkeypatch, trainings, 8, {"COCOMIX_THREADS": "1"}, tuple(gpus.split(",")))
    assert [each.environment for each in shares()] == parts
    assert sorted(name for each in shares() for name in each.gpus) == gpus.split(",")


def _set(
    monkeypatch: pytest.MonkeyPatch, trainings: int, cores: int, environment: dict[str, str], gpus: tuple[str, ...]
) -> None:
    for name in {*os.environ, "OMP_NUM_THREADS"}:
        if name.startswith("COCOMIX_") or name == "OMP_NUM_THREADS":
            monkeypatch.delenv(name, raising=False)
    for name, value in ({"COCOMIX_TRAININGS": str(trainings)} | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Runtime, "cores", cores)
    monkeypatch.setattr(module, "gpus", lambda: gpus)
