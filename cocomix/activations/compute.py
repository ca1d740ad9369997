"""Compute the activations of a shard, which `collect.py` writes and `stream.py` uses directly.

The rows of a shard are permuted, so that a row group is a sample of all the shard's windows, not consecutive text.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.activations.coding import MADE, encoded
from cocomix.activations.shards import ActivationShard, dropped_ids, kept
from cocomix.activations.store import Activations
from cocomix.base.documents_apart import documents_apart
from cocomix.base.hooks import activations_at
from cocomix.base.loading import micro_batch
from cocomix.params import ActivationsParams, Site
from cocomix.plumbing.device import autocast
from cocomix.plumbing.errors import UserError
from cocomix.tokens.windows import Tokens


def make(
    model: PreTrainedModel,
    tokens: Tokens,
    shard: ActivationShard,
    params: ActivationsParams,
    sites: Sequence[Site],
    advance: Callable[[int], None],
) -> list[Tensor]:
    """Compute the activations of all positions of a shard, in the order of the text.

    Args:
        advance: called after each batch with its number of positions.

    Returns:
        [windows * context, d_model] for each site.
    """
    shape = len(shard.windows) * tokens.context, model.config.hidden_size
    made = [torch.empty(shape, dtype=MADE[params.dtype], device=model.device) for _ in sites]
    per_batch = micro_batch(tokens.context)
    for at in range(0, len(shard.windows), per_batch):
        windows = shard.windows[at : at + per_batch]
        ids = torch.from_numpy(tokens.windows(shard.split)[windows].astype(np.int64)).to(model.device)
        inputs: dict[str, Tensor] = {}
        if params.separate_documents:
            documents = torch.from_numpy(tokens.documents(shard.split, windows).astype(np.int64))
            inputs = documents_apart(model, documents.to(model.device))
        with torch.inference_mode(), autocast():
            for x, activations in zip(made, activations_at(model, ids, sites, **inputs), strict=True):
                x[at * tokens.context :][: ids.numel()] = activations.flatten(0, 1)
        advance(ids.numel())
    return made


def shuffled(x: Tensor, tokens: Tokens, shard: ActivationShard, params: ActivationsParams, site: Site) -> Activations:
    """The rows of a shard as they are stored: without dropped positions, in random order, encoded.

    Args:
        x: the output of `make` for the site.

    Raises:
        UserError: when `dtype` cannot hold them.
    """
    windows = tokens.windows(shard.split)[shard.windows]
    keep = kept(tokens, shard.split, shard.windows, params, dropped_ids(tokens, params)).reshape(-1)
    order = np.flatnonzero(keep)[np.random.default_rng(shard.seed).permutation(shard.rows)]
    x = x.index_select(0, torch.from_numpy(order).to(x.device))
    if not torch.stack(x.aminmax()).isfinite().all():  # 10 times faster than x.isfinite()
        if params.dtype == "fp16" and not x.isnan().any():
            raise UserError(
                f"activations.dtype: fp16: activations at {site} exceed {torch.finfo(x.dtype).max:.0f}, "
                "the largest fp16 number; choose bf16"
            )
        raise UserError(f"activations.sites: {site}: the base model's activations are not finite there")
    origin = (
        windows,
        tokens.documents(shard.split, shard.windows),
        np.broadcast_to(np.arange(tokens.context), windows.shape),
    )
    token, document, position = (each.reshape(-1)[order].astype(np.uint32) for each in origin)
    coded = encoded(x, params.dtype)
    return Activations(coded.x, token, document, position, coded.scale)
