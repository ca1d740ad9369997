"""What a plan says of stages that have not run; against finished ones: tests/stages/test_plan.py."""

from pathlib import Path

import pytest

from cocomix.plumbing.checked import read_yaml
from tests.shapes.planning.estimates import PARAMS, needs


def test_every_stage_of_the_pipeline_is_known() -> None:
    stages = read_yaml(Path(__file__).parents[3] / "dvc.yaml")["stages"]
    assert {name.partition("@")[0] for name in needs()} == set(stages) - {"check"}  # which needs nothing


def test_every_method_and_seed_is_trained_and_evaluated() -> None:
    found = needs(pretrain={"methods": ["kd", "pause"], "seeds": [3, 4]})
    items = {
        f"{stage}@{method}-{seed}"
        for stage in ("pretrain", "evaluate")
        for method in ("kd", "pause")
        for seed in (3, 4)
    }
    assert {name for name in found if "@" in name} == items


def test_a_base_model_in_bf16_takes_half_the_memory_and_disk_wherever_it_is_loaded() -> None:
    taken = {"source": "pretrained", "pretrained": "x", "model": PARAMS["base"]["model"] | {"d_model": 1024}}
    methods = {"methods": ["kd", "cocomix"]}
    full, half = (needs(base=taken | {"dtype": each}, pretrain=methods) for each in ("fp32", "bf16"))
    weights = full["base"].disk - half["base"].disk
    assert 2 * weights == pytest.approx(full["base"].disk, rel=0.01)
    saved = {name: full[name].memory - half[name].memory for name in full}
    for name in ("sae", "attribution", "explain", "steer", "pretrain@kd-0"):
        assert saved[name] == pytest.approx(weights)
    assert 0 < saved["activations"] < weights
    assert saved["pretrain@cocomix-0"] == 0
