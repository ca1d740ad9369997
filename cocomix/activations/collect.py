"""Fill the activation store: one file per shard and site."""

import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.activations.coding import STORED, scale_of
from cocomix.activations.compute import make, shuffled
from cocomix.activations.shards import ActivationShard, activation_shards
from cocomix.activations.store import PAGE_BYTES, write_activations
from cocomix.base.documents_apart import check_documents_apart
from cocomix.base.sites import check_sites
from cocomix.params import ActivationsParams, Site
from cocomix.plumbing import distributed
from cocomix.plumbing.artifact import Work
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.progress import progress, say
from cocomix.plumbing.runtime import runtime
from cocomix.tokens.windows import Tokens

ORIGIN_BYTES = 12
"""Bytes of a row's token, document and position before compression."""


def collect(work: Work, model: PreTrainedModel, tokens: Tokens, params: ActivationsParams) -> Mapping[str, Any]:
    """Write this process's shards, and return the manifest's facts (the same in all processes).

    Raises:
        UserError: when a site does not exist, the model cannot separate documents, the disk is too small, `dtype`
            cannot hold the activations, or a row group is too large.
    """
    sites = [Site.parse(each) for each in params.sites]
    check_sites(model, sites)
    if params.separate_documents:
        window = torch.from_numpy(tokens.windows("validation")[:1].astype(np.int64))
        check_documents_apart(model, window.to(model.device), sites)
    d_model = model.config.hidden_size
    vector_bytes = np.dtype(STORED[params.dtype]).itemsize * d_model
    most = PAGE_BYTES // vector_bytes
    if min(params.row_group_tokens, params.shard_tokens) > most:
        raise UserError(
            f"activations.row_group_tokens: {params.row_group_tokens}: allowed: at most {most} of {d_model} dimensions"
        )
    train, validation = activation_shards(tokens, "train", params), activation_shards(tokens, "validation", params)
    shards = [*train, *validation] if params.keep else validation
    work.expect(_name(site, shard) for shard in shards for site in sites)
    mine = shards[runtime().rank :: runtime().world_size]
    missing = [shard for shard in mine if not all(work.has(_name(site, shard)) for site in sites)]
    row_bytes = vector_bytes + ORIGIN_BYTES
    written = sum(record.rows or 0 for record in work.records().values())
    _check_disk(work, len(sites) * sum(shard.rows for shard in shards) * row_bytes, written * row_bytes)

    total, left = (sum(len(shard.windows) for shard in each) * tokens.context for each in (mine, missing))
    with progress("activations", total, "tokens", total - left) as bar, ThreadPoolExecutor(1, "writer") as writer:
        writing: Future[None] | None = None
        for shard in missing:
            made = make(model, tokens, shard, params, sites, bar.advance)
            if writing:
                writing.result()
            # A shard is written while the next one is computed; at most two are in memory.
            writing = writer.submit(_write, work, shard, dict(zip(sites, made, strict=True)), tokens, params)
        if writing:
            writing.result()
    work.wait()
    rounding = None
    if params.dtype == "int8" and runtime().rank == 0:
        rounding = {str(site): _rounding(work, site) for site in sites}
    return {
        "d_model": d_model,
        "sites": params.sites,
        "dtype": params.dtype,
        "rounding_fvu": distributed.from_first(rounding),
        "row_group_tokens": params.row_group_tokens,
        "mixed_shards": params.mixed_shards,
        "tokens": {
            split: sum(shard.rows for shard in each)
            for split, each in {"train": train, "validation": validation}.items()
        },
    }


def _write(
    work: Work, shard: ActivationShard, made: Mapping[Site, Tensor], tokens: Tokens, params: ActivationsParams
) -> None:
    for site, x in made.items():
        activations = shuffled(x, tokens, shard, params, site)
        with work.write(_name(site, shard)) as pending:
            pending.rows = shard.rows
            write_activations(pending.path, activations, params.row_group_tokens)


def _name(site: Site, shard: ActivationShard) -> str:
    return f"{site}/{shard.name}"


def _rounding(work: Work, site: Site) -> float:
    """The fraction of variance lost to int8 rounding, averaged over the files."""
    names = sorted(name for name in work.records() if name.startswith(f"{site}/"))
    scales = [scale_of(pq.read_schema(work.files / name).metadata) for name in names]
    return float(np.mean([scale.fvu for scale in scales if scale]))


def _check_disk(work: Work, needed: int, written: int) -> None:
    free = shutil.disk_usage(work.path).free
    say(f"activations: {_megabytes(needed)} to store, {_megabytes(written)} stored so far; {_megabytes(free)} are free")
    if needed - written > free:
        raise UserError(
            f"activations: {_megabytes(needed - written)} are still to be written to {work.path}, "
            f"where {_megabytes(free)} are free; lower activations.tokens, set keep: false, or make room"
        )


def _megabytes(size: int) -> str:
    return f"{-(-size // 10**6):,} MB"
