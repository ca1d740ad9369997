from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, zeros_like

from cocomix.activations.store import ActivationStore
from cocomix.base.hooks import residual_edited
from cocomix.base.loading import load_base
from cocomix.params import Location
from cocomix.plumbing import parts
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.runtime import runtime
from cocomix.sae.autoencoder import Latents, SaeConfig, SparseAutoencoder
from cocomix.sae.quality import Reconstruction, SplicedLosses, duplicates, reconstruction, spliced_losses
from cocomix.sae.training import SaeTraining, Wanted
from cocomix.tokens.windows import Tokens
from tests.activations.conftest import but
from tests.conftest import CONTEXT
from tests.sae.test_autoencoder import autoencoder
from tests.sae.test_training import PARAMS


@pytest.fixture(params=["none", "token", "whiten"])
def trained(request: pytest.FixtureRequest, store: ActivationStore, tmp_path: Path) -> SparseAutoencoder:
    training = SaeTraining([Wanted(store, PARAMS.model_copy(update={"normalize": request.param}))], tmp_path / "sae")
    training.run()
    return training.learners[0].finish()


def test_unexplained_variance_is_that_of_all_held_out_activations(
    trained: SparseAutoencoder, store: ActivationStore
) -> None:
    measured = reconstruction(trained, store)
    x = torch.cat(list(store.in_order("validation")))
    normalized = trained.normalize(x)
    latents = trained.encode(normalized.x)

    def fvu(x: Tensor, decoded: Tensor) -> float:
        return float((x - decoded).square().sum() / (x - x.mean(0)).square().sum())

    assert measured.fvu == pytest.approx(fvu(normalized.x, trained.decode(latents)), rel=1e-4)
    assert measured.fvu_raw == pytest.approx(fvu(x, trained(x)), rel=1e-4)
    assert measured.l0 == pytest.approx(float((latents.values > 0).sum(1).float().mean()))
    fires = torch.zeros(len(x), trained.config.latents).scatter(1, latents.indices, (latents.values > 0).float())
    torch.testing.assert_close(measured.rates, fires.mean(0))
    np.testing.assert_allclose(measured.mean, x.mean(0), rtol=1e-5)


def test_a_stopped_measurement_goes_on_to_the_same_figures(
    store: ActivationStore, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "SECONDS", -1.0)
    monkeypatch.setenv("COCOMIX_MICRO_BATCH", "5")
    runtime.cache_clear()
    model, tokens = load_base(Artifact(base_folder), CONTEXT), Tokens()
    narrow, wide = (
        SparseAutoencoder(SaeConfig(d_model=d, latents=8, k=2, layer=2, normalize="token")) for d in (16, 32)
    )
    calls, last = 0, 0

    def counted(sae: SparseAutoencoder, x: Tensor) -> Latents:
        nonlocal calls
        calls += 1
        if calls == last:
            raise KeyboardInterrupt
        return encode(sae, x)

    encode = SparseAutoencoder.encode
    monkeypatch.setattr(SparseAutoencoder, "encode", counted)
    for measure in (
        lambda kept: reconstruction(narrow, store, kept),
        lambda kept: spliced_losses(wide, model, tokens, torch.zeros(32), but(), kept),
    ):
        calls = last = 0
        whole = measure(None)
        every, calls, last = calls, 0, calls - 1
        assert every > 3
        with pytest.raises(KeyboardInterrupt):
            measure(tmp_path / "kept")
        calls = last = 0
        assert str(measure(tmp_path / "kept")) == str(whole)
        assert calls == 2


class Perfect(SparseAutoencoder):
    """Reconstructs without error."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_perfect_reconstruction_recovers_the_whole_loss(base_folder: Path, tokens_folder: Path) -> None:
    model = load_base(Artifact(base_folder), CONTEXT)
    sae = Perfect(SaeConfig(d_model=32, latents=8, k=2, normalize="token", layer=2))
    losses = spliced_losses(sae, model, Tokens(tokens_folder), torch.zeros(32), but())
    ids = torch.from_numpy(Tokens(tokens_folder).windows("validation").astype(np.int64))
    with torch.no_grad():
        assert losses.loss_base == pytest.approx(float(model(ids, labels=ids).loss), rel=1e-5)
    assert losses.loss_spliced == pytest.approx(losses.loss_base)
    assert losses.loss_mean_ablated != pytest.approx(losses.loss_base, rel=1e-3)
    assert losses.loss_recovered == pytest.approx(1)
    assert losses.kl_recovered == pytest.approx(1)


def test_a_reconstruction_no_better_than_the_mean_recovers_nothing() -> None:
    losses = SplicedLosses(loss_base=3.0, loss_spliced=5.0, loss_mean_ablated=5.0, kl_spliced=1.5, kl_mean_ablated=1.5)
    assert (losses.loss_recovered, losses.kl_recovered) == (0, 0)


@pytest.mark.parametrize("location", ["resid_post", "resid_mid", "attn_out", "mlp_out"])
def test_a_divergence_is_that_of_the_distributions(base_folder: Path, tokens_folder: Path, location: Location) -> None:
    model, tokens = load_base(Artifact(base_folder), CONTEXT), Tokens(tokens_folder)
    sae = autoencoder(d_model=32, latents=8, k=2, layer=2, location=location)
    ids = torch.from_numpy(tokens.windows("validation").astype(np.int64))
    with torch.no_grad():
        base = model(ids).logits[:, :-1].softmax(-1)
        with residual_edited(model, 2, lambda residual: sae(residual.flatten(0, 1)).view_as(residual), location):
            spliced = model(ids).logits[:, :-1].softmax(-1)
    divergence = (base * (base / spliced).log()).sum(-1).mean()
    assert spliced_losses(sae, model, tokens, torch.zeros(32), but()).kl_spliced == pytest.approx(
        float(divergence), rel=1e-3
    )


def test_positions_that_are_not_stored_stay_as_they_are(base_folder: Path, tokens_folder: Path) -> None:
    model, tokens = load_base(Artifact(base_folder), CONTEXT), Tokens(tokens_folder)
    sae = autoencoder(d_model=32, latents=8, k=2, layer=2)
    ids = torch.from_numpy(tokens.windows("validation").astype(np.int64))
    stored = (ids != 7)[..., None]
    stored[:, 0] = False
    measured = spliced_losses(sae, model, tokens, torch.zeros(32), but(drop_first=True, drop_tokens=[7]))
    edits = {measured.loss_spliced: lambda x: sae(x.flatten(0, 1)).view_as(x), measured.loss_mean_ablated: zeros_like}
    for loss, edit in edits.items():
        with torch.no_grad(), residual_edited(model, 2, lambda x, edit=edit: torch.where(stored, edit(x), x)):
            assert loss == pytest.approx(float(model(ids, labels=ids).loss), rel=1e-5)


def test_a_latent_is_counted_by_how_often_it_fires() -> None:
    rates = torch.tensor([0, 0.00005, 0.0002, 0.002, 0.02, 0.1, 0.11, 1])
    measured = Reconstruction(0.1, 0.1, 3.0, rates, torch.zeros(2))
    assert measured.firing == {"0": 1, "to 0.0001": 1, "to 0.001": 1, "to 0.01": 1, "to 0.1": 2, "to 1": 2}
    assert measured.dense_share == 2 / 8


@pytest.mark.parametrize("at_a_time", [1, 3, 100])
def test_duplicates_are_pairs_of_nearly_parallel_directions(at_a_time: int) -> None:
    sae = autoencoder(d_model=3, latents=5, k=1)
    sae.decoder.data = torch.tensor([[1, 0, 0], [2, 0.1, 0], [0, 1, 0], [-1, 0, 0], [3, 0, 0.2]])
    assert duplicates(sae, at_a_time) == 3
