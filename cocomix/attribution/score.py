"""Attribution: which of a position's active latents matter for the text that follows (paper Eq. 1, Fig. 6a)."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.base import residual_at, residual_edited
from cocomix.device import autocast
from cocomix.sae.autoencoder import Latents, SparseAutoencoder
from cocomix.sae.sparse import dots

Sign = Literal["released", "helpful", "absolute"]


class Gradient(NamedTuple):
    """The residual stream after a layer, and the gradient of the loss at it; both [n, d_model] float32."""

    residual: Tensor
    gradient: Tensor


class Labelled(NamedTuple):
    """The concepts of each row, best first."""

    concepts: Tensor
    """int64 [n, k_attr]; -1: no (further) concept has the wanted sign."""
    scores: Tensor
    """[n, k_attr]; 0 where there is no concept."""


def loss_gradient(model: PreTrainedModel, ids: Tensor, layer: int) -> Gradient:
    """The residual stream after `layer` blocks, and the gradient of each window's summed next-token loss.

    One forward pass, and a backward pass through the blocks above only: the parameters are frozen, so that below
    the leaf at `layer` autograd has nothing to do, and above it no weight's gradient is computed. A window's last
    position predicts nothing and nothing reads it: its gradient is exactly 0.

    Args:
        ids: [windows, context].
    """
    leaf: list[Tensor] = []

    def detach(residual: Tensor) -> Tensor:
        leaf.append(residual.detach().requires_grad_())
        return leaf[0]

    with torch.enable_grad(), autocast(), residual_edited(model, layer, detach):
        logits = model(input_ids=ids, use_cache=False).logits
    (gradient,) = torch.autograd.grad(logits, leaf, cross_entropy_slope(logits.detach(), ids))
    return Gradient(leaf[0].detach().flatten(0, 1).float(), gradient.flatten(0, 1).float())


def cross_entropy_slope(logits: Tensor, ids: Tensor) -> Tensor:
    """The gradient of the summed next-token cross-entropy at the logits, softmax minus one-hot.

    In one pass, a window at a time: autograd's way through log-softmax is 3 times as much work, in 3 more tensors of
    [windows, context, vocab] float32.

    Args:
        logits: [windows, context, vocab].
        ids: int64 [windows, context].

    Returns:
        [windows, context, vocab] in the type of `logits`; 0 at the last position.
    """
    slope = torch.empty_like(logits)
    for window, (scores, tokens) in enumerate(zip(logits, ids, strict=True)):
        probabilities = scores.softmax(-1, dtype=torch.float32)
        probabilities[:-1].scatter_add_(1, tokens[1:, None], probabilities.new_full((len(tokens) - 1, 1), -1.0))
        slope[window] = probabilities
        slope[window, -1] = 0
    return slope


@torch.no_grad()
def scores_of(sae: SparseAutoencoder, gradient: Gradient) -> tuple[Latents, Tensor]:
    """The active latents of each position, and what each adds to the loss to first order: [n, k].

    The score is the latent times the gradient of the loss with respect to it, through the decoder and the scale of
    the position. An inactive latent has the score 0.
    """
    normalized = sae.normalize(gradient.residual)
    latents = sae.encode(normalized.x)
    slopes = dots(gradient.gradient, sae.decoder, latents.indices)
    return latents, latents.values * slopes * normalized.std


@torch.no_grad()
def activations_of(model: PreTrainedModel, sae: SparseAutoencoder, ids: Tensor, layer: int) -> tuple[Latents, Tensor]:
    """The active latents of each position, and how active they are: [n, k]; the blocks above `layer` are not run.

    A window's last position predicts nothing, and the score of its latents is 0, as it is by the gradient.

    Args:
        ids: [windows, context].
    """
    with autocast():
        residual = residual_at(model, ids, layer)
    latents = sae.encode(sae.normalize(residual.flatten(0, 1).float()).x)
    scores = latents.values.view(*ids.shape, -1).clone()
    scores[:, -1] = 0
    return latents, scores.flatten(0, 1)


def strongest(latents: Latents, scores: Tensor, k_attr: int, sign: Sign) -> Labelled:
    """The concepts with the strongest scores of the wanted sign.

    Args:
        scores: [n, k], in the order of `latents`.
        sign: released: the largest scores, positive ones only: without them the loss would fall; helpful: the most
            negative ones: without them it would rise; absolute: either.
    """
    strength = {"released": scores, "helpful": -scores, "absolute": scores.abs()}[sign]
    best = strength.topk(k_attr, dim=1)
    none = best.values <= 0
    return Labelled(
        latents.indices.gather(1, best.indices).masked_fill(none, -1),
        scores.gather(1, best.indices).masked_fill(none, 0.0),
    )
