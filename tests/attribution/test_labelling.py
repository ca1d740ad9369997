import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from cocomix.attribution.labelling import (
    activation_scores,
    cross_entropy_slope,
    gradient_scores,
    integrated_scores,
    label_windows,
    loss_gradient,
    strongest,
    strongest_of_dictionary,
)
from cocomix.base.blocks import blocks_of
from cocomix.base.hooks import residual_edited
from cocomix.params import AttributionParams, Sign
from cocomix.plumbing.runtime import runtime
from cocomix.sae.autoencoder import Latents
from tests.attribution.conftest import LATENTS, LAYER, K, Setting
from tests.conftest import CONTEXT

PARAMS = AttributionParams(k_attr=3, score="gradient", sign="released", shard_tokens=640)


def dense(latents: Latents, values: Tensor) -> Tensor:
    """[n, k] values as a row over the whole dictionary."""
    return torch.zeros(len(values), LATENTS).scatter(1, latents.indices, values)


@pytest.mark.parametrize("setting", ["token", "none"], indirect=True)
def test_labels_are_those_of_the_published_formulation_where_it_defines_them(setting: Setting) -> None:
    """Published: the mean loss of an unfrozen model, the gradient at the residual times the whole decoder."""
    ids = setting.ids(8)
    model = AutoModelForCausalLM.from_pretrained("artifacts/base").eval()
    output = model(ids, labels=ids, output_hidden_states=True)
    output.hidden_states[LAYER].retain_grad()
    output.loss.backward()
    gradient = output.hidden_states[LAYER].grad.flatten(0, 1)
    latents, scores = gradient_scores(setting.sae, loss_gradient(setting.model, ids, LAYER))
    published = (gradient @ setting.sae.decoder.T) * dense(latents, latents.values)
    best = published.topk(4)

    labelled = strongest(latents, scores, 4, "released")
    defined = best.values > 0
    assert defined.float().mean() > 0.3
    torch.testing.assert_close(labelled.concepts[defined], best.indices[defined])
    assert (labelled.concepts[~defined] == -1).all()


@pytest.mark.parametrize("setting", ["token", "none"], indirect=True)
def test_a_score_is_the_latent_times_the_slope_of_the_loss_found_by_moving_the_latent(setting: Setting) -> None:
    ids = setting.ids(1)
    latents, scores = gradient_scores(setting.sae, gradient := loss_gradient(setting.model, ids, LAYER))
    std = setting.sae.normalize(gradient.residual).std
    setting.model.double()

    def loss(place: int, direction: Tensor) -> float:
        def move(residual: Tensor) -> Tensor:
            moved = residual.clone()
            moved[0, place] += direction
            return moved

        with torch.no_grad(), residual_edited(setting.model, LAYER, move):
            logits = setting.model(ids).logits
        return float(F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum"))

    for place in (0, 5, CONTEXT - 2):
        for active in range(3):
            step = 1e-4 * std[place] * setting.sae.decoder[latents.indices[place, active]]
            slope = (loss(place, step) - loss(place, -step)) / 2e-4
            expected = slope * float(latents.values[place, active])
            assert float(scores[place, active]) == pytest.approx(expected, rel=2e-3, abs=1e-5)


def test_the_gradient_is_that_of_the_whole_models_summed_loss(setting: Setting) -> None:
    ids = setting.ids(4)
    found = loss_gradient(setting.model, ids, LAYER)
    output = setting.model.requires_grad_(True)(ids, output_hidden_states=True)
    output.hidden_states[LAYER].retain_grad()
    F.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
    torch.testing.assert_close(found.gradient, output.hidden_states[LAYER].grad.flatten(0, 1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.residual, output.hidden_states[LAYER].detach().flatten(0, 1))


def test_neither_weights_nor_the_blocks_below_take_part_in_the_backward_pass(setting: Setting) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a block below was differentiated")

    for block in list(blocks_of(setting.model))[:LAYER]:
        for part in block.children():
            part.register_full_backward_hook(fail)
    loss_gradient(setting.model, setting.ids(2), LAYER)
    assert all(each.grad is None for each in setting.model.parameters())


@given(seed=st.integers(0, 99), windows=st.integers(1, 3), context=st.integers(2, 6), vocab=st.integers(2, 9))
def test_the_slope_of_the_cross_entropy_is_that_of_autograd(seed: int, windows: int, context: int, vocab: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (5 * torch.randn(windows, context, vocab, generator=generator)).requires_grad_()
    ids = torch.randint(0, vocab, (windows, context), generator=generator)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
    torch.testing.assert_close(cross_entropy_slope(logits.detach(), ids), logits.grad)


def test_activations_are_found_without_the_blocks_above(setting: Setting) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a block above was run")

    ids = setting.ids(5)
    expected = gradient_scores(setting.sae, loss_gradient(setting.model, ids, LAYER))[0]
    for block in list(blocks_of(setting.model))[LAYER:]:
        block.register_forward_pre_hook(fail)
    latents, scores = activation_scores(setting.model, setting.sae, ids)
    torch.testing.assert_close(latents, expected)
    scores = scores.view(5, CONTEXT, -1)
    torch.testing.assert_close(scores[:, :-1], expected.values.view(5, CONTEXT, -1)[:, :-1])
    assert (scores[:, -1] == 0).all()


def test_every_way_scores_the_same_latents_in_bf16_too(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_PRECISION", "bf16")
    runtime.cache_clear()
    model, sae, ids = setting.model, setting.sae, setting.ids(5)
    latents, _ = gradient_scores(sae, loss_gradient(model, ids, LAYER))
    for others, _ in (integrated_scores(model, sae, ids, "sequence", 2), activation_scores(model, sae, ids)):
        assert torch.equal(others.indices, latents.indices)
        assert torch.equal(others.values, latents.values)


def test_a_windows_last_position_has_no_label(setting: Setting) -> None:
    latents, scores = gradient_scores(setting.sae, loss_gradient(setting.model, setting.ids(5), LAYER))
    for sign in ("released", "helpful", "absolute"):
        concepts = strongest(latents, scores, 3, sign).concepts.view(5, CONTEXT, 3)
        assert (concepts[:, -1] == -1).all()
        assert (concepts[:, :-1, 0] != -1).float().mean() > 0.8


@given(data=st.data(), sign=st.sampled_from(["released", "helpful", "absolute"]), k_attr=st.integers(1, 4))
def test_labels_are_the_strongest_of_the_sign_and_never_one_without_a_score(
    data: st.DataObject, sign: Sign, k_attr: int
) -> None:
    scores = data.draw(
        st.lists(st.sampled_from([-3.0, -2.0, -1.0, 0.0, 1.5, 2.5]), min_size=4, max_size=4, unique=True)
    )
    latents = Latents(torch.tensor([[7, 5, 3, 1]]), torch.ones(1, 4))
    wanted = {"released": lambda s: s, "helpful": lambda s: -s, "absolute": abs}[sign]
    expected = sorted((each for each in scores if wanted(each) > 0), key=wanted, reverse=True)[:k_attr]

    labelled = strongest(latents, torch.tensor([scores]), k_attr, sign)
    missing = k_attr - len(expected)
    assert labelled.scores[0].tolist() == expected + [0.0] * missing
    names = [int(latents.indices[0, scores.index(each)]) for each in expected]
    assert labelled.concepts[0].tolist() == names + [-1] * missing


@pytest.mark.parametrize("sign", ["released", "helpful", "absolute"])
def test_pre_activations_choose_among_the_whole_dictionary(
    setting: Setting, sign: Sign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cocomix.attribution.labelling.DENSE_ROWS", 7)
    gradient = loss_gradient(setting.model, setting.ids(3), LAYER, "next_token")
    normalized = setting.sae.normalize(gradient.residual)
    values = (normalized.x - setting.sae.pre_bias) @ setting.sae.encoder.T + setting.sae.latent_bias
    scores = values * (gradient.gradient @ setting.sae.decoder.T) * normalized.std
    wanted = {"released": scores, "helpful": -scores, "absolute": scores.abs()}[sign]
    labelled = strongest_of_dictionary(setting.sae, gradient, K + 2, sign)
    expected = wanted.topk(K + 2)
    torch.testing.assert_close(labelled.concepts, expected.indices.masked_fill(expected.values <= 0, -1))
    given = labelled.concepts >= 0
    torch.testing.assert_close(labelled.scores[given], scores.gather(1, labelled.concepts.clamp(min=0))[given])
    active = setting.sae.encode(normalized.x).indices
    assert (labelled.concepts[:, :, None] != active[:, None]).all(2)[given].float().mean() > 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"scope": "next_token"},
        {"score": "integrated", "sign": "helpful"},
        {"score": "ablation", "scope": "next_token", "sign": "absolute"},
        {"value": "pre_activation"},
    ],
    ids=str,
)
def test_every_way_of_scoring_labels_all_positions_but_the_last(setting: Setting, options: dict[str, str]) -> None:
    ids = setting.ids(3)
    released = label_windows(setting.model, setting.sae, ids, PARAMS)
    labels = label_windows(setting.model, setting.sae, ids, PARAMS.model_copy(update=options))
    given = labels.concepts < LATENTS
    assert not given[:, -1].any()
    assert given[:, :-1, 0].mean() > 0.8
    assert (labels.concepts != released.concepts).any()
    signs = {"released": (labels.scores > 0), "helpful": (labels.scores < 0), "absolute": (labels.scores != 0)}
    assert signs[options.get("sign", "released")][given].all()


def test_scores_beyond_what_fp16_holds_are_cut_to_its_largest_number(setting: Setting) -> None:
    setting.sae.encoder *= 1e6
    params = PARAMS.model_copy(update={"score": "activation"})
    scores = label_windows(setting.model, setting.sae, setting.ids(2), params).scores
    assert scores.max() == np.finfo(np.float16).max
