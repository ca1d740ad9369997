"""Quality of an autoencoder: on held-out activations, and spliced into the base model."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.activations.shards import dropped_ids, kept
from cocomix.activations.store import ActivationStore
from cocomix.base.hooks import residual_edited
from cocomix.base.loading import micro_batch
from cocomix.params import ActivationsParams
from cocomix.plumbing.device import autocast, device
from cocomix.plumbing.parts import Summing
from cocomix.plumbing.progress import progress
from cocomix.sae.autoencoder import SparseAutoencoder
from cocomix.tokens.windows import Tokens

SPLICED_TOKENS = 65_536
"""Validation tokens on which the base model's losses are measured."""
DENSE = 0.1
"""A latent that fires for more than this share of the tokens is dense: it says little about any of them."""
DUPLICATE = 0.9
"""Cosine above which two decoder directions count as duplicates."""


class Reconstruction(NamedTuple):
    """Reconstruction of the store's held-out activations."""

    fvu: float
    """Fraction of variance unexplained, of normalised activations."""
    fvu_raw: float
    """Fraction of variance unexplained, of raw activations, where a few large dimensions can hide the rest."""
    l0: float
    """Mean number of active latents per position."""
    rates: Tensor
    """The share of positions at which each latent fires: [latents]."""
    mean: Tensor
    """The mean activation: [d_model]."""

    @property
    def dense_share(self) -> float:
        """The share of the latents that fire at more than `DENSE` of the positions."""
        return float((self.rates > DENSE).float().mean())

    @property
    def firing(self) -> dict[str, int]:
        """Histogram of the latents' firing rates, by powers of ten."""
        bounds = [0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
        counts = {"0": int((self.rates == 0).sum())}
        for low, high in itertools.pairwise(bounds):
            counts[f"to {high:g}"] = int(((self.rates > low) & (self.rates <= high)).sum())
        return counts


class SplicedLosses(NamedTuple):
    """Next-token losses of the base model on validation text, in nats per token."""

    loss_base: float
    loss_spliced: float
    """With the activations replaced by their reconstruction."""
    loss_mean_ablated: float
    """With the activations replaced by their mean, where SAEBench uses zeros."""
    kl_spliced: float
    """KL(base || spliced) of the next token's distribution, in nats per token."""
    kl_mean_ablated: float

    @property
    def loss_recovered(self) -> float:
        """The share of the loss difference between mean ablation and base that the reconstruction recovers."""
        return (self.loss_mean_ablated - self.loss_spliced) / (self.loss_mean_ablated - self.loss_base)

    @property
    def kl_recovered(self) -> float:
        """The share of mean ablation's KL divergence that the reconstruction removes."""
        return 1 - self.kl_spliced / self.kl_mean_ablated


@torch.no_grad()
def reconstruction(sae: SparseAutoencoder, store: ActivationStore, sums_kept: Path | None = None) -> Reconstruction:
    """Measure `sae` on the validation activations.

    Args:
        sums_kept: see `Summing`.
    """
    normalised, raw = _Variance(store.d_model), _Variance(store.d_model)
    fired = torch.zeros(sae.config.latents, dtype=torch.int64)
    for group in Summing(sums_kept, store.groups("validation"), *normalised.sums, *raw.sums, fired.numpy()):
        x = store.vectors(group).to(device())
        normalized = sae.normalize(x)
        latents = sae.encode(normalized.x)
        decoded = sae.decode(latents)
        normalised.add(normalized.x, decoded)
        raw.add(x, decoded * normalized.std + normalized.mean)
        fired += latents.indices[latents.values != 0].bincount(minlength=len(fired)).cpu()
    rows = raw.rows
    rates = fired / rows
    return Reconstruction(normalised.unexplained(), raw.unexplained(), int(fired.sum()) / rows, rates, raw.mean())


@torch.no_grad()
def duplicates(sae: SparseAutoencoder, at_a_time: int = 1024) -> int:
    """Count the pairs of latents whose decoder directions have a cosine above `DUPLICATE`."""
    directions = F.normalize(sae.decoder, dim=1)
    pairs = 0
    for start in range(0, len(directions), at_a_time):
        cosines = directions[start : start + at_a_time] @ directions[start:].T
        pairs += int((cosines.triu(1) > DUPLICATE).sum())
    return pairs


class _Variance:
    """Sums for the fraction of variance unexplained, in float64: raw activations have a few huge dimensions."""

    def __init__(self, d_model: int) -> None:
        self._sum = torch.zeros(d_model, dtype=torch.float64)
        self._others = np.zeros(3)  # rows, squares, squared errors

    @property
    def sums(self) -> tuple[NDArray[Any], ...]:
        """The arrays of the sums, to be changed in place."""
        return self._sum.numpy(), self._others

    @property
    def rows(self) -> int:
        return int(self._others[0])

    def add(self, x: Tensor, decoded: Tensor) -> None:
        error, x = (x - decoded).cpu().double(), x.cpu().double()  # not all devices have float64
        self._sum += x.sum(0)
        self._others += len(x), float(x.square().sum()), float(error.square().sum())

    def mean(self) -> Tensor:
        return (self._sum / self.rows).float()

    def unexplained(self) -> float:
        _, squares, errors = self._others.tolist()
        return float(errors / (squares - float(self._sum.square().sum()) / self.rows))


@torch.no_grad()
def spliced_losses(
    sae: SparseAutoencoder,
    model: PreTrainedModel,
    tokens: Tokens,
    mean: Tensor,
    params: ActivationsParams,
    sums_kept: Path | None = None,
) -> SplicedLosses:
    """Measure `sae` spliced into the base model, on the first validation windows.

    Args:
        mean: the mean activation, [d_model].
        params: the store's; positions that it drops keep their activations: the autoencoder was not trained on them.
        sums_kept: see `Summing`.
    """
    edits = {
        "spliced": lambda residual: sae(residual.float().flatten(0, 1)).view_as(residual),
        "mean_ablated": lambda residual: mean.to(residual.device).expand_as(residual),
    }
    windows = tokens.windows("validation")[: -(-SPLICED_TOKENS // tokens.context)]
    per_batch, dropped = micro_batch(tokens.context), dropped_ids(tokens, params)
    losses, divergences = ({name: np.zeros(1) for name in names} for names in (("base", *edits), edits))
    parts = [range(at, min(at + per_batch, len(windows))) for at in range(0, len(windows), per_batch)]
    summing = Summing(sums_kept, parts, *losses.values(), *divergences.values())

    def logits_of(ids: Tensor) -> Tensor:
        with autocast():
            logits: Tensor = model(input_ids=ids, use_cache=False).logits
        return logits[:, :-1]

    done = sum(map(len, summing.done)) * tokens.context
    with progress("sae: splicing", len(windows) * tokens.context, "tokens", done) as bar:
        for rows in summing:
            ids = torch.from_numpy(windows[rows.start : rows.stop].astype(np.int64)).to(device())
            stored = kept(tokens, "validation", np.array(rows), params, dropped)
            where = torch.from_numpy(stored).to(device())
            logits = {"base": logits_of(ids)}
            for name, edit in edits.items():
                with residual_edited(model, sae.config.layer, _only(where, edit), sae.config.location):
                    logits[name] = logits_of(ids)
            for window, following in enumerate(ids[:, 1:]):  # one at a time: each needs several fp32 copies of logits
                shares = {name: each[window].log_softmax(1, dtype=torch.float32) for name, each in logits.items()}
                for name, each in shares.items():
                    losses[name] += float(F.nll_loss(each, following, reduction="sum"))
                for name in edits:
                    divergences[name] += float(F.kl_div(shares[name], shares["base"], reduction="sum", log_target=True))
            bar.advance(ids.numel())
    predictions = len(windows) * (tokens.context - 1)
    return SplicedLosses(
        loss_base=float(losses["base"][0]) / predictions,
        loss_spliced=float(losses["spliced"][0]) / predictions,
        loss_mean_ablated=float(losses["mean_ablated"][0]) / predictions,
        kl_spliced=float(divergences["spliced"][0]) / predictions,
        kl_mean_ablated=float(divergences["mean_ablated"][0]) / predictions,
    )


def _only(where: Tensor, edit: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Restrict `edit` to some positions [windows, context]."""
    return lambda residual: torch.where(where[..., None], edit(residual), residual)
