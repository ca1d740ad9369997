"""Models that go on from a pretrained GPT-2 start with what it predicts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from cocomix.models.start import new_model
from cocomix.params import InitParams
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import runtime
from tests.modeling.conftest import ids

SHAPE = {"vocab_size": 61, "n_positions": 48, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_inner": 40, "bos_token_id": 0}
SHAPE |= {"eos_token_id": 0, "activation_function": "gelu_pytorch_tanh"}
CONCEPTS = {"concept_layer": 2, "num_concepts": 40, "concept_k": 5}
SAME: dict[str, dict[str, Any]] = {
    "ntp": {},
    "none": CONCEPTS | {"mixing": "none"},
    "add": CONCEPTS | {"mixing": "add", "gate": True},
    "hidden": CONCEPTS | {"predicts": "hidden", "mixing": "add", "gate": True, "base_width": 24},
    "mlp": CONCEPTS | {"predicts": "nothing", "mlp_width": 8, "mixing": "add", "gate": True},
    "interleave_with_state": CONCEPTS | {"mixing": "interleave_with_state", "gate": True, "concept_layer": 3},
}
"""The fields of models that predict at first what the pretrained one predicts."""


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")
    runtime.cache_clear()


@pytest.fixture
def pretrained(tmp_path: Path) -> GPT2LMHeadModel:
    """A random model, saved in `tmp_path`; its vocabulary is padded beyond that of SHAPE."""
    torch.manual_seed(7)
    shape = SHAPE | {"activation_function": "gelu_new", "initializer_range": 0.2, "vocab_size": 64}
    model = GPT2LMHeadModel(GPT2Config(**shape)).eval()
    model.save_pretrained(tmp_path)
    return model


def started(folder: Path, fields: dict[str, Any], seed: int = 0) -> PreTrainedModel:
    init = InitParams(source="pretrained", path=str(folder))
    return new_model(SHAPE | fields, 16, init, seed).eval()


@pytest.mark.parametrize("fields", SAME.values(), ids=SAME)
def test_the_first_logits_are_those_of_the_pretrained_model(
    pretrained: GPT2LMHeadModel, tmp_path: Path, fields: dict[str, Any]
) -> None:
    model, tokens = started(tmp_path, fields), ids(3, 20)
    expected = pretrained(tokens).logits[..., :61]
    torch.testing.assert_close(model(tokens).logits, expected, atol=2e-5, rtol=1e-4)
    mask = torch.ones_like(tokens)
    mask[1, :6] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    padded, expected = (
        each(tokens, attention_mask=mask, position_ids=positions).logits[1, 6:, :61] for each in (model, pretrained)
    )
    torch.testing.assert_close(padded, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("fields", SAME.values(), ids=SAME)
def test_the_first_continuations_are_those_of_the_pretrained_model(
    pretrained: GPT2LMHeadModel, tmp_path: Path, fields: dict[str, Any]
) -> None:
    prompt, mask = ids(2, 6), torch.tensor([[1] * 6, [0] * 2 + [1] * 4])
    asked = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    asked["suppress_tokens"] = [61, 62, 63]
    model = started(tmp_path, fields)
    assert model.generate(prompt, **asked).tolist() == pretrained.generate(prompt, **asked).tolist()


def test_what_a_method_adds_is_new_and_of_the_seed(pretrained: GPT2LMHeadModel, tmp_path: Path) -> None:
    first, again, other = (started(tmp_path, SAME["add"], seed) for seed in (0, 0, 1))
    scratch = new_model(SHAPE | SAME["add"], 16, InitParams(), 0)
    for name, weights in first.named_parameters():
        assert torch.equal(weights, again.get_parameter(name)), name
        if "mixer" in name:
            assert torch.equal(weights, scratch.get_parameter(name)), name
        else:
            assert torch.equal(weights, pretrained.get_parameter(name)[: len(weights)]), name
    name = "transformer.mixer.predictor.weight"
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_a_model_from_scratch_is_that_of_the_seed() -> None:
    torch.manual_seed(3)
    expected = GPT2LMHeadModel(GPT2Config(**SHAPE))
    found = new_model(SHAPE, 16, InitParams(), 3)
    assert all(torch.equal(each, found.get_parameter(name)) for name, each in expected.named_parameters())


def test_a_model_with_pickled_weights_is_refused(pretrained: GPT2LMHeadModel, tmp_path: Path) -> None:
    torch.save(pretrained.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"^pretrain\.init\.path: .*") as error:
        started(tmp_path, {})
    assert "\n" not in str(error.value)
