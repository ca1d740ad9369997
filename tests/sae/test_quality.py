from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cocomix.activations.store import ActivationStore
from cocomix.artifact import Artifact
from cocomix.base import load_base
from cocomix.sae.autoencoder import SaeConfig, SparseAutoencoder
from cocomix.sae.quality import Splice, reconstruction, splice
from cocomix.sae.training import SaeTraining
from cocomix.tokens.windows import Tokens
from tests.conftest import CONTEXT
from tests.sae.test_training import PARAMS


@pytest.fixture(params=["none", "token"])
def trained(request: pytest.FixtureRequest, store: ActivationStore, tmp_path: Path) -> SparseAutoencoder:
    training = SaeTraining(store, PARAMS.model_copy(update={"normalize": request.param}), tmp_path / "sae")
    training.run()
    return training.sae.requires_grad_(False)


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
    np.testing.assert_allclose(measured.mean, x.mean(0), rtol=1e-5)


class Perfect(SparseAutoencoder):
    """Reconstructs without error."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_perfect_reconstruction_recovers_the_whole_loss(base_folder: Path, tokens_folder: Path) -> None:
    model = load_base(Artifact(base_folder), CONTEXT)
    sae = Perfect(SaeConfig(d_model=32, latents=8, k=2, normalize="token", layer=2))
    losses = splice(sae, model, Tokens(tokens_folder), torch.zeros(32))
    ids = torch.from_numpy(Tokens(tokens_folder).windows("validation").astype(np.int64))
    with torch.no_grad():
        assert losses.loss_base == pytest.approx(float(model(ids, labels=ids).loss), rel=1e-5)
    assert losses.loss_spliced == pytest.approx(losses.loss_base)
    assert losses.loss_zeroed != pytest.approx(losses.loss_base, rel=1e-3)
    assert losses.loss_recovered == pytest.approx(1)


def test_a_reconstruction_no_better_than_the_mean_recovers_nothing() -> None:
    assert Splice(loss_base=3.0, loss_spliced=5.0, loss_zeroed=5.0).loss_recovered == 0
