from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cocomix.activations.store import ActivationStore
from cocomix.params import SaeParams
from cocomix.plumbing import interrupt
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.interrupt import Interrupted
from cocomix.plumbing.progress import Progress
from cocomix.sae.learner import Learner, geometric_median, learning_rate_share
from cocomix.sae.quality import reconstruction
from cocomix.sae.training import SaeTraining, Wanted
from tests.activations.conftest import Setting, but
from tests.training.test_whole_windows import Waits

PARAMS = SaeParams(
    latents=32, k=3, epochs=2, batch_size=256, learning_rate=3e-3, aux_k=4, dead_tokens=1000, checkpoint_every=5
)
STEPS = 32


def training(store: ActivationStore, folder: Path, **changes: Any) -> SaeTraining:
    return SaeTraining([Wanted(store, PARAMS.model_copy(update=changes))], folder)


def trained(run: SaeTraining) -> Learner:
    run.run()
    return run.learners[0]


def learner(store: ActivationStore, **changes: Any) -> Learner:
    found = Learner(PARAMS.model_copy(update=changes), store.site, store.d_model, STEPS)
    found.initialise(next(store.batches("train", 4096, seed=PARAMS.seed)))
    return found


def batch(store: ActivationStore) -> Tensor:
    return next(store.batches("train", 256, seed=9))


def not_fired(run: Learner, latents: slice) -> None:
    """Some latents have not fired in 2000 tokens, of 2048 so far."""
    run.step = 8
    run._tokens_since_fired[latents] = 2000


def test_training_explains_variance(store: ActivationStore, tmp_path: Path) -> None:
    curve = trained(training(store, tmp_path, epochs=6, learning_rate=1e-2)).curve
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
    whole = trained(training(store, tmp_path / "whole", dead_tokens=300, **changes))
    advance = Progress.advance

    def stop(self: Progress, amount: int, **shown: Any) -> None:
        advance(self, amount, **shown)
        if stopped.learners[0].step == stop_after:
            raise Interrupted(interrupt.signal.SIGTERM)

    monkeypatch.setattr(Progress, "advance", stop)
    stopped = training(store, tmp_path / "stopped", dead_tokens=300, **changes)
    with pytest.raises(Interrupted):
        stopped.run()
    monkeypatch.setattr(Progress, "advance", advance)
    resumed = trained(training(store, tmp_path / "stopped", dead_tokens=300, **changes))
    assert resumed.curve == whole.curve
    assert len(whole.curve) == STEPS
    torch.testing.assert_close(resumed.finish().state_dict(), whole.finish().state_dict(), rtol=0, atol=0)


def test_a_process_killed_between_checkpoints_repeats_the_steps_since_the_last(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(training(store, tmp_path / "whole"))
    learn = Learner.learn

    def die(self: Learner, x: Tensor) -> None:
        if self.step == 13:
            raise KeyboardInterrupt  # no checkpoint is written
        learn(self, x)

    monkeypatch.setattr(Learner, "learn", die)
    with pytest.raises(KeyboardInterrupt):
        training(store, tmp_path / "killed").run()
    monkeypatch.setattr(Learner, "learn", learn)
    resumed = trained(training(store, tmp_path / "killed"))
    torch.testing.assert_close(resumed.sae.state_dict(), whole.sae.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_explains_held_out_variance_with_about_k_latents(
    store: ActivationStore, tmp_path: Path, architecture: str
) -> None:
    run = trained(training(store, tmp_path, epochs=6, learning_rate=1e-2, **options(architecture)))
    measured = reconstruction(run.finish(), store)
    assert measured.fvu < 0.5
    if architecture != "relu":
        assert measured.l0 == pytest.approx(PARAMS.k, rel=0.2)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka", "jumprelu"])
def test_a_threshold_starts_where_k_latents_are_active_on_average(store: ActivationStore, architecture: str) -> None:
    run = learner(store, **options(architecture))
    latents = run.sae.encode(run.sae.normalize(batch(store)).x)
    assert float((latents.values > 0).sum(1).float().mean()) == pytest.approx(PARAMS.k, rel=0.1)


def test_autoencoders_trained_in_one_pass_are_those_trained_alone(store: ActivationStore, tmp_path: Path) -> None:
    wanted = [
        PARAMS,
        PARAMS.model_copy(update={"latents": 64, "k": 5}),
        PARAMS.model_copy(update={"ema": 0.9}),
    ]
    together = SaeTraining([Wanted(store, each) for each in wanted], tmp_path / "together")
    together.run()
    for number, params in enumerate(wanted):
        alone = trained(SaeTraining([Wanted(store, params)], tmp_path / str(number)))
        assert together.learners[number].curve == alone.curve
        found = together.learners[number].finish().state_dict()
        torch.testing.assert_close(found, alone.finish().state_dict(), rtol=0, atol=0)


def test_autoencoders_of_two_sites_each_learn_their_own_activations(setting: Setting, tmp_path: Path) -> None:
    artifact = setting.collect(but(sites=["resid_post_2", "mlp_out_1"]))
    wanted = [
        Wanted(ActivationStore(artifact, site), PARAMS.model_copy(update={"batch_size": 64, "latents": latents}))
        for site, latents in (("resid_post_2", 48), ("mlp_out_1", 64), ("mlp_out_1", 32))
    ]
    together = SaeTraining(wanted, tmp_path / "together")
    together.run()
    for number, (each, learner) in enumerate(zip(wanted, together.learners, strict=True)):
        alone = trained(SaeTraining([each], tmp_path / str(number)))
        torch.testing.assert_close(learner.sae.state_dict(), alone.sae.state_dict(), rtol=0, atol=0)


def test_shares_of_a_batch_have_one_size_whatever_the_number_of_processes(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training(store, tmp_path)
    seen: list[Tensor] = []
    monkeypatch.setattr(run.learners[0], "learn", seen.append)
    for rank in range(3):
        monkeypatch.setattr("cocomix.sae.training.runtime", lambda rank=rank: SimpleNamespace(rank=rank, world_size=3))
        run._learn({store.site: torch.arange(256)[:, None]})
    assert [len(each) for each in seen] == [85, 85, 85]
    assert len(torch.cat(seen).unique()) == 255


def test_sparsity_weighs_more_from_step_to_step_until_its_share_is_over(store: ActivationStore) -> None:
    run = learner(store, **options("relu"), sparsity_warmup_share=0.5)
    seen = []
    for _ in range(STEPS):
        seen.append(run._sparsity_weight())
        run.step += 1
    assert seen == pytest.approx([0.05 * min(1, step / 16) for step in range(STEPS)])


def test_a_threshold_of_jumprelu_does_not_fall_below_0(store: ActivationStore) -> None:
    run = learner(store, **options("jumprelu"), warmup_share=0.0, learning_rate=1.0)
    run.sae.threshold.data.fill_(1e-3)
    below = list[int]()
    run._optimizer.register_step_post_hook(lambda *_: below.append(int((run.sae.threshold < 0).sum())))
    run.learn(batch(store))
    assert below[0] > 0
    assert int((run.sae.threshold < 0).sum()) == 0


def test_the_average_is_that_of_the_weights_after_each_step(store: ActivationStore, tmp_path: Path) -> None:
    whole = training(store, tmp_path, ema=0.8, epochs=1)
    (run,) = whole.learners
    seen = []
    run._optimizer.register_step_post_hook(lambda *_: seen.append(run.sae.encoder.detach().clone()))
    whole.run()
    run.finish()
    shares = torch.tensor([0.8**age for age in reversed(range(len(seen)))])
    expected = sum(share * each for share, each in zip(shares / shares.sum(), seen, strict=True))
    torch.testing.assert_close(run.sae.encoder.detach(), expected)
    torch.testing.assert_close(run.sae.decoder.norm(dim=1), torch.ones(PARAMS.latents))


def test_whitened_dimensions_have_mean_0_and_variance_1(store: ActivationStore) -> None:
    run = learner(store, normalize="whiten")
    x = run.sae.normalize(next(store.batches("train", 4096, seed=9))).x
    torch.testing.assert_close(x.mean(0), torch.zeros(store.d_model), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.var(0), torch.ones(store.d_model), atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_normalisation_the_same_is_learned_at_any_scale(store: ActivationStore, architecture: str) -> None:
    params = PARAMS.model_copy(update={"normalize": "none", **options(architecture)})
    x = next(store.batches("train", 1024, seed=0))
    found = []
    for scale in (1.0, 2.0**-10, 2.0**10):
        run = Learner(params, store.site, store.d_model, STEPS)
        run.initialise(x * scale)
        for batch in x.split(256):
            run.learn(batch * scale)
        folded = run.finish().folded()
        assert folded.config.normalize == "none"
        found.append((run.curve, folded(x * scale) / scale))
    for curve, rebuilt in found[1:]:
        assert curve == found[0][0]
        torch.testing.assert_close(rebuilt, found[0][1], rtol=1e-3, atol=1e-3)


def test_the_encoder_is_scaled_so_that_unit_vectors_come_back_at_unit_length(store: ActivationStore) -> None:
    run = learner(store, latents=512, k=64)
    unit = torch.nn.functional.normalize(torch.randn(1000, store.d_model), dim=1)
    with torch.no_grad():
        back = run.sae.decode(run.sae.encode(unit + run.sae.pre_bias)) - run.sae.pre_bias
    assert back.norm(dim=1).mean() == pytest.approx(1, abs=0.03)
    assert (run.sae.encoder.norm(dim=1) < 0.9).all()  # rows of length 1 would overshoot


def test_decoder_rows_stay_at_length_1(store: ActivationStore, tmp_path: Path) -> None:
    run = trained(training(store, tmp_path))
    torch.testing.assert_close(run.sae.decoder.norm(dim=1), torch.ones(PARAMS.latents))


def test_the_decoders_gradient_does_not_change_the_length_of_rows(store: ActivationStore) -> None:
    run = learner(store)
    seen = []
    run._optimizer.register_step_pre_hook(lambda *_: seen.append((run.sae.decoder.grad * run.sae.decoder).sum(1)))
    run.learn(batch(store))
    torch.testing.assert_close(seen[0], torch.zeros(PARAMS.latents), atol=1e-6, rtol=0)


def test_the_step_has_the_gradient_of_the_dense_formula(store: ActivationStore) -> None:
    run = learner(store, latents=512)
    sae = run.sae
    not_fired(run, slice(None))  # those that do not fire in this batch stay dead
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
    run.learn(batch(store))
    assert dead.any()
    assert run.curve[-1].aux == pytest.approx(aux_loss.item(), rel=1e-5)
    for each, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(each, wanted, rtol=1e-3, atol=1e-6)


def test_the_aux_loss_trains_the_encoder_of_dead_latents(store: ActivationStore) -> None:
    run = learner(store)
    not_fired(run, slice(4))
    x = run.sae.normalize(batch(store)).x
    error = torch.randn_like(x)
    (grad,) = torch.autograd.grad(run._aux_loss(x, error), run.sae.encoder)
    assert (grad[:4].norm(dim=1) > 0).all()
    assert (grad[4:] == 0).all()


def test_dead_latents_that_weigh_nothing_leave_no_trace(store: ActivationStore) -> None:
    run = learner(store, aux_weight=0.0)
    not_fired(run, slice(4))
    with torch.no_grad():
        run.sae.latent_bias[:4] = torch.nan  # what the dead would reconstruct is no number
    x = run.sae.normalize(batch(store)).x
    assert run._aux_loss(x, torch.randn_like(x)) == 0


def test_nothing_is_lost_when_no_latent_is_dead_or_nothing_is_left_to_explain(store: ActivationStore) -> None:
    run = learner(store)
    x = run.sae.normalize(batch(store)).x
    assert run._aux_loss(x, torch.randn_like(x)) == 0
    not_fired(run, slice(4))
    for error in (torch.zeros_like(x), torch.ones_like(x)):  # no variance
        loss = run._aux_loss(x, error)
        assert loss == 0
        gradients = torch.autograd.grad(loss, (run.sae.encoder, run.sae.decoder))
        assert not any(each.any() for each in gradients)


def test_a_step_in_which_no_latent_can_be_dead_yet_does_not_wait_for_a_gpu(store: ActivationStore) -> None:
    run = Learner(PARAMS, store.site, store.d_model, steps=10_000)  # so many that this one adds no row to the curve
    x = batch(store)
    run.initialise(x)
    with Waits() as waits:
        run.learn(x)
    assert waits.seen == []
    not_fired(run, slice(4))
    with Waits() as waits:
        run.learn(x)
    assert waits.seen == ["nonzero"]


@pytest.mark.parametrize(
    ("changes", "said"), [({}, 1), ({"dead_tokens": STEPS * 256 - 1}, 0), ({"aux_weight": 0.0}, 0)], ids=str
)
def test_a_training_too_short_for_a_latent_to_die_says_so(
    store: ActivationStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: int
) -> None:
    training(store, tmp_path, **({"dead_tokens": STEPS * 256} | changes))
    assert capsys.readouterr().err.count("sae.dead_tokens: 8,19") == said


def test_a_latent_is_dead_after_as_many_tokens_without_firing(store: ActivationStore) -> None:
    run = learner(store)
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
