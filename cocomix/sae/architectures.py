"""The training-time encoding of each architecture: its active latents, and its loss besides reconstruction."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cocomix.plumbing import distributed
from cocomix.sae.autoencoder import Latents, SparseAutoencoder
from cocomix.sae.sparse import batch_top_indices, indices_above, kth_largest, partial_sums

BANDWIDTH = 0.01
"""Bandwidth of jumprelu's kernel, relative to the norm of a typical activation."""
PAST = 0.9
"""Weight of earlier batches in the moving average of batchtopk's threshold."""


class Encoded(NamedTuple):
    """A batch of latents, with gradients."""

    latents: Latents
    loss: Tensor
    """The architecture's own loss, added to the fraction of variance unexplained: []."""


class BatchTop(NamedTuple):
    """The latents of a batch, of which k per row are active on average."""

    latents: Latents
    least: Tensor
    """The smallest active value: []."""


def encode_to_train(
    sae: SparseAutoencoder, x: Tensor, variance: Tensor, sparsity_weight: float, prefixes: list[int]
) -> Encoded:
    """Encode normalised activations [n, d_model].

    Args:
        variance: mean variance of the dimensions of `x`, [].
        sparsity_weight, prefixes: see `SaeParams`.
    """
    match sae.config.architecture:
        case "topk" | "abstopk":
            return Encoded(sae.encode(x), x.new_zeros(()))
        case "relu":
            latents = sae.encode(x)
            # The rows of the decoder have unit norm, so the L1 need not be weighted by it.
            l1 = latents.values.sum(1).mean() / (sae.config.d_model * variance).sqrt()
            return Encoded(latents, sparsity_weight * l1)
        case "jumprelu":
            latents, l0 = _jump(sae, x - sae.pre_bias, BANDWIDTH * (sae.config.d_model * variance).sqrt())
            # The value is the mean over all processes; the gradient is this process's own.
            l0 = l0 + (distributed.average(l0.detach().clone()) - l0.detach())
            return Encoded(latents, sparsity_weight * (l0 / sae.config.k - 1).square())
        case "batchtopk" | "matryoshka":
            latents, least = batch_top(sae, x - sae.pre_bias)
            with torch.no_grad():
                sae.threshold.lerp_(distributed.average(least), 1 - PAST)
            return Encoded(latents, _prefix_errors(sae, x, latents, prefixes) / variance)


def batch_top(sae: SparseAutoencoder, centered: Tensor) -> BatchTop:
    """Select the n * k largest latents of a batch, positive ones only.

    Args:
        centered: normalised activations without the pre-bias, [n, d_model].
    """
    k = sae.config.k
    indices, taken = batch_top_indices(centered, sae.encoder, sae.latent_bias, k)
    values = sae.pre_activations(centered, indices)
    least = kth_largest(values.detach()[taken], len(centered) * k).clamp(min=0)
    return BatchTop(Latents(indices, values * (taken & (values >= least))), least)


def _prefix_errors(sae: SparseAutoencoder, x: Tensor, latents: Latents, prefixes: list[int]) -> Tensor:
    """The sum over `prefixes` of the mean squared error of decoding only the first so many latents: []."""
    if not prefixes:
        return x.new_zeros(())
    parts = partial_sums(latents.values, sae.decoder, latents.indices, prefixes)
    return (x[:, None] - parts.cumsum(1) - sae.pre_bias).square().mean((0, 2)).sum()


def _jump(sae: SparseAutoencoder, centered: Tensor, bandwidth: Tensor) -> tuple[Latents, Tensor]:
    """The latents above their thresholds, and their mean number per activation (L0).

    Only latents above their threshold, or less than half a bandwidth below it, have a value or a gradient.
    """
    over = sae.latent_bias - sae.threshold + bandwidth / 2
    indices, taken = indices_above(centered, sae.encoder, over, least=sae.config.k)
    before, threshold = sae.pre_activations(centered, indices), sae.threshold[indices]
    values: Tensor = _JumpRelu.apply(before, threshold, bandwidth)  # type: ignore[no-untyped-call]
    active: Tensor = _Step.apply(before, threshold, bandwidth)  # type: ignore[no-untyped-call]
    return Latents(indices, values * taken), (active * taken).sum(1).mean()


class _JumpRelu(torch.autograd.Function):
    """`x` above its threshold, else 0, with the pseudo-derivative of Rajamanoharan et al. 2024, Eq. 11."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, bandwidth: Tensor) -> Tensor:
        ctx.save_for_backward(x, threshold, bandwidth)
        return x * (x > threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, threshold, bandwidth = ctx.saved_tensors
        return grad * (x > threshold), -threshold * grad * _kernel(x, threshold, bandwidth), None


class _Step(torch.autograd.Function):
    """Whether `x` is above its threshold, with the pseudo-derivative of Eq. 12."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, bandwidth: Tensor) -> Tensor:
        ctx.save_for_backward(x, threshold, bandwidth)
        return (x > threshold).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:  # type: ignore[override]
        return None, -grad * _kernel(*ctx.saved_tensors), None


def _kernel(x: Tensor, threshold: Tensor, bandwidth: Tensor) -> Tensor:
    """The rectangular kernel of area 1 around the threshold."""
    return ((x - threshold).abs() < bandwidth / 2) / bandwidth
