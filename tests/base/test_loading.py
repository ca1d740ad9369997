from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
)

from cocomix.base.loading import load_base, micro_batch
from cocomix.plumbing.artifact import Artifact
from tests.conftest import CONTEXT


def test_the_base_model_is_loaded_frozen_and_computes_what_was_saved(base_folder: Path, ids: torch.Tensor) -> None:
    model = load_base(Artifact(base_folder), CONTEXT)
    assert not model.training
    assert not any(each.requires_grad for each in model.parameters())
    plain = AutoModelForCausalLM.from_pretrained(base_folder).eval()
    torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=1e-5, atol=1e-5)


def test_the_windows_of_a_forward_pass_are_a_runtime_knob(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_MICRO_BATCH", "3")
    assert micro_batch(CONTEXT) == 3


def test_a_window_longer_than_the_automatic_batch_is_read_alone() -> None:
    assert micro_batch(10**6) == 1
