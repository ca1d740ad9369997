import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cocomix.activations.store import ActivationStore


def run(processes: int, folder: Path, out: Path, architecture: str) -> list[dict[str, float]]:
    out.mkdir(exist_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "tests.sae.small_run", str(folder), str(out), architecture]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=120)
    with (out / "curve.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_two_processes_train_what_one_trains_to_rounding(
    store: ActivationStore, tmp_path: Path, architecture: str
) -> None:
    alone = run(1, store._artifact.path, tmp_path / "alone", architecture)
    both = run(2, store._artifact.path, tmp_path / "both", architecture)
    assert any(row["aux"] > 0 for row in alone)
    for one, two in zip(alone, both, strict=True):
        assert two == pytest.approx(one, rel=1e-3, abs=1e-4)
    weights = load_file(tmp_path / "both" / "sae.safetensors")
    for name, weight in load_file(tmp_path / "alone" / "sae.safetensors").items():
        assert (weights[name] - weight).abs().max() < 1e-3


def test_two_processes_that_each_select_in_their_share_explain_as_much(store: ActivationStore, tmp_path: Path) -> None:
    alone = run(1, store._artifact.path, tmp_path / "alone", "batchtopk")
    both = run(2, store._artifact.path, tmp_path / "both", "batchtopk")
    assert both[-1]["fvu"] == pytest.approx(alone[-1]["fvu"], rel=0.1)
    assert both[-1]["l0"] == pytest.approx(alone[-1]["l0"], rel=0.05)
