"""Models that go on from a pretrained one start with what it predicts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, PreTrainedModel, Qwen3Config

from cocomix.base.flops import forward_flops
from cocomix.models.accounting import flops_per_token, parameters_of
from cocomix.models.start import new_model
from cocomix.params import InitParams, ModelParams
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import runtime
from cocomix.shapes.models import Shape, plain_shape
from cocomix.shapes.planning.corpus import Words
from cocomix.shapes.pretrained import pretrained_shape
from tests.modeling.conftest import ids

TOKENS = Words(61, 16)
PADDED = 64
_COMMON = {"vocab_size": PADDED, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0}
_LLAMA = _COMMON | {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
_LLAMA |= {"intermediate_size": 40, "max_position_embeddings": 48, "tie_word_embeddings": True, "rms_norm_eps": 1e-3}
CONFIGS = {
    "gpt2": GPT2Config(**_COMMON, n_positions=48, n_embd=32, n_layer=4, n_head=4, n_inner=40),
    "llama": LlamaConfig(**_LLAMA, rope_parameters={"rope_type": "default", "rope_theta": 100.0}),
    "qwen3": Qwen3Config(**_LLAMA, head_dim=16),
}
"""Of random models, with a vocabulary that is padded beyond that of the tokens."""
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


@pytest.fixture(params=CONFIGS)
def pretrained(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedModel:
    """A random model, saved in `tmp_path`."""
    torch.manual_seed(7)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()
    for name, each in model.named_parameters():
        if "norm" in name or "ln_" in name:
            torch.nn.init.normal_(each, mean=1.0, std=0.1)
    model.save_pretrained(tmp_path)
    return model


def shape_of(pretrained: PreTrainedModel, fields: dict[str, Any]) -> Shape:
    return pretrained_shape(pretrained.config.to_dict(), 0.0, TOKENS) | fields


def started(folder: Path, pretrained: PreTrainedModel, fields: dict[str, Any], seed: int = 0) -> PreTrainedModel:
    init = InitParams(source="pretrained", path=str(folder))
    return new_model(shape_of(pretrained, fields), TOKENS.context, init, seed).eval()


@pytest.mark.parametrize("fields", SAME.values(), ids=SAME)
def test_the_first_logits_are_those_of_the_pretrained_model(
    pretrained: PreTrainedModel, tmp_path: Path, fields: dict[str, Any]
) -> None:
    model, tokens = started(tmp_path, pretrained, fields), ids(3, 20)
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
    pretrained: PreTrainedModel, tmp_path: Path, fields: dict[str, Any]
) -> None:
    prompt, mask = ids(2, 6), torch.tensor([[1] * 6, [0] * 2 + [1] * 4])
    asked = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    asked["suppress_tokens"] = list(range(61, PADDED))
    model = started(tmp_path, pretrained, fields)
    assert model.generate(prompt, **asked).tolist() == pretrained.generate(prompt, **asked).tolist()


def test_what_a_method_adds_is_new_and_of_the_seed(pretrained: PreTrainedModel, tmp_path: Path) -> None:
    first, again, other = (started(tmp_path, pretrained, SAME["add"], seed) for seed in (0, 0, 1))
    scratch = new_model(shape_of(pretrained, SAME["add"]), TOKENS.context, InitParams(), 0)
    for name, weights in first.named_parameters():
        assert torch.equal(weights, again.get_parameter(name)), name
        if "mixer" in name:
            assert torch.equal(weights, scratch.get_parameter(name)), name
        else:
            assert torch.equal(weights, pretrained.get_parameter(name)[: len(weights)]), name
    predictors = [each.base_model.mixer.predictor.weight for each in (first, other)]
    assert not torch.equal(*predictors)


@pytest.mark.parametrize("fields", SAME.values(), ids=SAME)
def test_its_counts_are_those_of_the_model(pretrained: PreTrainedModel, tmp_path: Path, fields: dict[str, Any]) -> None:
    model = started(tmp_path, pretrained, fields)
    assert parameters_of(model.config).stored == sum(each.numel() for each in model.parameters())
    if not fields:
        assert flops_per_token(model.config, 7) == forward_flops(model, 7)


def test_a_model_from_scratch_is_that_of_the_seed() -> None:
    shape = plain_shape(ModelParams(d_model=32, n_layer=2, n_head=4), TOKENS)
    torch.manual_seed(3)
    expected = GPT2LMHeadModel(GPT2Config(**shape))
    found = new_model(shape, TOKENS.context, InitParams(), 3)
    assert all(torch.equal(each, found.get_parameter(name)) for name, each in expected.named_parameters())


def test_a_model_with_pickled_weights_is_refused(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["gpt2"])
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"^pretrain\.init\.path: .*") as error:
        started(tmp_path, model, {})
    assert "\n" not in str(error.value)


def test_a_model_whose_weights_are_not_tied_as_it_says_is_refused(pretrained: PreTrainedModel, tmp_path: Path) -> None:
    config = pretrained.config.to_dict() | {"tie_word_embeddings": False}
    AutoModelForCausalLM.from_config(type(pretrained.config)(**config)).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"^pretrain\.init\.path: .*: says tie_word_embeddings: true, but its weights"):
        started(tmp_path, pretrained, {})
