"""Draw tokens from the base model's distribution at each position of all training and validation windows."""

import numpy as np
import torch
from transformers import PreTrainedModel

from cocomix.corpus.splits import Split
from cocomix.distribution.draws import PackedDraws, pack, write_draws
from cocomix.distribution.sampling import sample, uniforms
from cocomix.params import DistributionParams
from cocomix.plumbing.artifact import Work
from cocomix.plumbing.device import autocast
from cocomix.plumbing.parts import Advance
from cocomix.tokens.shards import WindowShard, in_batches, write_shards
from cocomix.tokens.windows import Tokens


def make_draws(work: Work, model: PreTrainedModel, tokens: Tokens, params: DistributionParams) -> None:
    """Write this process's shards of draws, and wait for the other processes."""

    def compute(shard: WindowShard, advance: Advance) -> PackedDraws:
        def draw(windows: range) -> PackedDraws:
            return draw_windows(model, tokens, shard.split, windows, params)

        return in_batches(range(shard.start, shard.stop), tokens.context, draw, advance)

    write_shards(work, tokens, params.shard_tokens, compute, write_draws)


@torch.no_grad()
def draw_windows(
    model: PreTrainedModel, tokens: Tokens, split: Split, windows: range, params: DistributionParams
) -> PackedDraws:
    """The draws of some windows of a split, whose numbers in the split are `windows`."""
    assert params.draws is not None
    ids = torch.from_numpy(tokens.windows(split)[windows.start : windows.stop].astype(np.int64)).to(model.device)
    with autocast():
        logits = model(input_ids=ids, use_cache=False).logits
    # A pretrained base model's vocabulary may be padded beyond the tokenizer's.
    logits = logits.flatten(0, 1)[:, : tokens.vocab_size]
    numbers = torch.from_numpy(uniforms(params.seed, split, windows, tokens.context, params.draws)).to(model.device)
    drawn = sample(logits, numbers.flatten(0, 1), params.temperature)
    ids_by_window, entropies = drawn.ids.view(*ids.shape, params.draws), drawn.entropies.view(ids.shape)
    return pack(ids_by_window[:, :-1].cpu().numpy(), entropies[:, :-1].cpu().numpy(), tokens.vocab_size)
