import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cocomix.plumbing import checkpoint
from tests.training.small_run import Case, train

SHARDED = Case("fsdp", sharding="fsdp")
BF16 = [Case(f"bf16-{each}", sharding=each, precision="bf16") for each in ("ddp", "fsdp")]
KD = Case("kd-fsdp", method="kd", sharding="fsdp")
DIED = Case("died", sharding="fsdp", stop_at=7)
MUON = Case("muon", optimizer="muon", steps=6)


def run_by_two(out: Path, *cases: Case) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = ["-m", "tests.training.small_run", str(out), *(each.argument() for each in cases)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *launcher, *program], check=True, capture_output=True, env=environment, timeout=240)


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of two processes, a folder each; of Muon's, shards died and whole matrices went on."""
    out = tmp_path_factory.mktemp("both")
    run_by_two(out, Case("ddp"), SHARDED, *BF16, KD, DIED, replace(MUON, sharding="fsdp", stop_at=4), MUON)
    return out


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def alone(out: Path, case: Case) -> dict[str, Any]:
    """What this process alone finds."""
    folder = out / "alone"
    folder.mkdir(exist_ok=True)
    train(folder, case)
    return result(folder / case.out)


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    for one, other in zip(first["curve"], second["curve"], strict=True):
        same = [each for each in one if each != "seconds" and one[each] is not None]
        assert {each: one[each] for each in same} == pytest.approx({each: other[each] for each in same}, abs=1e-4)
    # AdamW does not see the gradient's scale; its norm does. A run that went on knows the later steps' only.
    assert first["norms"] == pytest.approx(second["norms"][-len(first["norms"]) :], rel=1e-3)
    for name, weights in first["weights"].items():
        np.testing.assert_allclose(weights, second["weights"][name], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_processes_train_what_one_trains_to_rounding(by_two: Path, tmp_path: Path, sharding: str) -> None:
    assert_same(result(by_two / sharding), alone(tmp_path, Case("cocomix")))
    drawn = [json.loads((by_two / sharding / f"drawn-{rank}.json").read_text()) for rank in (0, 1)]
    assert len(drawn[0]) == len(drawn[1]) == 2 * 12  # micro-batches of 12 steps
    assert len({*drawn[0], *drawn[1]}) == 4 * 12  # dropout is other in each step, process and micro-batch


def test_shares_are_gathered_in_bf16_where_that_is_multiplied_and_give_the_same_gradients(by_two: Path) -> None:
    whole, shares = (result(by_two / each.out) for each in BF16)
    assert (whole["dtypes"], shares["dtypes"]) == (["torch.float32"], ["torch.bfloat16"])
    assert shares["norms"][:3] == pytest.approx(whole["norms"][:3], rel=1e-6)  # later, roundings add up


def test_so_does_distillation(by_two: Path, tmp_path: Path) -> None:
    assert_same(result(by_two / KD.out), alone(tmp_path, KD))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "sharding"), [("kd", "ddp"), ("hidden", "ddp"), ("hidden", "fsdp"), ("llama", "fsdp")]
)
def test_so_does_each_other_method_and_backbone(tmp_path: Path, method: str, sharding: str) -> None:
    case = Case("other", method=method, sharding=sharding)
    run_by_two(tmp_path, case)
    assert_same(result(tmp_path / case.out), alone(tmp_path, case))


def test_one_process_goes_on_with_what_two_have_sharded(by_two: Path, tmp_path: Path) -> None:
    assert not (by_two / DIED.out / "result.json").exists()
    state = checkpoint.load(by_two / DIED.out)
    assert state is not None
    tied = state["model"]["model.transformer.wte.weight"], state["model"]["model.lm_head.weight"]
    assert tied[0].data_ptr() == tied[1].data_ptr()  # one weight, saved once
    train(by_two, Case(DIED.out))
    assert_same(result(by_two / DIED.out), alone(tmp_path, Case("cocomix")))


@pytest.mark.slow
def test_a_run_goes_on_with_other_processes_and_another_sharding(tmp_path: Path) -> None:
    train(tmp_path, replace(DIED, out="one", sharding="ddp"))
    run_by_two(tmp_path, replace(SHARDED, out="one"), replace(DIED, out="two", sharding="ddp"))
    train(tmp_path, Case("two"))
    for each in ("one", "two"):
        assert_same(result(tmp_path / each), alone(tmp_path, Case("cocomix")))


def test_muon_with_shards_goes_on_with_whole_matrices_as_one_process_trains(by_two: Path, tmp_path: Path) -> None:
    whole, together = alone(tmp_path, MUON), result(by_two / MUON.out)
    assert len(together["norms"]) == 2  # of the steps after its death
    assert_same(together, whole)
