import os
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread

import pytest
from prefect.client.orchestration import get_client

from flows import gpu, plan
from flows.gpu import gpus, hold
from flows.reproduce import Stopped


@pytest.fixture
def devices(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /dev, and no choice of GPUs in the environment."""
    monkeypatch.setattr(gpu, "DEV", folder)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return folder


@pytest.mark.parametrize(
    ("files", "environment", "found"),
    [
        ([], {}, ""),
        (["nvidiactl", "nvidia0", "nvidia3"], {}, "0,1"),
        (["nvidia0", "nvidia1"], {"CUDA_VISIBLE_DEVICES": "1"}, "1"),
        (["nvidia0", "nvidia1"], {"CUDA_VISIBLE_DEVICES": ""}, ""),
        (["nvidia0", "nvidia1"], {"COCOMIX_DEVICE": "cpu"}, ""),
        (["nvidia0", "nvidia1"], {"COCOMIX_DEVICE": "cuda:1"}, "1"),
        (["nvidia0"], {"COCOMIX_DEVICE": "cuda:1"}, ""),
        (["kfd"], {}, "0"),
        (["kfd"], {"CUDA_VISIBLE_DEVICES": "0,1"}, "0,1"),
        (["nvidia0", "nvidia1"], {"CUDA_VISIBLE_DEVICES": " 1, 0"}, "1,0"),
        (["nvidia0", "nvidia1"], {"CUDA_VISIBLE_DEVICES": "-1"}, ""),
        (["nvidia0", "nvidia1"], {"CUDA_VISIBLE_DEVICES": "1,-1,0"}, "1"),
        (["nvidia0", "nvidia1"], {"CUDA_VISIBLE_DEVICES": "0,2,1"}, "0"),
        (["nvidia0", "nvidia1"], {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ""),
        (["nvidia0", "nvidia1"], {"CUDA_VISIBLE_DEVICES": "GPU-5ebe, MIG-1f2a"}, "GPU-5ebe,MIG-1f2a"),
        (["nvidia0", "nvidia1"], {"CUDA_VISIBLE_DEVICES": "", "COCOMIX_DEVICE": "cuda:0"}, ""),
        (["nvidia0", "nvidia1"], {"CUDA_VISIBLE_DEVICES": "1, 0", "COCOMIX_DEVICE": "cuda:1"}, "0"),
    ],
)
def test_gpus_are_those_of_the_machine_that_stages_may_use(
    devices: Path, monkeypatch: pytest.MonkeyPatch, files: Sequence[str], environment: dict[str, str], found: str
) -> None:
    for each in files:
        (devices / each).touch()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ",".join(gpus()) == found


@pytest.mark.parametrize(
    ("environment", "status", "number"),
    [
        ({}, 0, 8),
        ({"CUDA_VISIBLE_DEVICES": "3"}, 0, 1),
        ({"COCOMIX_DEVICE": "cuda:1"}, 0, 1),
        ({"COCOMIX_DEVICE": "cpu"}, 0, 0),
        ({}, 9, 0),
    ],
)
def test_a_plan_counts_the_gpus_that_stages_may_use(
    devices: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], status: int, number: int
) -> None:
    for each in range(8):
        (devices / f"nvidia{each}").touch()
    program = devices / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nyes 'NVIDIA H100 80GB HBM3' | head -n 8\nexit {status}\n")
    program.chmod(0o755)
    for name, value in {"PATH": f"{devices}:{os.environ['PATH']}", **environment}.items():
        monkeypatch.setenv(name, value)
    assert plan._gpus_here() == ["NVIDIA H100 80GB HBM3"] * number


def test_a_part_of_a_gpu_is_held_by_the_name_that_older_drivers_give_it(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "machine")
    with hold(["MIG-GPU-5ebe/1/0"], Event()), get_client(sync_client=True) as client:
        assert client.read_global_concurrency_limit_by_name("gpu-machine-MIG-GPU-5ebe-1-0").active_slots == 1


def test_a_stage_holds_its_gpus_and_another_waits_for_them_until_it_must_end(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "machine")
    monkeypatch.setattr(gpu, "WAIT_SECONDS", 0.5)
    with get_client(sync_client=True) as client:

        def slots() -> list[tuple[int, int]]:
            limits = [client.read_global_concurrency_limit_by_name(f"gpu-machine-{each}") for each in "01"]
            return [(each.active_slots, each.limit) for each in limits]

        for _ in range(2):
            with hold(["0", "1"], Event()):
                assert slots() == [(1, 1), (1, 1)]
            assert slots() == [(0, 1), (0, 1)]
        with hold(["0"], Event()):
            with hold(["1"], Event()):
                assert slots() == [(1, 1), (1, 1)]
            end, raised = Event(), list[Exception]()

            def want_both() -> None:
                try:
                    with hold(["0", "1"], end):
                        pass
                except Stopped as stopped:
                    raised.append(stopped)

            thread = Thread(target=want_both)
            thread.start()
            thread.join(2)
            assert thread.is_alive()
            assert slots() == [(1, 1), (0, 1)]
            end.set()
            thread.join()
            assert len(raised) == 1
