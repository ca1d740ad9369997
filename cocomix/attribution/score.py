"""Attribution: which of a position's active latents matter for the text that follows (paper Eq. 1)."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.base import residual_edited
from cocomix.device import autocast
from cocomix.sae.autoencoder import Latents, SparseAutoencoder
from cocomix.sae.sparse import dots

Sign = Literal["released", "helpful", "absolute"]

DENSE_UP_TO = 4096
"""Latents up to which all of `gradient @ decoder.T` is faster than the k rows a position that are asked for."""


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
    the leaf at `layer` autograd has nothing to do, and above it no weight's gradient is computed.

    Args:
        ids: [windows, context].
    """
    leaf: list[Tensor] = []

    def detach(residual: Tensor) -> Tensor:
        leaf.append(residual.detach().requires_grad_())
        return leaf[0]

    with torch.enable_grad(), autocast(), residual_edited(model, layer, detach):
        logits = model(input_ids=ids, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    return Gradient(leaf[0].detach().flatten(0, 1).float(), gradient.flatten(0, 1).float())


@torch.no_grad()
def scores_of(sae: SparseAutoencoder, gradient: Gradient) -> tuple[Latents, Tensor]:
    """The active latents of each position, and what each adds to the loss to first order: [n, k].

    The score is the latent times the gradient of the loss with respect to it, through the decoder and the scale of
    the position. An inactive latent has the score 0.
    """
    normalized = sae.normalize(gradient.residual)
    latents = sae.encode(normalized.x)
    if sae.config.latents <= DENSE_UP_TO:
        with autocast():
            slopes = (gradient.gradient @ sae.decoder.T).gather(1, latents.indices).float()
    else:
        slopes = dots(gradient.gradient, sae.decoder, latents.indices)
    return latents, latents.values * slopes * normalized.std


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
