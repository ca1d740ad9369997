"""Compute the labels of all training and validation windows."""

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from cocomix.attribution.labelling import label_windows
from cocomix.attribution.labels import Labels, label_type, write_labels
from cocomix.attribution.positions_apart import check_positions_apart
from cocomix.base.blocks import check_layer
from cocomix.corpus.splits import Split
from cocomix.params import AttributionParams
from cocomix.plumbing.artifact import Work
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.parts import Advance
from cocomix.sae.autoencoder import SparseAutoencoder
from cocomix.tokens.base_tokens import BaseTokens
from cocomix.tokens.shards import WindowShard, in_batches, write_shards


def make_labels(
    work: Work, model: PreTrainedModel, sae: SparseAutoencoder, tokens: BaseTokens, params: AttributionParams
) -> dict[str, Any]:
    """Write this process's shards of labels, wait for the other processes, and return the manifest's facts.

    The shards are of the students' windows. With the base model's own tokenizer, the windows of it in which a shard's
    labels lie are read for that shard; those at its borders also for the next one.

    Raises:
        UserError: when the autoencoder does not fit the base model, or the base model does not support the scope.
    """
    check_layer(model, sae.config.layer)
    if sae.config.location != "resid_post":
        raise UserError(
            f"sae.site: is a {sae.config.location}; labels are for the residual stream: choose a resid_post"
        )
    if sae.config.d_model != model.config.hidden_size:
        raise UserError(f"sae: is for width {sae.config.d_model}, the base model's is {model.config.hidden_size}")
    if params.scope == "next_token":
        window = torch.from_numpy(tokens.windows("validation")[:1].astype(np.int64))
        check_positions_apart(model, sae.config.layer, window.to(model.device))

    def label(split: Split, windows: range) -> Labels:
        rows = tokens.windows(split)[windows.start : windows.stop]
        return label_windows(model, sae, torch.from_numpy(rows.astype(np.int64)), params)

    def compute(shard: WindowShard, advance: Advance) -> Labels:
        windows = range(shard.start, shard.stop)
        if tokens.shared:
            return in_batches(windows, tokens.context, partial(label, shard.split), advance)
        places = np.array(tokens.places(shard.split)[shard.start : shard.stop])
        places[:, -1] = -1  # as in the base model's windows: the last position has no next token
        windows, size = windows_of(places, tokens.context), places.size
        scale = size / (len(windows) * tokens.context)  # progress is in the students' tokens
        labels = in_batches(
            windows, tokens.context, partial(label, shard.split), lambda done: advance(round(done * scale))
        )
        return at_places(labels, places - windows.start * tokens.context)

    write_shards(work, tokens.students, params.shard_tokens, compute, write_labels)
    return {
        "concepts": sae.config.concepts,
        "layer": sae.config.layer,
        "k_attr": params.k_attr,
        "context": tokens.students.context,
        "dtype": label_type(sae.config.concepts).name,
    }


def windows_of(places: NDArray[np.signedinteger], context: int) -> range:
    """The windows that some places lie in, at least one.

    Args:
        places: as `BaseTokens.places` gives them.
        context: tokens of a window.
    """
    last = max(int(places.max()), 0)
    first = int(np.where(places < 0, last, places).min())
    return range(first // context, last // context + 1)


def at_places(labels: Labels, places: NDArray[np.signedinteger]) -> Labels:
    """The labels at some places; negative: none.

    Args:
        labels: of consecutive windows.
        places: [windows, context], counted from the beginning of those windows.
    """
    concepts, scores = (each.reshape(-1, each.shape[-1])[np.maximum(places, 0)] for each in labels)
    concepts[places < 0], scores[places < 0] = np.iinfo(concepts.dtype).max, 0
    return Labels(concepts, scores)
