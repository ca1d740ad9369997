"""Filling the activation store.

The token windows are chosen by a seeded permutation, without replacement, and dealt into shards. A shard is a file:
its tokens are scattered over the whole of it by a permutation of their own, so that a row group is a sample of all
the shard's windows and not a stretch of one text. Shards depend on nothing but their number, so that any number of
processes makes the same files.
"""

import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.activations.store import Activations, write_activations
from cocomix.artifact import Work
from cocomix.base import check_layer, micro_batch, residual_at
from cocomix.device import autocast
from cocomix.errors import UserError
from cocomix.params import ActivationsParams
from cocomix.progress import progress, say
from cocomix.runtime import runtime
from cocomix.tokens.windows import SPLITS, Split, Tokens

ORIGIN_BYTES = 12
"""Bytes of a row's token, document and position before compression."""


class Shard(NamedTuple):
    """A file of the store."""

    name: str
    split: Split
    windows: NDArray[np.int64]
    """The token windows that it holds, ascending: [windows]."""
    seed: list[int]
    """Of the order of its rows."""


def plan(tokens: Tokens, split: Split, budget: int, shard_tokens: int, seed: int) -> list[Shard]:
    """Deal at least `budget` tokens of a split, in whole windows, into shards; all of it, where it holds fewer."""
    there = len(tokens.windows(split))
    wanted = -(-budget // tokens.context)
    if wanted > there:
        say(
            f"activations: the {split} split holds {there * tokens.context:,} tokens, "
            f"fewer than the {budget:,} asked for: taking them all"
        )
    seeds = [seed, SPLITS.index(split)]
    chosen = np.random.default_rng(seeds).permutation(there)[:wanted]
    size = max(1, shard_tokens // tokens.context)
    return [
        Shard(f"{split}-{number:05d}.parquet", split, np.sort(chosen[at : at + size]), [*seeds, number])
        for number, at in enumerate(range(0, len(chosen), size))
    ]


def collect(work: Work, model: PreTrainedModel, tokens: Tokens, params: ActivationsParams) -> Mapping[str, Any]:
    """Write this process's shards, and return what readers must know (the same in all processes).

    Raises:
        UserError: when the layer is not there, the disk is too small, or fp16 cannot hold the activations.
    """
    check_layer(model, params.layer)
    d_model = model.config.hidden_size
    train = plan(tokens, "train", params.tokens, params.shard_tokens, params.seed)
    validation = plan(tokens, "validation", params.validation_tokens, params.shard_tokens, params.seed)
    shards = train + validation
    rows = {shard.name: len(shard.windows) * tokens.context for shard in shards}
    row_bytes = 2 * d_model + ORIGIN_BYTES
    mine = shards[runtime().rank :: runtime().world_size]
    missing = [shard for shard in mine if not work.has(shard.name)]
    _check_disk(work, sum(rows.values()) * row_bytes, sum(rows[each] for each in work.records()) * row_bytes)

    total = sum(rows[shard.name] for shard in mine)
    done = total - sum(rows[shard.name] for shard in missing)
    with progress("activations", total, "tokens", done) as bar, ThreadPoolExecutor(1, "writer") as writer:
        writing: Future[None] | None = None
        for shard in missing:
            x = torch.empty(rows[shard.name], d_model, dtype=torch.float16, device=model.device)
            per_batch = micro_batch(tokens.context)
            for at in range(0, len(shard.windows), per_batch):
                windows = shard.windows[at : at + per_batch]
                ids = torch.from_numpy(tokens.windows(shard.split)[windows].astype(np.int64)).to(model.device)
                with torch.inference_mode(), autocast():
                    residual = residual_at(model, ids, params.layer).flatten(0, 1)
                x[at * tokens.context :][: len(residual)] = residual
                bar.advance(len(residual))
            if writing:
                writing.result()
            # Written while the next one is computed; never more than two in memory.
            writing = writer.submit(_write, work, shard, x, tokens, params)
        if writing:
            writing.result()
    return {
        "d_model": d_model,
        "layer": params.layer,
        "dtype": "float16",
        "row_group_tokens": params.row_group_tokens,
        "tokens": {
            split: sum(rows[shard.name] for shard in each)
            for split, each in {"train": train, "validation": validation}.items()
        },
    }


def _write(work: Work, shard: Shard, x: Tensor, tokens: Tokens, params: ActivationsParams) -> None:
    if not torch.stack(x.aminmax()).isfinite().all():  # 10 times faster than x.isfinite()
        raise UserError(
            f"activations.layer: {params.layer}: the residual stream after it exceeds {torch.finfo(x.dtype).max:.0f}, "
            "the largest fp16 number; choose another layer"
        )
    windows = tokens.windows(shard.split)[shard.windows]
    origin = (
        windows,
        tokens.documents(shard.split, shard.windows),
        np.broadcast_to(np.arange(tokens.context), windows.shape),
    )
    order = np.random.default_rng(shard.seed).permutation(len(x))
    x = x.index_select(0, torch.from_numpy(order).to(x.device))
    token, document, position = (each.reshape(-1)[order].astype(np.uint32) for each in origin)
    with work.write(shard.name) as pending:
        pending.rows = len(x)
        activations = Activations(x.cpu().numpy(), token, document, position)
        write_activations(pending.path, activations, params.row_group_tokens)


def _check_disk(work: Work, needed: int, written: int) -> None:
    free = shutil.disk_usage(work.path).free
    say(f"activations: {_megabytes(needed)} to store, {_megabytes(written)} of it is; {_megabytes(free)} are free")
    if needed - written > free:
        raise UserError(
            f"activations: {_megabytes(needed - written)} are still to be written to {work.path}, "
            f"where {_megabytes(free)} are free; lower activations.tokens or make room"
        )


def _megabytes(size: int) -> str:
    return f"{-(-size // 10**6):,} MB"
