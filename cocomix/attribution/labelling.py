"""From token windows to labels: which of a position's latents matter for the text that follows (paper Eq. 1, Fig. 6a).

`label_windows` runs all steps; the functions that it calls follow in their order. A score is a latent's contribution to
the base model's loss: to first order (`gradient_scores`), integrated along the path from the activation without latents
to the activation with them (`integrated_scores`), or exact (`ablation.py`). The loss is that of the whole window
(`sequence`, as in the released code) or, for each position, of its next token alone (`next_token`, Eq. 1).
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.attribution.ablation import ablation_scores
from cocomix.attribution.labels import LARGEST_SCORE, Labels, label_type
from cocomix.attribution.positions_apart import KeysValues, keys_values, positions_apart
from cocomix.base.hooks import residual_at, residual_edited
from cocomix.params import AttributionParams, Scope, Sign
from cocomix.plumbing.device import autocast
from cocomix.sae.autoencoder import Latents, SparseAutoencoder
from cocomix.sae.sparse import dots, weighted_sum

DENSE_ROWS = 256
"""Positions that are scored at a time where the whole dictionary is scored."""


class LossGradient(NamedTuple):
    """The residual stream after a layer, and the loss's gradient with respect to it; both [n, d_model] float32."""

    residual: Tensor
    gradient: Tensor


class Strongest(NamedTuple):
    """The concepts with the strongest scores of each position, best first."""

    concepts: Tensor
    """int64 [n, k_attr]; -1: no (further) concept has the wanted sign."""
    scores: Tensor
    """[n, k_attr]; 0 where there is no concept."""


def label_windows(model: PreTrainedModel, sae: SparseAutoencoder, ids: Tensor, params: AttributionParams) -> Labels:
    """Label every position of some windows.

    Args:
        ids: int64 [windows, context].
    """
    ids = ids.to(model.device)
    if params.value == "pre_activation":
        gradient = loss_gradient(model, ids, sae.config.layer, params.scope)
        best = strongest_of_dictionary(sae, gradient, params.k_attr, params.sign)
    else:
        latents, latent_scores = score_latents(model, sae, ids, params)
        best = strongest(sae.as_concepts(latents), latent_scores, params.k_attr, params.sign)
    shape = (*ids.shape, params.k_attr)
    # -1 becomes the type's maximum.
    concepts = best.concepts.cpu().numpy().astype(label_type(sae.config.concepts)).reshape(shape)
    scores = best.scores.clamp(-LARGEST_SCORE, LARGEST_SCORE).half()
    return Labels(concepts, scores.cpu().numpy().reshape(shape))


def score_latents(
    model: PreTrainedModel, sae: SparseAutoencoder, ids: Tensor, params: AttributionParams
) -> tuple[Latents, Tensor]:
    """The active latents of each position, and their scores by `params.score`: [n, k].

    Args:
        ids: [windows, context]; n is windows * context.
    """
    match params.score:
        case "gradient":
            return gradient_scores(sae, loss_gradient(model, ids, sae.config.layer, params.scope))
        case "activation":
            return activation_scores(model, sae, ids)
        case "integrated":
            return integrated_scores(model, sae, ids, params.scope, params.integrated_steps)
        case "ablation":
            return ablation_scores(model, sae, ids, params.scope)


def loss_gradient(
    model: PreTrainedModel,
    ids: Tensor,
    layer: int,
    scope: Scope = "sequence",
    removed: Tensor | None = None,
    others: KeysValues | None = None,
) -> LossGradient:
    """The residual stream after `layer` blocks, and the gradient of the next-token loss with respect to it.

    One forward pass, and a backward pass through the blocks above only. The parameters are frozen, so autograd
    records nothing below the leaf at `layer` and computes no weight gradient above it. A window's last position
    predicts nothing and no other position attends to it: its gradient is exactly 0.

    Args:
        ids: [windows, context].
        scope: sequence: gradient of the window's summed loss; next_token: of each position's own next-token loss.
        removed: subtracted from the residual stream first, [windows, context, d_model].
        others: with next_token, the keys and values of the other positions; None: this pass's own.
    """
    leaf: list[Tensor] = []

    def detach(residual: Tensor) -> Tensor:
        leaf.append((residual if removed is None else residual - removed).detach().requires_grad_())
        return leaf[0]

    attention: AbstractContextManager[object]
    attention = nullcontext() if scope == "sequence" else positions_apart(model, others)
    with torch.enable_grad(), autocast(), attention, residual_edited(model, layer, detach):
        logits = model(input_ids=ids, use_cache=False).logits
    (gradient,) = torch.autograd.grad(logits, leaf, cross_entropy_slope(logits.detach(), ids))
    return LossGradient(leaf[0].detach().flatten(0, 1).float(), gradient.flatten(0, 1).float())


def cross_entropy_slope(logits: Tensor, ids: Tensor) -> Tensor:
    """The gradient of the summed next-token cross-entropy with respect to the logits: softmax minus one-hot.

    Computed in one pass, a window at a time: autograd through log-softmax takes 3 times the work and 3 more tensors
    of [windows, context, vocab] float32.

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
def gradient_scores(sae: SparseAutoencoder, gradient: LossGradient) -> tuple[Latents, Tensor]:
    """The active latents of each position, and each one's first-order contribution to the loss: [n, k].

    The score is the latent times the gradient of the loss with respect to it, through the decoder and the
    normalisation's scale at the position. An inactive latent has the score 0.
    """
    normalized = sae.normalize(gradient.residual)
    latents = sae.encode(normalized.x)
    slopes = dots(gradient.gradient, sae.decoder, latents.indices)
    return latents, latents.values * slopes * normalized.std


def strongest(latents: Latents, scores: Tensor, k_attr: int, sign: Sign) -> Strongest:
    """The concepts with the strongest scores of the wanted sign.

    Args:
        scores: [n, k], in the order of `latents`.
        sign: released: the largest positive scores: without these latents the loss would fall; helpful: the most
            negative scores: without them it would rise; absolute: the largest magnitudes.
    """
    best = strength(scores, sign).topk(k_attr, dim=1)
    none = best.values <= 0
    return Strongest(
        latents.indices.gather(1, best.indices).masked_fill(none, -1),
        scores.gather(1, best.indices).masked_fill(none, 0.0),
    )


def strength(scores: Tensor, sign: Sign) -> Tensor:
    """Scores oriented so that larger is stronger and only scores of the wanted sign are positive."""
    match sign:
        case "released":
            return scores
        case "helpful":
            return -scores
        case "absolute":
            return scores.abs()


@torch.no_grad()
def strongest_of_dictionary(sae: SparseAutoencoder, gradient: LossGradient, k_attr: int, sign: Sign) -> Strongest:
    """The concepts with the strongest scores in the whole dictionary, active or not: pre-activation times gradient.

    A negative pre-activation keeps its sign: the residual stream points away from the concept's direction.
    """
    parts = []
    for residual, slope in zip(*(torch.split(each, DENSE_ROWS) for each in gradient), strict=True):
        normalized = sae.normalize(residual)
        values = torch.addmm(sae.latent_bias, normalized.x - sae.pre_bias, sae.encoder.T)
        scores = (slope @ sae.decoder.T).mul_(values).mul_(normalized.std)
        every = torch.arange(values.shape[1], device=values.device).expand_as(values)
        parts.append(strongest(sae.as_concepts(Latents(every, values)), scores, k_attr, sign))
    return Strongest(*(torch.cat(each) for each in zip(*parts, strict=True)))


@torch.no_grad()
def activation_scores(model: PreTrainedModel, sae: SparseAutoencoder, ids: Tensor) -> tuple[Latents, Tensor]:
    """The active latents of each position, and their magnitudes: [n, k]; the blocks above the layer are not run.

    A window's last position predicts nothing, so its latents have the score 0, as with the gradient.

    Args:
        ids: [windows, context].
    """
    with autocast():
        residual = residual_at(model, ids, sae.config.layer)
    latents = sae.encode(sae.normalize(residual.flatten(0, 1).float()).x)
    scores = latents.values.abs().view(*ids.shape, -1)
    scores[:, -1] = 0
    return latents, scores.flatten(0, 1)


@torch.no_grad()
def integrated_scores(
    model: PreTrainedModel, sae: SparseAutoencoder, ids: Tensor, scope: Scope, steps: int
) -> tuple[Latents, Tensor]:
    """Integrated gradients (Sundararajan et al. 2017): the active latents of each position, and their scores, [n, k].

    The path is the straight line from the residual stream without its latents' part to the residual stream; the
    integral is the mean gradient at the midpoints of `steps` equal parts. The scores of a position (next_token) or of
    a window (sequence) add up to the change of the loss by all its latents together, up to that sum's error.

    Args:
        ids: [windows, context].
    """
    layer = sae.config.layer
    with autocast():
        others = keys_values(model, ids) if scope == "next_token" else None
        residual = residual_at(model, ids, layer)
    normalized = sae.normalize(residual.flatten(0, 1).float())
    latents = sae.encode(normalized.x)
    part = (weighted_sum(latents.values, sae.decoder, latents.indices) * normalized.std).view_as(residual)
    gradient = torch.zeros_like(normalized.x)
    for step in range(steps):
        without = part * (1 - (step + 0.5) / steps)
        gradient += loss_gradient(model, ids, layer, scope, without, others).gradient / steps
    return latents, latents.values * dots(gradient, sae.decoder, latents.indices) * normalized.std
