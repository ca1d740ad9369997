import signal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cocomix import interrupt
from cocomix.attribution.ablation import ablation_scores
from cocomix.attribution.score import integrated_scores, loss_gradient, scores_of
from cocomix.base import residual_at, residual_edited
from cocomix.interrupt import Interrupted
from cocomix.params import Scope
from cocomix.sae.sparse import weighted_sum
from tests.attribution.conftest import LAYER, K, Setting
from tests.conftest import CONTEXT


def losses_of(setting: Setting, ids: Tensor, residual: Tensor) -> Tensor:
    """The next-token losses of a window, ids [context], with this residual stream [context, d_model]."""
    with torch.no_grad(), residual_edited(setting.model, LAYER, lambda _: residual[None]):
        logits = setting.model(ids[None]).logits[0]
    return F.cross_entropy(logits[:-1], ids[1:], reduction="none")


@pytest.mark.parametrize("scope", ["sequence", "next_token"])
def test_ablation_is_the_loss_less_that_with_one_latent_of_one_position_at_zero(setting: Setting, scope: Scope) -> None:
    ids = setting.ids(2)
    latents, scores = ablation_scores(setting.model, setting.sae, ids, scope)
    assert scores.shape == (2 * CONTEXT, K)
    for row in (0, 5, CONTEXT - 2, CONTEXT + 3):
        window, position = divmod(row, CONTEXT)
        residual = residual_at(setting.model, ids[[window]], LAYER)[0]
        normalized = setting.sae.normalize(residual)
        own = setting.sae.encode(normalized.x)
        before = losses_of(setting, ids[window], residual)
        for index in range(K):
            without = own.values.clone()
            without[position, index] = 0
            change = weighted_sum(without - own.values, setting.sae.decoder, own.indices) * normalized.std
            change = before - losses_of(setting, ids[window], residual + change)
            expected = float(change.sum() if scope == "sequence" else change[position])
            assert float(scores[row, index]) == pytest.approx(expected, abs=2e-5)
    assert (scores.view(2, CONTEXT, K)[:, -1] == 0).all()
    assert (scores[latents.values == 0] == 0).all()


def test_only_the_places_that_are_asked_for_are_ablated(setting: Setting) -> None:
    ids, places = setting.ids(2), torch.tensor([1, 6])
    _, every = ablation_scores(setting.model, setting.sae, ids, "sequence")
    _, some = ablation_scores(setting.model, setting.sae, ids, "sequence", places)
    every, some = every.view(2, CONTEXT, K), some.view(2, CONTEXT, K)
    torch.testing.assert_close(some[:, places], every[:, places])
    assert some.count_nonzero(1).max() <= len(places)


@pytest.mark.parametrize("scope", ["sequence", "next_token"])
def test_a_signal_is_obeyed_between_two_passes_and_leaves_the_model_as_it_was(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, scope: Scope
) -> None:
    ids = setting.ids(1)
    before = setting.model(ids).logits
    passes: list[None] = []
    counted = setting.model.register_forward_pre_hook(lambda *_: passes.append(None))

    def check() -> None:
        if len(passes) == 2:
            raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(interrupt, "check", check)
    with pytest.raises(Interrupted):
        ablation_scores(setting.model, setting.sae, ids, scope)
    counted.remove()
    torch.testing.assert_close(setting.model(ids).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("scope", ["sequence", "next_token"])
def test_integrated_scores_add_up_to_what_all_latents_change(setting: Setting, scope: Scope) -> None:
    ids = setting.ids(1)
    latents, scores = integrated_scores(setting.model, setting.sae, ids, scope, steps=64)
    residual = residual_at(setting.model, ids, LAYER)[0]
    std = setting.sae.normalize(residual).std
    part = weighted_sum(latents.values, setting.sae.decoder, latents.indices) * std
    before = losses_of(setting, ids[0], residual)
    if scope == "sequence":
        change = (before - losses_of(setting, ids[0], residual - part)).sum()
        assert float(scores.sum()) == pytest.approx(float(change), rel=0.02)
        return
    for position in range(CONTEXT - 1):
        alone = residual.clone()
        alone[position] -= part[position]
        change = (before - losses_of(setting, ids[0], alone))[position]
        assert float(scores[position].sum()) == pytest.approx(float(change), rel=0.02, abs=0.005)


def test_one_step_is_the_gradient_halfway(setting: Setting) -> None:
    ids = setting.ids(2)
    latents, scores = integrated_scores(setting.model, setting.sae, ids, "sequence", steps=1)
    residual = residual_at(setting.model, ids, LAYER)
    normalized = setting.sae.normalize(residual.flatten(0, 1))
    half = (weighted_sum(latents.values, setting.sae.decoder, latents.indices) * normalized.std / 2).view_as(residual)
    gradient = loss_gradient(setting.model, ids, LAYER, removed=half).gradient
    slopes = (gradient[:, None] * setting.sae.decoder[latents.indices]).sum(-1)
    torch.testing.assert_close(scores, latents.values * slopes * normalized.std, rtol=1e-4, atol=1e-6)


def test_cheaper_scores_are_nearer_to_ablation_than_no_score_is(setting: Setting) -> None:
    ids = setting.ids(4)
    _, exact = ablation_scores(setting.model, setting.sae, ids, "next_token")
    _, integrated = integrated_scores(setting.model, setting.sae, ids, "next_token", steps=16)
    _, first_order = scores_of(setting.sae, loss_gradient(setting.model, ids, LAYER, "next_token"))
    for scores in (integrated, first_order):
        assert float((scores - exact).square().mean()) < 0.8 * float(exact.square().mean())
