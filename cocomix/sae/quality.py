"""How good an autoencoder is: on held-out activations, and inside the base model."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.activations.store import ActivationStore
from cocomix.base import micro_batch, residual_edited
from cocomix.device import autocast, device
from cocomix.progress import progress
from cocomix.sae.autoencoder import SparseAutoencoder
from cocomix.tokens.windows import Tokens

SPLICED_TOKENS = 65_536
"""Validation tokens behind the losses of the base model."""


class Reconstruction(NamedTuple):
    """On the held-out activations of the store."""

    fvu: float
    """Fraction of variance unexplained, of normalised activations."""
    fvu_raw: float
    """The same of activations as they are, where a few large dimensions can hide the rest."""
    l0: float
    """Active latents of a position, on average."""
    mean: Tensor
    """The mean activation: [d_model]."""


class Splice(NamedTuple):
    """Next-token losses of the base model on validation text, nats a token."""

    loss_base: float
    loss_spliced: float
    """With the residual stream replaced by its reconstruction."""
    loss_zeroed: float
    """With the residual stream replaced by its mean."""

    @property
    def loss_recovered(self) -> float:
        """The share of the loss between zeroed and base that the reconstruction recovers."""
        return (self.loss_zeroed - self.loss_spliced) / (self.loss_zeroed - self.loss_base)


@torch.no_grad()
def reconstruction(sae: SparseAutoencoder, store: ActivationStore) -> Reconstruction:
    """Measure `sae` on the validation activations."""
    normalised, raw = _Variance(store.d_model), _Variance(store.d_model)
    active, rows = 0, 0
    for group in store.in_order("validation"):
        x = group.to(device())
        normalized = sae.normalize(x)
        latents = sae.encode(normalized.x)
        decoded = sae.decode(latents)
        normalised.add(normalized.x, decoded)
        raw.add(x, decoded * normalized.std + normalized.mean)
        active += int((latents.values > 0).sum())
        rows += len(x)
    return Reconstruction(normalised.unexplained(), raw.unexplained(), active / rows, raw.mean())


class _Variance:
    """Sums for the fraction of variance unexplained, in float64: the raw residual stream has a few huge dimensions."""

    def __init__(self, d_model: int) -> None:
        self._rows = 0
        self._sum = torch.zeros(d_model, dtype=torch.float64)
        self._squares, self._errors = 0.0, 0.0

    def add(self, x: Tensor, decoded: Tensor) -> None:
        self._rows += len(x)
        self._sum += x.double().sum(0).cpu()
        self._squares += float(x.double().square().sum())
        self._errors += float((x - decoded).double().square().sum())

    def mean(self) -> Tensor:
        return (self._sum / self._rows).float()

    def unexplained(self) -> float:
        return self._errors / (self._squares - float(self._sum.square().sum()) / self._rows)


@torch.no_grad()
def splice(sae: SparseAutoencoder, model: PreTrainedModel, tokens: Tokens, mean: Tensor) -> Splice:
    """Measure `sae` inside the base model, on the first validation windows.

    Args:
        mean: the mean activation, [d_model].
    """
    edits = {
        "loss_base": lambda residual: residual,
        "loss_spliced": lambda residual: sae(residual.float().flatten(0, 1)).view_as(residual),
        "loss_zeroed": lambda residual: mean.to(residual.device).expand_as(residual),
    }
    windows = tokens.windows("validation")[: -(-SPLICED_TOKENS // tokens.context)]
    per_batch = micro_batch(tokens.context)
    sums = dict.fromkeys(edits, 0.0)
    with progress("sae: splicing", len(windows) * tokens.context, "tokens") as bar:
        for at in range(0, len(windows), per_batch):
            ids = torch.from_numpy(windows[at : at + per_batch].astype(np.int64)).to(device())
            for name, edit in edits.items():
                with residual_edited(model, sae.config.layer, edit), autocast():
                    logits = model(input_ids=ids, use_cache=False).logits
                    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum")
                sums[name] += float(loss)
            bar.advance(ids.numel())
    return Splice(**{name: total / (len(windows) * (tokens.context - 1)) for name, total in sums.items()})
