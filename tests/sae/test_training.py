from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cocomix import interrupt
from cocomix.activations.store import ActivationStore
from cocomix.errors import UserError
from cocomix.interrupt import Interrupted
from cocomix.params import SaeParams
from cocomix.progress import Progress
from cocomix.sae.quality import reconstruction
from cocomix.sae.training import SaeTraining, geometric_median, learning_rate_share

PARAMS = SaeParams(
    latents=32, k=3, epochs=2, batch_size=256, learning_rate=3e-3, aux_k=4, dead_tokens=1000, checkpoint_every=5
)
STEPS = 32


def training(store: ActivationStore, folder: Path, **changes: Any) -> SaeTraining:
    return SaeTraining(store, PARAMS.model_copy(update=changes), folder)


def batch(store: ActivationStore) -> Tensor:
    return next(store.batches("train", 256, seed=9))


def test_training_explains_variance(store: ActivationStore, tmp_path: Path) -> None:
    curve = training(store, tmp_path, epochs=6, learning_rate=1e-2).run()
    assert curve[-1].fvu < 0.5 * curve[0].fvu
    assert curve[-1].tokens == 6 * store.rows("train")


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "topk": {},
    "batchtopk": {},
    "abstopk": {},
    "matryoshka": {"prefixes": [8, 16]},
    "relu": {"sparsity_weight": 0.05},
    "jumprelu": {"sparsity_weight": 1.0},
}


def options(architecture: str) -> dict[str, Any]:
    return {"architecture": architecture, **ARCHITECTURES[architecture]}


@pytest.mark.parametrize(
    ("stop_after", "changes"),
    [
        *((stop_after, {}) for stop_after in (1, 5, 31)),
        *((17, options(each)) for each in ARCHITECTURES),
        (17, {"ema": 0.9}),
        (32, {"ema": 0.9}),
        (17, {"normalize": "whiten"}),
    ],
    ids=str,
)
def test_an_interrupted_training_resumes_to_the_same_bits(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int, changes: dict[str, Any]
) -> None:
    whole = training(store, tmp_path / "whole", dead_tokens=300, **changes)
    curve = whole.run()
    advance = Progress.advance

    def stop(self: Progress, amount: int, **shown: Any) -> None:
        advance(self, amount, **shown)
        if stopped._step == stop_after:
            raise Interrupted(interrupt.signal.SIGTERM)

    monkeypatch.setattr(Progress, "advance", stop)
    stopped = training(store, tmp_path / "stopped", dead_tokens=300, **changes)
    with pytest.raises(Interrupted):
        stopped.run()
    monkeypatch.setattr(Progress, "advance", advance)
    resumed = training(store, tmp_path / "stopped", dead_tokens=300, **changes)
    assert resumed.run() == curve
    assert len(curve) == STEPS
    for name, weight in whole.sae.state_dict().items():
        torch.testing.assert_close(resumed.sae.state_dict()[name], weight, rtol=0, atol=0)


def test_a_process_killed_between_checkpoints_repeats_the_steps_since_the_last(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = training(store, tmp_path / "whole")
    whole.run()
    step = SaeTraining._train_step

    def die(self: SaeTraining, x: Tensor) -> Any:
        if self._step == 13:
            raise KeyboardInterrupt  # no checkpoint is written
        return step(self, x)

    monkeypatch.setattr(SaeTraining, "_train_step", die)
    with pytest.raises(KeyboardInterrupt):
        training(store, tmp_path / "killed").run()
    monkeypatch.setattr(SaeTraining, "_train_step", step)
    resumed = training(store, tmp_path / "killed")
    resumed.run()
    torch.testing.assert_close(resumed.sae.state_dict(), whole.sae.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_explains_held_out_variance_with_about_k_latents(
    store: ActivationStore, tmp_path: Path, architecture: str
) -> None:
    run = training(store, tmp_path, epochs=6, learning_rate=1e-2, **options(architecture))
    run.run()
    measured = reconstruction(run.sae.requires_grad_(False), store)
    assert measured.fvu < 0.5
    if architecture != "relu":
        assert measured.l0 == pytest.approx(PARAMS.k, rel=0.2)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka", "jumprelu"])
def test_a_threshold_starts_where_k_latents_are_active_on_average(
    store: ActivationStore, tmp_path: Path, architecture: str
) -> None:
    run = training(store, tmp_path, **options(architecture))
    run._initialise()
    latents = run.sae.encode(run.sae.normalize(batch(store)).x)
    assert float((latents.values > 0).sum(1).float().mean()) == pytest.approx(PARAMS.k, rel=0.1)


def test_sparsity_weighs_more_from_step_to_step_until_its_share_is_over(store: ActivationStore, tmp_path: Path) -> None:
    run = training(store, tmp_path, **options("relu"), sparsity_warmup_share=0.5)
    run._initialise()
    seen = []
    for _ in range(STEPS):
        seen.append(run._sparsity_weight())
        run._step += 1
    assert seen == pytest.approx([0.05 * min(1, step / 16) for step in range(STEPS)])


def test_the_average_is_that_of_the_weights_after_each_step(store: ActivationStore, tmp_path: Path) -> None:
    run = training(store, tmp_path, ema=0.8, epochs=1)
    seen = []
    run._optimizer.register_step_post_hook(lambda *_: seen.append(run.sae.encoder.detach().clone()))
    run.run()
    shares = torch.tensor([0.8**age for age in reversed(range(len(seen)))])
    expected = sum(share * each for share, each in zip(shares / shares.sum(), seen, strict=True))
    torch.testing.assert_close(run.sae.encoder.detach(), expected)
    torch.testing.assert_close(run.sae.decoder.norm(dim=1), torch.ones(PARAMS.latents))


def test_whitened_dimensions_have_mean_0_and_variance_1(store: ActivationStore, tmp_path: Path) -> None:
    run = training(store, tmp_path, normalize="whiten")
    run._initialise()
    x = run.sae.normalize(next(store.batches("train", 4096, seed=9))).x
    torch.testing.assert_close(x.mean(0), torch.zeros(store.d_model), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.var(0), torch.ones(store.d_model), atol=1e-4, rtol=0)


def test_the_encoder_is_scaled_so_that_unit_vectors_come_back_at_unit_length(
    store: ActivationStore, tmp_path: Path
) -> None:
    run = training(store, tmp_path, latents=512, k=64)
    run._initialise()
    unit = torch.nn.functional.normalize(torch.randn(1000, store.d_model), dim=1)
    with torch.no_grad():
        back = run.sae.decode(run.sae.encode(unit + run.sae.pre_bias)) - run.sae.pre_bias
    assert back.norm(dim=1).mean() == pytest.approx(1, abs=0.03)
    assert (run.sae.encoder.norm(dim=1) < 0.9).all()  # rows of length 1 would overshoot


def test_decoder_rows_stay_at_length_1(store: ActivationStore, tmp_path: Path) -> None:
    run = training(store, tmp_path)
    run.run()
    torch.testing.assert_close(run.sae.decoder.norm(dim=1), torch.ones(PARAMS.latents))


def test_the_decoders_gradient_does_not_change_the_length_of_rows(store: ActivationStore, tmp_path: Path) -> None:
    run = training(store, tmp_path)
    run._initialise()
    seen = []
    run._optimizer.register_step_pre_hook(lambda *_: seen.append((run.sae.decoder.grad * run.sae.decoder).sum(1)))
    run._train_step(batch(store))
    torch.testing.assert_close(seen[0], torch.zeros(PARAMS.latents), atol=1e-6, rtol=0)


def test_the_step_has_the_gradient_of_the_dense_formula(store: ActivationStore, tmp_path: Path) -> None:
    run = training(store, tmp_path, latents=512)
    run._initialise()
    sae = run.sae
    run._tokens_since_fired[:] = 2000  # those that do not fire in this batch stay dead
    x = sae.normalize(batch(store)).x
    centered = x - sae.pre_bias
    pre = centered @ sae.encoder.T + sae.latent_bias
    top = pre.topk(PARAMS.k)
    latents = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    error = x - latents @ sae.decoder - sae.pre_bias
    fired = (latents > 0).any(0)
    dead = run._tokens_since_fired + 256 > PARAMS.dead_tokens
    dead &= ~fired
    dead_pre = pre.masked_fill(~dead, -torch.inf).topk(min(PARAMS.aux_k, int(dead.sum())))
    aux = torch.zeros_like(pre).scatter(1, dead_pre.indices, dead_pre.values.relu()) @ sae.decoder
    target = error.detach()
    aux_loss = (target - aux).square().mean() / (target - target.mean(0)).square().mean()
    loss = error.square().mean() / run._variance + PARAMS.aux_weight * aux_loss
    expected = torch.autograd.grad(loss, (sae.encoder, sae.latent_bias, sae.pre_bias))
    ours = []
    run._optimizer.register_step_pre_hook(
        lambda *_: ours.extend(each.grad.clone() for each in (sae.encoder, sae.latent_bias, sae.pre_bias))
    )
    losses = run._train_step(batch(store))
    assert dead.any()
    torch.testing.assert_close(losses.aux, aux_loss)
    for each, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(each, wanted, rtol=1e-3, atol=1e-6)


def test_the_aux_loss_trains_the_encoder_of_dead_latents(store: ActivationStore, tmp_path: Path) -> None:
    run = training(store, tmp_path)
    run._initialise()
    run._tokens_since_fired[:4] = 2000
    x = run.sae.normalize(batch(store)).x
    error = torch.randn_like(x)
    (grad,) = torch.autograd.grad(run._aux_loss(x, error), run.sae.encoder)
    assert (grad[:4].norm(dim=1) > 0).all()
    assert (grad[4:] == 0).all()


def test_nothing_is_lost_when_no_latent_is_dead_or_nothing_is_left_to_explain(
    store: ActivationStore, tmp_path: Path
) -> None:
    run = training(store, tmp_path)
    run._initialise()
    x = run.sae.normalize(batch(store)).x
    assert run._aux_loss(x, torch.randn_like(x)) == 0
    run._tokens_since_fired[:4] = 2000
    run.sae.latent_bias.data[:4] = -100  # their values are 0
    assert run._aux_loss(x, torch.zeros_like(x)) == 0


def test_a_latent_is_dead_after_as_many_tokens_without_firing(store: ActivationStore, tmp_path: Path) -> None:
    run = training(store, tmp_path)
    run._initialise()
    with torch.no_grad():
        run.sae.latent_bias[:5] = -100
    for step in range(1, 6):
        run._count_firing(run.sae.encode(run.sae.normalize(batch(store)).x))
        assert (run._tokens_since_fired[:5] == 256 * step).all()
        assert (run._tokens_since_fired[5:] == 0).any()
    assert (run._tokens_since_fired > PARAMS.dead_tokens)[:5].all()


def test_a_store_that_is_smaller_than_a_batch_is_an_error_that_says_how_large_it_is(
    store: ActivationStore, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"sae\.batch_size: 5000: the store holds 4096 activations"):
        training(store, tmp_path, batch_size=5000)


def test_the_learning_rate_rises_stays_and_falls_to_nearly_zero() -> None:
    shares = [learning_rate_share(PARAMS, step, 100) for step in range(100)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(shares[5:80]) == {1.0}
    assert shares[80:] == pytest.approx([1 - each / 20 for each in range(20)])


@given(seed=st.integers(0, 99), rows=st.integers(3, 50))
def test_no_nearby_point_has_a_smaller_sum_of_distances_than_the_geometric_median(seed: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    median = geometric_median(x)
    least = (x - median).norm(dim=1).sum()
    for _ in range(20):
        near = median + 0.05 * torch.randn(3, generator=generator, dtype=torch.float64)
        assert (x - near).norm(dim=1).sum() > least - 1e-3


def test_one_outlier_hardly_moves_the_geometric_median() -> None:
    x = torch.randn(1000, 3)
    moved = geometric_median(torch.cat([x, torch.full((1, 3), 1e6)])) - geometric_median(x)
    assert moved.norm() < 0.01
