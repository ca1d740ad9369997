import signal
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cocomix.attribution.ablation import ablation_scores
from cocomix.attribution.labelling import gradient_scores, integrated_scores, loss_gradient
from cocomix.base.blocks import blocks_of
from cocomix.base.hooks import residual_at, residual_edited
from cocomix.params import Scope
from cocomix.plumbing import interrupt
from cocomix.plumbing.interrupt import Interrupted
from cocomix.sae.autoencoder import Latents, SparseAutoencoder
from cocomix.sae.sparse import weighted_sum
from tests.attribution.conftest import LAYER, K, Setting
from tests.conftest import CONTEXT


@pytest.fixture
def sparse(setting: Setting) -> Setting:
    """With an autoencoder of which as many latents are active as there are: from none to many."""
    sae = setting.sae
    relu = SparseAutoencoder(sae.config.model_copy(update={"architecture": "relu", "k": 1})).requires_grad_(False)
    relu.load_state_dict(sae.state_dict())
    relu.latent_bias -= 1.5
    return setting._replace(sae=relu)


def rows_of(setting: Setting, scope: Scope, ids: Tensor) -> tuple[Latents, Tensor, int]:
    """What `ablation_scores` gives, and the windows that it puts through the block above the layer."""
    rows: list[int] = []
    above = blocks_of(setting.model)[LAYER]
    hook = above.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    latents, scores = ablation_scores(setting.model, setting.sae, ids, scope)
    hook.remove()
    return latents, scores, sum(rows)


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


def test_only_active_latents_are_ablated(sparse: Setting) -> None:
    ids = sparse.ids(3)
    latents, scores, rows = rows_of(sparse, "sequence", ids)
    active = (latents.values != 0).sum(1).view(3, CONTEXT)
    assert active.min() == 0
    assert active.min() < active.float().mean() < 0.7 * latents.values.shape[1]
    assert rows == int((1 + active[:, :-1]).sum())
    _, by_token, passes = rows_of(sparse, "next_token", ids)
    assert passes == int((2 + active.amax(1)).sum())
    residual = residual_at(sparse.model, ids[[0]], LAYER)[0]
    std = sparse.sae.normalize(residual).std
    before, position = losses_of(sparse, ids[0], residual), int(active[0, :-1].argmax())
    for index in latents.values[position].nonzero()[:, 0].tolist():
        removed = torch.zeros_like(residual)
        direction = sparse.sae.decoder[latents.indices[position, index]]
        removed[position] = latents.values[position, index] * std[position] * direction
        change = before - losses_of(sparse, ids[0], residual - removed)
        assert float(scores[position, index]) == pytest.approx(float(change.sum()), abs=2e-5)
        assert float(by_token[position, index]) == pytest.approx(float(change[position]), abs=2e-5)
    assert (scores != 0).sum() <= active.sum()


def test_a_window_without_active_latents_has_no_scores(sparse: Setting) -> None:
    sparse.sae.latent_bias -= 100
    for scope in get_args(Scope):
        assert not ablation_scores(sparse.model, sparse.sae, sparse.ids(2), scope)[1].any()


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
    _, first_order = gradient_scores(setting.sae, loss_gradient(setting.model, ids, LAYER, "next_token"))
    for scores in (integrated, first_order):
        assert float((scores - exact).square().mean()) < 0.8 * float(exact.square().mean())
