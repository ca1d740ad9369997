import pytest
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from cocomix.base.flops import forward_flops
from cocomix.modeling import CoCoMixConfig
from cocomix.models.accounting import flops_per_token, parameters, parameters_of
from cocomix.models.configs import config_of
from cocomix.params import ModelParams
from cocomix.shapes.models import plain_shape
from cocomix.shapes.planning.corpus import Words
from tests.modeling.conftest import ids, tiny, variant

__all__ = ["variant"]


def plain(**changes: object) -> GPT2LMHeadModel:
    shape = {"vocab_size": 61, "n_positions": 48, "n_embd": 32, "n_layer": 4, "n_head": 4, "bos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**(shape | {"eos_token_id": 0, "attn_implementation": "eager"} | changes)))


def counted(model: PreTrainedModel, context: int) -> int:
    """What torch counts, and the embedding bag, which it does not."""
    tokens = ids(2, context)
    with FlopCounterMode(display=False) as counter:
        model.requires_grad_(False)(tokens, use_cache=False)
    config, mixer = model.config, getattr(model.base_model, "mixer", None)
    bag = (
        2 * config.concept_k * config.hidden_size
        if isinstance(getattr(mixer, "compress", None), nn.EmbeddingBag)
        else 0
    )
    return counter.get_total_flops() + tokens.numel() * bag


@pytest.mark.parametrize("context", [1, 16])
def test_flops_of_each_variant_are_those_that_torch_counts(variant: dict[str, object], context: int) -> None:
    model = tiny(**variant, n_inner=48, attn_implementation="eager")
    assert flops_per_token(model.config, context) * 2 * context == counted(model, context)


@pytest.mark.parametrize("change", [{}, {"n_inner": 48}, {"n_layer": 1}])
def test_flops_of_a_gpt2_are_those_that_torch_counts(change: dict[str, int]) -> None:
    model = plain(**change).eval()
    assert flops_per_token(model.config, 16) * 2 * 16 == counted(model, 16)


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"n_kv_head": 2}, {"n_kv_head": 1, "qk_norm": True}])
def test_parameters_and_flops_of_a_plain_llama_are_counted_from_its_shape(options: dict[str, object]) -> None:
    params = ModelParams(backbone="llama", d_model=40, n_layer=3, n_head=4, **options)
    config = config_of(plain_shape(params, Words(61, 48)))
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).eval()
    assert model.config.model_type == ("qwen3" if "qk_norm" in options else "llama")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert parameters_of(model.config) == parameters(model)
    assert flops_per_token(model.config, 16) * 2 * 16 == counted(model, 16)
    assert forward_flops(model, 16) == flops_per_token(model.config, 16)


def test_training_costs_three_forward_passes() -> None:
    model, tokens = plain().train(), ids(2, 16)
    with FlopCounterMode(display=False) as counter:
        model(tokens, labels=tokens, use_cache=False).loss.backward()
    assert counter.get_total_flops() == 3 * flops_per_token(model.config, 16) * tokens.numel()


def test_parameters_are_those_that_are_stored_and_can_be_counted_before_a_model_is_made(
    variant: dict[str, object],
) -> None:
    model = tiny(**variant)
    assert parameters(model).stored == sum(each.numel() for each in model.parameters())
    assert parameters_of(model.config) == parameters(model)


def test_active_parameters_leave_out_the_compress_rows_that_a_token_does_not_read(variant: dict[str, object]) -> None:
    stored, active = parameters(tiny(**variant))
    mixes_concepts = "predicts" not in variant and variant.get("mixing") != "none"
    assert stored - active == (40 - 5) * 32 * mixes_concepts


def test_parameters_of_the_papers_69m_model_are_the_papers() -> None:
    config = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 512, "n_layer": 8, "n_head": 8}
    stored, active = parameters_of(CoCoMixConfig(**config))
    assert round(stored / 1e6, 1) == 85.1
    assert round(active / 1e6, 1) == 68.3
