"""What is planned for a training's checkpoints, against those that one writes."""

from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.shapes.planning.models import optimizing
from cocomix.training.objectives import Objective
from tests.training.test_loop import PARAMS, SHAPE, training

WIDE = SHAPE | {"n_embd": 128}
"""A model whose weights take far more space than their names."""


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_checkpoints_are_as_many_and_as_large_as_planned(tmp_path: Path, optimizer: str) -> None:
    params = PARAMS.model_copy(update={"optimizer": optimizer, "steps": 3, "checkpoint_every": 2})
    training(Objective(GPT2LMHeadModel(GPT2Config(**WIDE))), tmp_path, params).run("short")
    sizes = [each.stat().st_size for each in tmp_path.glob("step-*.pt")]
    planned = optimizing(params, WIDE)
    assert sizes == pytest.approx([planned.checkpoint] * 2, rel=0.03)
    assert sum(sizes) == pytest.approx(planned.checkpoints, rel=0.03)
