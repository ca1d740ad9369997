"""Exact attribution: the loss minus the loss with one latent set to zero. Slow; the reference for the other scores.

It runs in fp32 on all hardware: the differences are as small as bf16's rounding error.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.attribution.positions_apart import keys_values, positions_apart
from cocomix.base.hooks import residual_at, residual_edited
from cocomix.base.loading import micro_batch
from cocomix.params import Scope
from cocomix.plumbing import interrupt
from cocomix.sae.autoencoder import Latents, SparseAutoencoder


@torch.no_grad()
def ablation_scores(
    model: PreTrainedModel, sae: SparseAutoencoder, ids: Tensor, scope: Scope, places: Tensor | None = None
) -> tuple[Latents, Tensor]:
    """The active latents of each position, and the loss minus the loss without each of them: [n, k].

    A latent is removed by subtracting its value times its decoder direction from the residual stream; the
    reconstruction error stays. With next_token, one pass ablates one latent of every position of a window; with
    sequence, one latent of one position.

    Args:
        ids: [windows, context].
        places: positions of a window to score, the others get 0; None: all with a next token.
    """
    residual = residual_at(model, ids, sae.config.layer)
    normalized = sae.normalize(residual.flatten(0, 1).float())
    latents = sae.encode(normalized.x)
    values = (latents.values * normalized.std).view(*ids.shape, -1)
    indices = latents.indices.view_as(values)
    scores = torch.zeros_like(values)
    positions = torch.arange(ids.shape[1] - 1) if places is None else places
    for window in range(len(ids)):
        arguments = (model, sae, ids[window], values[window], indices[window])
        if scope == "next_token":
            scores[window, positions] = _next_token(*arguments)[positions]
        else:
            for position in positions.tolist():
                scores[window, position] = _sequence(*arguments, position)
    # Ablating an inactive latent changes nothing, but passes of different batch sizes may round differently.
    return latents, scores.flatten(0, 1).masked_fill(latents.values == 0, 0.0)


def _next_token(model: PreTrainedModel, sae: SparseAutoencoder, ids: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    """Scores [context, k] of a window, ids [context], for scope next_token: each position's own next-token loss."""
    scores = torch.zeros_like(values)
    # Active latents first, so that the number of ablations is the largest number of active latents at a position.
    order = values.eq(0).sort(dim=1, stable=True).indices[:, : int(values.count_nonzero(1).max())]
    if not order.numel():
        return scores
    values, indices = values.gather(1, order), indices.gather(1, order)
    others = keys_values(model, ids[None])
    with positions_apart(model, others):
        before = _losses(model, sae, ids, torch.zeros(1, *ids.shape, sae.config.d_model, device=ids.device))
        after = [
            _losses(model, sae, ids, values.T[ranks, :, None] * sae.decoder[indices.T[ranks]])
            for ranks in torch.split(torch.arange(values.shape[1]), micro_batch(len(ids)))
        ]
    return scores.scatter_(1, order, (before - torch.cat(after)).T)


def _sequence(
    model: PreTrainedModel, sae: SparseAutoencoder, ids: Tensor, values: Tensor, indices: Tensor, position: int
) -> Tensor:
    """Scores [k] of one position of a window, ids [context], for scope sequence: the window's summed loss."""
    active = values[position].nonzero()[:, 0]
    directions = values[position, active, None] * sae.decoder[indices[position, active]]
    removed = directions.new_zeros(1 + len(directions), len(ids), sae.config.d_model)
    removed[1:, position] = directions
    losses = torch.cat([_losses(model, sae, ids, part) for part in torch.split(removed, micro_batch(len(ids)))]).sum(1)
    return torch.zeros_like(values[position]).index_copy(0, active, losses[0] - losses[1:])


def _losses(model: PreTrainedModel, sae: SparseAutoencoder, ids: Tensor, removed: Tensor) -> Tensor:
    """Next-token losses [n, context] of a window, ids [context], with each `removed` [n, context, d_model] subtracted.

    The blocks below the edit run on the window once. The last position has no next token, and its loss is 0.
    """
    interrupt.check()  # a micro-batch takes hundreds of passes, and a stop must not wait for all of them
    with residual_edited(model, sae.config.layer, lambda residual: residual - removed):
        logits = model(input_ids=ids[None], use_cache=False).logits
    wanted = ids.roll(-1).expand(len(removed), -1)
    losses = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view(wanted.shape)
    losses[:, -1] = 0
    return losses
