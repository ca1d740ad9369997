import pytest
import torch
from transformers import (
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from cocomix.base.documents_apart import check_documents_apart, documents_apart
from cocomix.base.hooks import activations_at
from cocomix.params import Site
from cocomix.plumbing.errors import UserError
from tests.base.conftest import SHAPE
from tests.conftest import VOCAB


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_documents_kept_apart_are_computed_as_if_alone(
    model: PreTrainedModel, ids: torch.Tensor, attention: str
) -> None:
    model.set_attn_implementation(attention)
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [4, 4, 4, 4, 4, 4, 5]])
    sites = [Site("resid_post", 2)]
    (found,) = activations_at(model, ids, sites, **documents_apart(model, documents))
    for window, number in ((0, 0), (0, 1), (0, 2), (1, 4), (1, 5)):
        own = documents[window] == number
        (alone,) = activations_at(model, ids[window, own][None], sites)
        torch.testing.assert_close(found[window, own], alone[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0, 3:], activations_at(model, ids, sites)[0][0, 3:], rtol=1e-2)


WIDE = SHAPE | {"intermediate_size": 32, "num_key_value_heads": 1, "initializer_range": 0.3}


SLIDING = MistralConfig(**WIDE, sliding_window=3)


CONVOLVED = Lfm2Config(**WIDE, layer_types=["conv", "full_attention", "conv"])


RECURRENT = MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=3)


@pytest.mark.parametrize(
    ("family", "config"),
    [(MistralForCausalLM, SLIDING), (Lfm2ForCausalLM, CONVOLVED), (MambaForCausalLM, RECURRENT)],
    ids=["sliding window", "convolution", "recurrence"],
)
def test_a_model_whose_documents_no_mask_keeps_apart_is_an_error_that_names_it(
    ids: torch.Tensor, family: type[PreTrainedModel], config: PreTrainedConfig
) -> None:
    torch.manual_seed(0)
    model = family(config).eval().requires_grad_(False)
    with pytest.raises(UserError, match=rf"activations\.separate_documents: {family.__name__} .* allowed: false"):
        check_documents_apart(model, ids[:1], [Site("resid_post", 2)])


def test_documents_can_be_kept_apart_where_a_mask_is_all_there_is_between_positions(
    model: PreTrainedModel, ids: torch.Tensor
) -> None:
    check_documents_apart(model, ids[:1], [Site("attn_out", 1), Site("resid_post", 2)])
    sliding = MistralForCausalLM(SLIDING).eval().requires_grad_(False)
    check_documents_apart(sliding, ids[:1, :3], [Site("resid_post", 2)])
