from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cocomix.params import Architecture
from cocomix.sae.autoencoder import SaeConfig, SparseAutoencoder


def autoencoder(**changes: Any) -> SparseAutoencoder:
    shape = {"d_model": 6, "latents": 20, "k": 4, "normalize": "token", "layer": 1}
    sae = SparseAutoencoder(SaeConfig(**(shape | changes)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in sae.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return sae


def dense(sae: SparseAutoencoder, x: Tensor) -> Tensor:
    """The reconstruction as published, with the whole dictionary."""
    mean, std = torch.zeros(len(x), 1), torch.ones(len(x), 1)
    if sae.config.normalize == "token":
        mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    epsilon = 1e-5 * (sae.config.normalize == "token")
    pre = ((x - mean) / (std + epsilon) - sae.pre_bias) @ sae.encoder.T + sae.latent_bias
    top = pre.topk(sae.config.k)
    latents = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    return (latents @ sae.decoder + sae.pre_bias) * std + mean


@given(
    normalize=st.sampled_from(["none", "token"]), k=st.integers(1, 20), seed=st.integers(0, 99), rows=st.integers(1, 5)
)
def test_a_reconstruction_is_that_of_the_dense_formula_with_the_same_gradients(
    normalize: str, k: int, seed: int, rows: int
) -> None:
    sae = autoencoder(normalize=normalize, k=k)
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))
    weights = list(sae.parameters())
    fused, plain = sae(x), dense(sae, x)
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)
    slope = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed + 1))
    for ours, expected in zip(
        torch.autograd.grad(fused, weights, slope), torch.autograd.grad(plain, weights, slope), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_autocast_changes_no_latent_and_no_reconstruction(architecture: Architecture) -> None:
    sae = autoencoder(d_model=32, latents=64, k=16, architecture=architecture)
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(1))
    outside, decoded = sae.encode(x), sae(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = sae.encode(x)
        torch.testing.assert_close(sae(x), decoded, rtol=0, atol=0)
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)


def test_normalised_rows_have_mean_0_and_unbiased_variance_1() -> None:
    x = 7 + 3 * torch.randn(5, 6)
    normalized = autoencoder().normalize(x)
    np.testing.assert_allclose(normalized.x.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(normalized.x.var(1), 1, atol=1e-4)
    torch.testing.assert_close(normalized.x * (normalized.std + 1e-5) + normalized.mean, x)


def test_the_way_back_multiplies_by_the_standard_deviation_without_the_epsilon_as_in_the_released_code() -> None:
    x = 3 + 1e-3 * torch.randn(5, 6, dtype=torch.float64)
    sae = autoencoder().double()
    normalized = sae.normalize(x)
    std = x.std(1, keepdim=True)
    torch.testing.assert_close(normalized.std, std, rtol=1e-12, atol=0)
    torch.testing.assert_close(normalized.x, (x - x.mean(1, keepdim=True)) / (std + 1e-5), rtol=1e-9, atol=1e-12)
    back = sae.decode(sae.encode(normalized.x)) * std + x.mean(1, keepdim=True)
    torch.testing.assert_close(sae(x), back, rtol=1e-12, atol=1e-15)


def test_latents_are_not_negative_and_at_most_k() -> None:
    latents = autoencoder(k=20).encode(torch.randn(50, 6))
    assert (latents.values >= 0).all()
    assert (latents.values == 0).any()
    assert latents.indices.shape == (50, 20)


@pytest.mark.parametrize("normalize", ["none", "token", "whiten"])
def test_a_saved_autoencoder_is_loaded_as_it_was(tmp_path: Path, normalize: str) -> None:
    sae = autoencoder(normalize=normalize)
    sae.save(tmp_path)
    loaded = SparseAutoencoder.load(tmp_path)
    assert loaded.config == sae.config
    x = torch.randn(5, 6)
    torch.testing.assert_close(loaded(x), sae(x), rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "batchtopk", "matryoshka"])
@pytest.mark.parametrize("rows", [1, 7])
def test_latents_above_a_threshold_are_those_of_the_dense_formula(architecture: str, rows: int) -> None:
    sae = autoencoder(architecture=architecture)
    if architecture != "relu":
        sae.threshold.data = torch.rand(20, generator=torch.Generator().manual_seed(5))
    x = torch.randn(rows, 6)
    before = (x - sae.pre_bias) @ sae.encoder.T + sae.latent_bias
    expected = before * (before > sae.threshold)
    latents = sae.encode(x)
    torch.testing.assert_close(torch.zeros(rows, 20).scatter_add(1, latents.indices, latents.values), expected)
    torch.testing.assert_close(sae.decode(latents), expected @ sae.decoder + sae.pre_bias, rtol=1e-4, atol=1e-4)


@given(k=st.integers(1, 20), seed=st.integers(0, 99))
def test_signed_latents_are_the_largest_of_either_sign(k: int, seed: int) -> None:
    sae = autoencoder(architecture="abstopk", k=k)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
    before = (x - sae.pre_bias) @ sae.encoder.T + sae.latent_bias
    top = before.abs().topk(k).indices
    expected = torch.zeros_like(before).scatter(1, top, before.gather(1, top))
    latents = sae.encode(x)
    torch.testing.assert_close(torch.zeros(5, 20).scatter(1, latents.indices, latents.values), expected)
    concepts = sae.as_concepts(latents)
    assert concepts.indices.max() < sae.config.concepts == 40
    torch.testing.assert_close(concepts.indices % 20, latents.indices)
    torch.testing.assert_close(concepts.indices >= 20, latents.values < 0)


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "batchtopk"])
def test_the_latents_of_a_row_do_not_depend_on_the_rows_beside_it(architecture: str) -> None:
    sae = autoencoder(architecture=architecture)
    x = torch.randn(9, 6)
    together, alone = sae(x), torch.cat([sae(row[None]) for row in x])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_a_folded_scale_changes_no_latent_and_no_reconstruction(architecture: str) -> None:
    sae = autoencoder(normalize="whiten", architecture=architecture)
    sae.mean.uniform_(-5, 5)
    sae.std.uniform_(0.1, 10)
    x = torch.randn(9, 6) * sae.std + sae.mean
    folded = sae.folded()
    assert folded.config.normalize == "none"
    latents, same = sae.encode(sae.normalize(x).x), folded.encode(x)
    torch.testing.assert_close(latents.values.sort(1).values, same.values.sort(1).values, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(sae(x), folded(x), rtol=1e-3, atol=1e-3)
