"""The needs of the base model, and of what it alone computes: base, activations, distribution."""

import math

from cocomix.params import Params, Site
from cocomix.shapes.models import dimensions, parameters_of
from cocomix.shapes.planning.corpus import by_vocabulary
from cocomix.shapes.planning.models import NUMBER_BYTES, held, optimizing, saved, window_memory
from cocomix.shapes.planning.needs import FORWARD_TOKENS, LIBRARIES, StageNeeds
from cocomix.shapes.planning.sizes import Sizes, flops_to_layer

ORIGIN_BYTES = 5
"""Token, document and position of a stored activation, compressed."""
UNIQUE_EXPONENT = ((512, 0.95), (4096, 0.89), (50257, 0.64))
"""By vocabulary size: of D tokens drawn at a position, D to this power are different. Smoke test, default run, and 12
of 50 in arXiv 2503.16870; a better base model has fewer. Each takes log2 V bits with its count, compressed: measured
0.4 and 0.8 less."""
DRAWN_BYTES = 2
"""Entropy of a position and number of its different tokens, compressed."""


def base_needs(params: Params, sizes: Sizes) -> StageNeeds:
    """The needs of `base`."""
    shape, whole = sizes.base, sizes.teacher.base_flops
    if params.base.source == "pretrained":
        disk = saved(shape, NUMBER_BYTES[params.base.dtype])
        memory = LIBRARIES + 2 * held(params, shape)
        return StageNeeds(flops=whole * sizes.base_text.tokens["validation"], disk=disk, memory=memory)
    training, stored = params.base.training, parameters_of(shape).stored
    tokens = training.steps * training.batch_size * dimensions(shape).context
    optimizer = optimizing(training, shape)
    return StageNeeds(
        flops=3 * whole * tokens + optimizer.flops,
        disk=saved(shape),
        scratch=2 * optimizer.checkpoint,
        checkpoints=optimizer.checkpoints,
        memory=LIBRARIES + 8 * stored + optimizer.state,
        window_memory=window_memory(shape, params.tokenize.context),
    )


def stored_tokens(params: Params, sizes: Sizes) -> dict[str, float]:
    """Tokens of each split that have stored activations, or computed ones where they are not kept."""
    context = sizes.base_words.context
    asked = {"train": params.activations.tokens, "validation": params.activations.validation_tokens}
    return {split: min(most, sizes.base_text.windows(split, context) * context) for split, most in asked.items()}


def activations_needs(params: Params, sizes: Sizes) -> StageNeeds:
    """The needs of `activations`."""
    section, width, tokens = params.activations, sizes.teacher.base_width, stored_tokens(params, sizes)
    row = width * (1 if section.dtype == "int8" else 2) + ORIGIN_BYTES
    rows = tokens["validation"] + section.keep * tokens["train"]
    last = max(Site.parse(each).layer for each in section.sites)
    made, coding = (4, 16) if section.dtype == "int8" else (2, 4)  # bytes of a number
    gathered = 2 * len(section.sites) * made + coding  # two shards at all sites, and one that is being encoded
    return StageNeeds(
        flops=flops_to_layer(sizes.base, last) * rows,
        disk=row * rows * len(section.sites),
        memory=LIBRARIES + held(params, sizes.base, last) + gathered * section.shard_tokens * width,
    )


def distribution_needs(params: Params, sizes: Sizes) -> StageNeeds:
    """The needs of `distribution`."""
    section, words = params.distribution, sizes.words
    if section.draws is None:
        return StageNeeds()
    positions = sizes.text.positions(words.context)
    unique = unique_draws(section.draws, words.vocab_size)
    size = DRAWN_BYTES + unique * math.log2(words.vocab_size) / 8
    return StageNeeds(
        flops=sizes.teacher.base_flops * positions,
        disk=size * positions,
        memory=LIBRARIES
        + held(params, sizes.base)
        + 4 * words.vocab_size * FORWARD_TOKENS
        + 2 * 3 * unique * min(section.shard_tokens, positions),
    )


def unique_draws(draws: int, vocab_size: int) -> float:
    """Different tokens among the draws of a position."""
    return float(draws ** by_vocabulary(UNIQUE_EXPONENT, vocab_size))
