"""Compute the labels of all training and validation windows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from cocomix.attribution.labelling import label_windows
from cocomix.attribution.labels import Labels, label_type, write_labels
from cocomix.attribution.positions_apart import check_positions_apart
from cocomix.base.blocks import check_layer
from cocomix.params import AttributionParams
from cocomix.plumbing.artifact import Work
from cocomix.plumbing.errors import UserError
from cocomix.sae.autoencoder import SparseAutoencoder
from cocomix.tokens.shards import write_shards
from cocomix.tokens.windows import Split, Tokens


def make_labels(
    work: Work, model: PreTrainedModel, sae: SparseAutoencoder, tokens: Tokens, params: AttributionParams
) -> Mapping[str, Any]:
    """Write this process's shards of labels, wait for the other processes, and return the manifest's facts.

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

    def compute(split: Split, windows: range) -> Labels:
        rows = tokens.windows(split)[windows.start : windows.stop]
        return label_windows(model, sae, torch.from_numpy(rows.astype(np.int64)), params)

    write_shards(work, tokens, params.shard_tokens, compute, write_labels)
    return {
        "latents": sae.config.concepts,
        "layer": sae.config.layer,
        "k_attr": params.k_attr,
        "context": tokens.context,
        "dtype": label_type(sae.config.concepts).name,
    }
