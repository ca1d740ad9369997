import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cocomix.activations.store import ActivationStore
from cocomix.sae.learner import SaeCurveRow
from tests.sae.small_run import train


@pytest.fixture(scope="module")
def by_two(store: ActivationStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Autoencoders that two processes trained together, a folder each."""
    out = tmp_path_factory.mktemp("both")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = ["-m", "tests.sae.small_run", str(store._artifact.path), str(out), "topk", "jumprelu", "batchtopk"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *launcher, *program], check=True, capture_output=True, env=environment, timeout=240)
    return out


def curve(folder: Path) -> list[SaeCurveRow]:
    with (folder / "curve.csv").open(newline="") as file:
        return [SaeCurveRow(**{name: float(value) for name, value in row.items()}) for row in csv.DictReader(file)]


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_two_processes_train_what_one_trains_to_rounding(
    store: ActivationStore, by_two: Path, tmp_path: Path, architecture: str
) -> None:
    alone = train(store, tmp_path, architecture)
    assert any(row.aux > 0 for row in alone.curve)
    for one, two in zip(alone.curve, curve(by_two / architecture), strict=True):
        assert two == pytest.approx(one, rel=1e-3, abs=1e-4)
    weights = load_file(by_two / architecture / "sae.safetensors")
    for name, weight in alone.finish().state_dict().items():
        assert (weights[name] - weight).abs().max() < 1e-3


def test_two_processes_that_each_select_in_their_share_explain_as_much(
    store: ActivationStore, by_two: Path, tmp_path: Path
) -> None:
    alone, both = train(store, tmp_path, "batchtopk").curve[-1], curve(by_two / "batchtopk")[-1]
    assert both.fvu == pytest.approx(alone.fvu, rel=0.1)
    assert both.l0 == pytest.approx(alone.l0, rel=0.05)
