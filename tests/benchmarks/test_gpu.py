import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import benchmarks.gpu.training
from benchmarks.gpu import kernels
from benchmarks.gpu.parts import Found, Part, rounded, run_parts
from benchmarks.gpu.setting import TOY, Setting, params_of, settings
from benchmarks.gpu.training import largest_micro_batch
from cocomix.plumbing.runtime import runtime

Works = dict[str, Callable[[], object]]


def found_by(monkeypatch: pytest.MonkeyPatch, seconds: float, **parts: Works) -> dict[str, Found]:
    """What parts with these measurements find, in equal shares of the time."""
    for name, works in parts.items():
        module = SimpleNamespace(measurements=lambda _setting, works=works: works)
        monkeypatch.setitem(sys.modules, f"benchmarks.gpu.{name}", module)
    report: dict[str, Found] = {}
    setting = Setting(TOY, Path())
    run_parts([Part(name, 1) for name in parts], lambda: setting, seconds, report.update)
    return report


def fail() -> None:
    raise ValueError("of\ntwo lines")


def test_what_fails_or_ends_its_process_is_recorded_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    works: Works = {
        "first": lambda: 1.23456,
        "fails": fail,
        "ends": lambda: os._exit(3),
        "last": lambda: {"a": [1, None]},
    }
    report = found_by(monkeypatch, 60, one=works, missing={}, two={"only": lambda: "text"})
    assert report["one"]["results"] == {"first": 1.235, "last": {"a": [1, None]}}
    assert report["one"]["errors"]["fails"].startswith("ValueError: of two lines (")
    assert report["one"]["errors"]["ends"] == "the process ended with 3"
    assert report["one"]["left_out"] == []
    assert report["two"]["results"] == {"only": "text"}


def test_a_part_that_cannot_be_imported_or_begun_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.gpu.broken", SimpleNamespace(measurements=lambda _setting: fail()))
    report: dict[str, Found] = {}
    run_parts([Part("broken", 1), Part("nowhere", 1)], lambda: Setting(TOY, Path()), 60, report.update)
    assert report["broken"]["errors"]["begin"].startswith("ValueError")
    assert report["nowhere"]["errors"]["import"].startswith("ModuleNotFoundError")


def test_a_part_ends_with_its_time_and_leaves_the_rest_to_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    child = [sys.executable, "-c", f"import time; time.sleep(4); open({str(tmp_path / 'there')!r}, 'w')"]
    slow: Works = {"quick": lambda: 1, "slow": lambda: subprocess.run(child), "never": lambda: 2}
    report = found_by(monkeypatch, 4, slow=slow, next={"waits": lambda: time.sleep(0.5)})
    assert report["slow"]["results"] == {"quick": 1}
    assert report["slow"]["left_out"] == ["slow", "never"]
    assert report["next"]["results"] == {"waits": None}
    time.sleep(2.5)
    assert not (tmp_path / "there").exists()  # what it had started ended with it


def test_numbers_are_rounded_to_four_digits_and_whole_ones_are_not() -> None:
    assert rounded({"a": (0.123456, 123456), 1: [True, None, 9.87654e-9]}) == {
        "a": [0.1235, 123456],
        "1": [True, None, 9.877e-9],
    }


def test_settings_hold_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_MICRO_BATCH", "3")
    with settings(micro_batch=5, compile=True):
        assert (runtime().micro_batch, runtime().compile) == (5, True)
    assert (runtime().micro_batch, runtime().compile) == (3, False)


def test_a_kernel_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels.differences(kernels.CASES["sae.sparse.dots"], TOY)
    assert right["ok"]
    dots = kernels.dots
    monkeypatch.setattr(kernels, "dots", lambda x, weight, indices: dots(x, weight.detach(), indices) * 1.01)
    wrong = kernels.differences(kernels.CASES["sae.sparse.dots"], TOY)
    assert not wrong["ok"]


def test_the_presets_are_those_of_a_switch() -> None:
    assert params_of(TOY.student).pretrain.training.steps == 60
    assert params_of("paper-69m").pretrain.model.d_model == 512


def run(*parts: str, out: Path) -> dict[str, Any]:
    environment = os.environ | {"COCOMIX_DEVICE": "cpu", "COCOMIX_PROCESSES": "1"}
    environment["TORCHDYNAMO_DISABLE"] = "1"  # torch.compile compiles nothing: a CPU takes it minutes
    command = [sys.executable, "-m", "benchmarks.gpu", *parts, "--json", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    report = json.loads(done.stdout.splitlines()[-1])
    assert json.loads(out.read_bytes()) == report
    for part, found in report["parts"].items():
        assert found["results"], part
        assert (found["errors"], found["left_out"]) == ({}, []), part
    return report["parts"]


def test_without_a_gpu_the_parts_run_at_toy_size(tmp_path: Path) -> None:
    names = (
        "machine",
        "kernels",
        "training",
        "compiled",
        "published",
        "attention",
        "labels",
        "evaluation",
        "checkpoint",
    )
    parts = run(*names, out=tmp_path / "out.json")
    assert tuple(parts) == names
    assert all(each["ok"] for each in parts["kernels"]["results"].values())
    assert parts["training"]["results"]["cocomix"]["micro_batch"] == TOY.batch
    assert parts["attention"]["results"]["ntp"].keys() == {"block 0", "block 1", "block 2"}
    assert parts["labels"]["results"]["against as published"]["same"] == 1
    assert parts["checkpoint"]["results"]["save and resume"]["same"]


@pytest.mark.slow
def test_so_do_those_that_take_minutes(tmp_path: Path) -> None:
    parts = run("pipeline", "autoencoder", "interruption", out=tmp_path / "out.json")
    assert len(parts["pipeline"]["results"]) == 17
    stopped = parts["interruption"]["results"]["sigterm"]
    assert stopped["status"] == 143
    assert stopped["went_on_from"] in stopped["saved"]


def test_the_micro_batch_is_halved_until_it_fits_and_then_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried: list[str] = []

    def training(*_args: Any) -> Any:
        tried.append(os.environ["COCOMIX_MICRO_BATCH"])
        if int(tried[-1]) > 1:
            raise torch.OutOfMemoryError
        return SimpleNamespace(run=lambda _method: ["row"])

    monkeypatch.setattr(benchmarks.gpu.training, "training", training)
    for _ in range(2):
        micro_batch, _, rows = largest_micro_batch(Setting(TOY, tmp_path), params_of(TOY.student), "ntp")
        assert (micro_batch, rows) == (1, ["row"])
    assert tried == ["4", "2", "1", "1"]


def test_importing_the_parts_does_not_begin_cuda_which_no_forked_process_could_use_then() -> None:
    program = (
        "import torch\n"
        "def fail(*_): raise AssertionError('CUDA was asked for')\n"
        "torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = fail\n"
        "import importlib, benchmarks\n"
        "from benchmarks.gpu.__main__ import PARTS\n"
        "benchmarks.set_up()\n"
        "for part in PARTS: importlib.import_module(f'benchmarks.gpu.{part.name}')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
