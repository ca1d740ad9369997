"""What each architecture does in training, against dense formulas."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cocomix.sae.architectures import BANDWIDTH, PAST, encode_to_train
from cocomix.sae.autoencoder import Latents, SparseAutoencoder
from tests.sae.test_autoencoder import autoencoder

VARIANCE = torch.tensor(2.0)


def rows(seed: int, count: int = 8) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def dense(sae: SparseAutoencoder, latents: Latents) -> Tensor:
    return torch.zeros(len(latents.values), sae.config.latents).scatter_add(1, latents.indices, latents.values)


def before(sae: SparseAutoencoder, x: Tensor) -> Tensor:
    return (x - sae.pre_bias) @ sae.encoder.T + sae.latent_bias


def assert_same_gradients(sae: SparseAutoencoder, ours: Tensor, plain: Tensor) -> None:
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    weights = list(sae.parameters())
    for each, expected in zip(
        torch.autograd.grad(ours, weights, allow_unused=True),
        torch.autograd.grad(plain, weights, allow_unused=True),
        strict=True,
    ):
        assert (each is None) == (expected is None)
        if each is not None:
            torch.testing.assert_close(each, expected, rtol=1e-3, atol=1e-3)


def loss(sae: SparseAutoencoder, x: Tensor, weight: float = 0.0, prefixes: Any = ()) -> Tensor:
    latents, own = encode_to_train(sae, x, VARIANCE, weight, list(prefixes))
    return (x - sae.decode(latents)).square().mean() + own


def error(sae: SparseAutoencoder, x: Tensor, values: Tensor) -> Tensor:
    return (x - values @ sae.decoder - sae.pre_bias).square().mean()


@given(seed=st.integers(0, 50), weight=st.floats(0, 3))
def test_relu_is_held_down_by_its_l1(seed: int, weight: float) -> None:
    sae, x = autoencoder(architecture="relu"), rows(seed)
    values = before(sae, x).relu()
    plain = error(sae, x, values) + weight * values.sum(1).mean() / (6 * VARIANCE).sqrt()
    assert_same_gradients(sae, loss(sae, x, weight), plain)


@given(seed=st.integers(0, 50), weight=st.floats(0, 3), threshold=st.floats(0, 2))
def test_jumprelu_has_the_pseudo_derivatives_of_the_dense_formula(seed: int, weight: float, threshold: float) -> None:
    sae, x = autoencoder(architecture="jumprelu"), rows(seed, 64)
    sae.threshold.data.fill_(threshold)
    width = BANDWIDTH * (6 * VARIANCE).sqrt()
    values = before(sae, x)
    active = (values > sae.threshold).float()
    kernel = ((values - sae.threshold).abs() < width / 2).detach() / width
    # The value of what is added is 0; its derivative by the threshold is Eq. 11 and 12.
    learn = sae.threshold.detach() - sae.threshold
    jumped = values * active + sae.threshold.detach() * kernel * learn
    l0 = (active + kernel * learn).sum(1).mean()
    plain = error(sae, x, jumped) + weight * (l0 / sae.config.k - 1).square()
    assert_same_gradients(sae, loss(sae, x, weight), plain)


@pytest.mark.parametrize(("share", "learns"), [(0.0049, True), (-0.0049, True), (0.0051, False), (-0.0051, False)])
def test_a_threshold_of_jumprelu_learns_from_what_is_within_half_a_percent_of_a_typical_norm(
    share: float, learns: bool
) -> None:
    sae, x = autoencoder(architecture="jumprelu"), rows(0, 1)
    typical = (6 * VARIANCE).sqrt()
    sae.threshold.data.copy_(before(sae, x)[0].detach() + share * typical)
    loss(sae, x, weight=1.0).backward()
    assert sae.threshold.grad is not None
    assert bool((sae.threshold.grad != 0).all()) == bool((sae.threshold.grad != 0).any()) == learns


@given(seed=st.integers(0, 50), k=st.integers(1, 10))
def test_batchtopk_keeps_the_largest_of_the_batch(seed: int, k: int) -> None:
    sae, x = autoencoder(architecture="batchtopk", k=k), rows(seed)
    sae.threshold.fill_(5.0)
    values = before(sae, x)
    least = values.flatten().topk(8 * k).values.min().clamp(min=0).detach()
    plain = error(sae, x, values * (values >= least))
    assert_same_gradients(sae, loss(sae, x), plain)
    torch.testing.assert_close(sae.threshold, (PAST * 5 + (1 - PAST) * least).expand(20))


@given(seed=st.integers(0, 50), prefixes=st.sets(st.integers(1, 19), min_size=1))
def test_matryoshka_reconstructs_by_its_first_latents_too(seed: int, prefixes: set[int]) -> None:
    sae, x = autoencoder(architecture="matryoshka"), rows(seed)
    values = before(sae, x)
    values = values * (values >= values.flatten().topk(8 * 4).values.min().clamp(min=0))
    first = [values * (torch.arange(20) < each) for each in sorted(prefixes)]
    plain = error(sae, x, values) + sum(error(sae, x, each) for each in first) / VARIANCE
    assert_same_gradients(sae, loss(sae, x, prefixes=sorted(prefixes)), plain)


@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_the_others_train_as_they_encode(architecture: str) -> None:
    sae, x = autoencoder(architecture=architecture), rows(0)
    latents, own = encode_to_train(sae, x, VARIANCE, 0.0, [])
    torch.testing.assert_close(dense(sae, latents), dense(sae, sae.encode(x)))
    assert own == 0
