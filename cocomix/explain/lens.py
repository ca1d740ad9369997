"""What a concept's direction does: the tokens it promotes, and the concepts that lie near it."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.base.families import final_norm
from cocomix.sae.autoencoder import SparseAutoencoder

AT_A_TIME = 1024
"""Concepts that are compared with all tokens or all concepts at a time."""


class Best(NamedTuple):
    """The best of each concept, best first."""

    numbers: Tensor
    """Tokens or concepts: int64 [concepts, most]."""
    values: Tensor
    """Logits or cosines: float32 [concepts, most]."""


def directions(sae: SparseAutoencoder) -> Tensor:
    """The direction of each concept in the autoencoder's scale, of length 1: [concepts, d_model].

    It is also the concept's direction in the base model: `load_sae`'s autoencoders have no scale of single dimensions.
    """
    decoder = F.normalize(sae.decoder, dim=1)
    return torch.cat([decoder, -decoder]) if sae.config.architecture == "abstopk" else decoder


@torch.no_grad()
def promoted(model: PreTrainedModel, sae: SparseAutoencoder, vocab: int, most: int) -> Best:
    """The tokens whose logits a concept's direction raises most, read by the unembedding: the logit lens.

    The blocks above are left out. The final norm is not linear, but at a fixed scale of the stream it is: it takes
    the direction's mean away (LayerNorm) and weighs its dimensions. That is `norm(direction) - norm(0)`, which holds
    for RMSNorm too, and in which the norm's bias, the same for all concepts, cancels. A logit counts from the mean over
    the vocabulary: what raises all tokens alike promotes none.

    Args:
        vocab: tokens that count; a base model may have more rows than its tokenizer has tokens.

    Raises:
        UserError: when the base model has no final norm.
    """
    norm, unembedding = final_norm(model), model.get_output_embeddings().weight[:vocab]
    parts = []
    for some in torch.split(directions(sae), AT_A_TIME):
        logits = (norm(some) - norm(torch.zeros_like(some))) @ unembedding.T
        parts.append((logits - logits.mean(1, keepdim=True)).topk(min(most, logits.shape[1])))
    return _joined(parts)


@torch.no_grad()
def nearest(sae: SparseAutoencoder, most: int) -> Best:
    """The other concepts with the largest cosine between the directions."""
    every = directions(sae)
    parts = []
    for start, some in zip(range(0, len(every), AT_A_TIME), torch.split(every, AT_A_TIME), strict=True):
        cosines = some @ every.T
        cosines.diagonal(start).fill_(-2)
        parts.append(cosines.topk(min(most, len(every) - 1)))
    return _joined(parts)


def _joined(parts: list[torch.return_types.topk]) -> Best:
    return Best(torch.cat([each.indices for each in parts]).cpu(), torch.cat([each.values for each in parts]).cpu())
