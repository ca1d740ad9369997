import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cocomix.plumbing import checkpoint


def run(processes: int, *arguments: str, sharding: str = "ddp", precision: str = "fp32") -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "tests.training.small_run", *arguments]
    knobs = {"OMP_NUM_THREADS": "1", "COCOMIX_SHARDING": sharding, "COCOMIX_MICRO_BATCH": "2"}
    knobs["COCOMIX_PRECISION"] = precision
    subprocess.run(command, check=True, capture_output=True, env=os.environ | knobs, timeout=120)


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    run(1, str(folder), "cocomix")
    return result(folder)


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    for one, other in zip(first["curve"], second["curve"], strict=True):
        same = [each for each in one if each != "seconds" and one[each] is not None]
        assert {each: one[each] for each in same} == pytest.approx({each: other[each] for each in same}, abs=1e-4)
    # AdamW does not see the gradient's scale; its norm does. A run that went on knows the later steps' only.
    assert first["norms"] == pytest.approx(second["norms"][-len(first["norms"]) :], rel=1e-3)
    for name, weights in first["weights"].items():
        np.testing.assert_allclose(weights, second["weights"][name], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_processes_train_what_one_trains_to_rounding(alone: dict[str, Any], tmp_path: Path, sharding: str) -> None:
    run(2, str(tmp_path), "cocomix", sharding=sharding)
    assert_same(result(tmp_path), alone)
    drawn = [json.loads((tmp_path / f"drawn-{rank}.json").read_text()) for rank in (0, 1)]
    assert len(drawn[0]) == len(drawn[1]) == 2 * 12  # micro-batches of 12 steps
    assert len({*drawn[0], *drawn[1]}) == 4 * 12  # dropout is other in each step, process and micro-batch


def test_shares_are_gathered_in_bf16_where_that_is_multiplied_and_give_the_same_gradients(tmp_path: Path) -> None:
    for sharding in ("ddp", "fsdp"):
        (tmp_path / sharding).mkdir()
        run(2, str(tmp_path / sharding), "cocomix", sharding=sharding, precision="bf16")
    whole, shares = result(tmp_path / "ddp"), result(tmp_path / "fsdp")
    assert (whole["dtypes"], shares["dtypes"]) == (["torch.float32"], ["torch.bfloat16"])
    assert shares["norms"][:3] == pytest.approx(whole["norms"][:3], rel=1e-6)  # later, roundings add up


@pytest.mark.parametrize(
    ("method", "sharding"),
    [
        ("kd", "fsdp"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in [("kd", "ddp"), ("hidden", "ddp"), ("hidden", "fsdp"), ("llama", "fsdp")]
        ),
    ],
)
def test_so_does_each_other_method_and_backbone(tmp_path: Path, method: str, sharding: str) -> None:
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        run(processes, str(tmp_path / str(processes)), method, sharding=sharding)
    assert_same(result(tmp_path / "2"), result(tmp_path / "1"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((2, "fsdp"), (1, "ddp")),
        pytest.param((1, "ddp"), (2, "fsdp"), marks=pytest.mark.slow),
        pytest.param((2, "ddp"), (1, "ddp"), marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_other_processes_and_another_sharding(
    alone: dict[str, Any], tmp_path: Path, first: tuple[int, str], second: tuple[int, str]
) -> None:
    run(first[0], str(tmp_path), "cocomix", "--stop-at", "7", sharding=first[1])
    assert not (tmp_path / "result.json").exists()
    state = checkpoint.load(tmp_path)
    assert state is not None
    tied = state["model"]["model.transformer.wte.weight"], state["model"]["model.lm_head.weight"]
    assert tied[0].data_ptr() == tied[1].data_ptr()  # one weight, saved once
    run(second[0], str(tmp_path), "cocomix", sharding=second[1])
    assert_same(result(tmp_path), alone)


def test_muon_with_shards_goes_on_with_whole_matrices_as_one_process_trains(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    for each in (alone, together):
        each.mkdir()
    asked = ("cocomix", "--optimizer", "muon", "--steps", "6")
    run(1, str(alone), *asked)
    run(2, str(together), *asked, "--stop-at", "4", sharding="fsdp")
    assert not (together / "result.json").exists()
    run(2, str(together), *asked, sharding="ddp")
    assert_same(result(together), result(alone))
