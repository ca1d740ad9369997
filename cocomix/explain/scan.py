"""Scan the text: run the base model and the autoencoder on a sample of its windows."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.base.hooks import activations_at
from cocomix.base.loading import micro_batch
from cocomix.corpus.splits import SPLITS, Split
from cocomix.explain.firings import FiringLimits, Firings, ScanResult, rank_within
from cocomix.params import Site
from cocomix.plumbing.device import autocast
from cocomix.plumbing.parts import Advance
from cocomix.sae.autoencoder import Latents, SparseAutoencoder
from cocomix.tokens.windows import Tokens

BACKGROUND = 1024
"""Number of random positions of a pass that represent text in which a concept does not fire."""
AT_A_TIME = 4096
"""Number of firings whose surroundings are looked up at a time."""


class TextShard(NamedTuple):
    """The part of a pass that is scanned as one unit."""

    name: str
    split: Split
    windows: NDArray[np.int64]
    """Indices in the split, ascending."""
    background: NDArray[np.int64]
    """Places of the background in this shard."""


def text_shards(tokens: Tokens, split: Split, budget: int, shard_tokens: int, seed: int) -> list[TextShard]:
    """Sample whole windows of a split for `budget` tokens, without replacement; all if it has fewer."""
    generator = np.random.default_rng([seed, SPLITS.index(split)])
    drawn = generator.permutation(len(tokens.windows(split)))[: -(-budget // tokens.context)]
    windows = np.sort(drawn)
    positions = len(windows) * tokens.context
    chosen = np.sort(generator.choice(positions, min(BACKGROUND, positions), replace=False))
    background = windows[chosen // tokens.context] * tokens.context + chosen % tokens.context
    shard_windows = max(1, shard_tokens // tokens.context)
    starts = range(0, len(windows), shard_windows)
    return [
        TextShard(f"{split}-{number:05d}", split, part, background[np.isin(background // tokens.context, part)])
        for number, start in enumerate(starts)
        for part in [windows[start : start + shard_windows]]
    ]


@torch.no_grad()
def scan_shard(
    model: PreTrainedModel,
    sae: SparseAutoencoder,
    tokens: Tokens,
    shard: TextShard,
    keep: FiringLimits,
    advance: Advance,
) -> ScanResult:
    """Find the firings in a shard of text."""
    context, concepts = tokens.context, sae.config.concepts
    latents = _latents(model, sae, tokens, shard, advance)
    rows, columns = latents.values.nonzero().unbind(1)
    windows = torch.from_numpy(shard.windows).to(rows.device)
    fired = Firings(
        latents.indices[rows, columns],
        windows[rows // context] * context + rows % context,
        latents.values[rows, columns],
        latents.values.new_empty(len(rows), 0),
    )
    peaks = fired.at(_peaks(fired, rows // context, concepts))
    strongest = peaks.smallest(peaks.weakness(), keep.strongest)
    sample = fired.smallest(fired.hashes(keep.seed), keep.sample)
    pool = sample.at(rank_within(sample.concepts) < keep.pool)

    def with_surroundings(some: Firings) -> Firings:
        at = torch.searchsorted(windows, some.places // context) * context + some.places % context
        return some._replace(around=_around(latents, some.concepts, at, context, keep.before, keep.after))

    background = torch.from_numpy(shard.background).to(rows.device)
    at = torch.searchsorted(windows, background // context) * context + background % context
    fires = torch.zeros(len(at), concepts, dtype=torch.bool, device=rows.device)
    active, columns = latents.values[at].nonzero().unbind(1)
    fires[active, latents.indices[at[active], columns]] = True
    ids = torch.from_numpy(tokens.windows(shard.split)[shard.windows].astype(np.int64)).flatten()
    return ScanResult(
        fired.concepts.bincount(minlength=concepts),
        fired.concepts.cpu().bincount(fired.strengths.cpu().double(), minlength=concepts),
        ids.bincount(minlength=tokens.vocab_size),
        with_surroundings(strongest),
        with_surroundings(pool),
        sample,
        background,
        fires,
    )


def ids_around(tokens: Tokens, split: Split, places: Tensor, before: int, after: int) -> Tensor:
    """The tokens around some places: int64 [n, before + 1 + after]; -1 outside the window."""
    context = tokens.context
    positions = places[:, None].numpy() % context + np.arange(-before, after + 1)
    inside = (positions >= 0) & (positions < context)
    ids = tokens.windows(split)[places[:, None].numpy() // context, positions.clip(0, context - 1)]
    return torch.from_numpy(np.where(inside, ids.astype(np.int64), -1))


def _latents(
    model: PreTrainedModel, sae: SparseAutoencoder, tokens: Tokens, shard: TextShard, advance: Advance
) -> Latents:
    """The active concepts at all positions of a shard, with their strengths, padded to one width."""
    site = Site(sae.config.location, sae.config.layer)
    parts: list[Latents] = []
    per_batch = micro_batch(tokens.context)
    for start in range(0, len(shard.windows), per_batch):
        rows = tokens.windows(shard.split)[shard.windows[start : start + per_batch]]
        ids = torch.from_numpy(rows.astype(np.int64)).to(model.device)
        with autocast():
            (activations,) = activations_at(model, ids, [site])
        latents = sae.as_concepts(sae.encode(sae.normalize(activations.flatten(0, 1).float()).x))
        parts.append(latents._replace(values=latents.values.abs()))
        advance(rows.size)
    width = max(each.values.shape[1] for each in parts)
    indices, values = (
        torch.cat([torch.nn.functional.pad(each, (0, width - each.shape[1])) for each in some])
        for some in zip(*parts, strict=True)
    )
    return Latents(indices, values)


def _peaks(fired: Firings, windows: Tensor, concepts: int) -> Tensor:
    """The rows of the strongest firing of each concept in each window: int64 [m].

    Args:
        windows: index in the shard of each firing's window, [n].
    """
    # Keys grow with strength; for equal strengths, the earlier firing has the larger key.
    keys = fired.strengths.view(torch.int32).long() << 31 | (len(windows) - torch.arange(len(windows)).to(windows))
    best = keys.new_zeros((int(windows.max()) + 1) * concepts if len(windows) else 0)
    best.scatter_reduce_(0, windows * concepts + fired.concepts, keys, "amax")
    return len(windows) - (best[best > 0] & 0x7FFFFFFF)


def _around(latents: Latents, concepts: Tensor, at: Tensor, context: int, before: int, after: int) -> Tensor:
    """Strength of each of `concepts` [n] around the position `at` [n] of a shard, as in `Firings.around`."""
    offsets = torch.arange(-before, after + 1, device=at.device)
    parts = [latents.values.new_zeros(0, len(offsets))]
    for some, place in zip(torch.split(concepts, AT_A_TIME), torch.split(at, AT_A_TIME), strict=True):
        position = place[:, None] % context + offsets
        rows = (place[:, None] + offsets).clamp(0, len(latents.values) - 1)
        mine = (latents.indices[rows] == some[:, None, None]) * latents.values[rows]
        parts.append(mine.sum(2).where((position >= 0) & (position < context), torch.nan))
    return torch.cat(parts)
