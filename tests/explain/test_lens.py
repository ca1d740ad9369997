import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import LlamaConfig, LlamaForCausalLM

from cocomix.base.families import final_norm
from cocomix.explain.lens import directions, nearest, promoted
from cocomix.plumbing.errors import UserError
from cocomix.sae.autoencoder import SparseAutoencoder
from tests.attribution.conftest import LATENTS, Setting


def test_promoted_tokens_are_those_of_the_unembedding_after_the_linear_part_of_the_norm(setting: Setting) -> None:
    norm = setting.model.transformer.ln_f
    norm.weight.normal_()
    norm.bias.normal_()
    decoder = setting.sae.decoder
    centred = decoder - decoder.mean(1, keepdim=True)
    logits = (centred / centred.square().mean(1, keepdim=True).sqrt() * norm.weight) @ setting.model.lm_head.weight.T
    expected = (logits - logits.mean(1, keepdim=True)).topk(5)
    found = promoted(setting.model, setting.sae, 64, 5)
    assert (found.numbers == expected.indices).float().mean() > 0.99
    torch.testing.assert_close(found.values, expected.values, rtol=1e-3, atol=1e-4)


def test_rows_of_the_unembedding_that_are_no_tokens_are_not_promoted(setting: Setting) -> None:
    assert promoted(setting.model, setting.sae, 10, 10).numbers.max() < 10


def test_an_rms_norm_has_no_mean_to_take_away() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=50)).requires_grad_(False)
    x = torch.randn(3, 32)
    found = final_norm(model)(x) - final_norm(model)(torch.zeros(3, 32))
    torch.testing.assert_close(found, x / x.square().mean(1, keepdim=True).sqrt(), rtol=1e-4, atol=1e-4)


def test_a_model_whose_unembedding_reads_no_norm_is_an_error(setting: Setting) -> None:
    setting.model.lm_head.register_forward_pre_hook(lambda _head, args: (args[0] * 2,))
    with pytest.raises(UserError, match="GPT2LMHeadModel: no norm makes its unembedding's input"):
        final_norm(setting.model)


def test_nearest_concepts_have_the_largest_cosines_without_the_concept_itself(setting: Setting) -> None:
    found = nearest(setting.sae, 3)
    for concept in (0, 7, LATENTS - 1):
        cosines = cosine_similarity(setting.sae.decoder[[concept]], setting.sae.decoder)
        cosines[concept] = -2
        torch.testing.assert_close(found.values[concept], cosines.topk(3).values)
        assert found.numbers[concept].tolist() == cosines.topk(3).indices.tolist()


def test_the_two_signs_of_a_latent_are_opposite_directions(setting: Setting) -> None:
    signed = SparseAutoencoder(setting.sae.config.model_copy(update={"architecture": "abstopk"})).requires_grad_(False)
    signed.load_state_dict(setting.sae.state_dict())
    every = directions(signed)
    assert len(every) == signed.config.concepts == 2 * LATENTS
    torch.testing.assert_close(every[LATENTS:], -every[:LATENTS])
