"""The needs of what finds, assigns and explains concepts: sae, attribution, explain."""

import math

from cocomix.params import Params, SaeParams, Site
from cocomix.shapes.label_flops import attribution_flops, sae_flops
from cocomix.shapes.planning.base import stored_tokens
from cocomix.shapes.planning.models import held
from cocomix.shapes.planning.needs import FORWARD_TOKENS, LIBRARIES, StageNeeds
from cocomix.shapes.planning.sizes import Sizes

SCORE_BITS = 13
"""A label's score, compressed; its concept number takes log2 C bits."""


def sae_needs(params: Params, sizes: Sizes) -> StageNeeds:
    """The needs of `sae`."""
    base, words, width = sizes.base, sizes.base_words, sizes.teacher.base_width

    def weights(section: SaeParams) -> int:
        return 2 * width * section.latents + section.latents + width

    sections = [params.sae, *params.sae.others().values()]
    disk = 4 * sum(map(weights, sections))
    splicing = held(params, base) + 4 * words.vocab_size * (3 * FORWARD_TOKENS + 5 * words.context)
    # What is not stored is computed by a base model of its own for each site, which stays in memory to the end.
    sites = {each.site or params.activations.sites[0] for each in sections} if not params.activations.keep else set()
    reading = LIBRARIES + sum(held(params, base, Site.parse(each).layer) for each in sites)
    if params.sae.source == "published":
        return StageNeeds(disk=disk, memory=reading + 2 * disk + splicing)
    steps = sum(sae_flops(width, each.latents, each.k) * each.epochs for each in sections)
    again = 0 if params.activations.keep else sizes.teacher.base_flops_to_layer * max(each.epochs for each in sections)
    batch = 8 * params.sae.batch_size * sum(each.latents for each in sections)
    return StageNeeds(
        flops=(steps + again) * stored_tokens(params, sizes)["train"],
        disk=disk,
        scratch=2 * 3 * disk,
        memory=reading + max(4 * disk + batch, disk + splicing),
    )


def attribution_needs(params: Params, sizes: Sizes) -> StageNeeds:
    """The needs of `attribution`."""
    section, teacher, context = params.attribution, sizes.teacher, sizes.base_words.context
    label = (math.log2(teacher.concepts) + SCORE_BITS) / 8
    flops = attribution_flops(section, teacher, params.sae.latents, params.sae.k, context)
    return StageNeeds(
        flops=flops * sizes.base_text.positions(context),
        disk=label * section.k_attr * sizes.text.positions(sizes.words.context),
        memory=LIBRARIES
        + held(params, sizes.base, sizes.layer if section.score == "activation" else None)
        + 16 * teacher.base_width * params.sae.latents
        + 8 * sizes.base_words.vocab_size * FORWARD_TOKENS,
    )


def explain_needs(params: Params, sizes: Sizes) -> StageNeeds:
    """The needs of `explain`."""
    section, teacher, tokens = params.explain, sizes.teacher, sizes.base_text.tokens
    looked_at = min(section.tokens, tokens["train"]) + min(section.held_out_tokens, tokens["validation"])
    context = 2.3 * (section.before + 1 + section.after)
    concept = 300 + (section.contexts + section.quantiles) * context
    return StageNeeds(
        flops=(teacher.base_flops_to_layer + 2 * teacher.base_width * params.sae.latents) * looked_at,
        disk=teacher.concepts * concept + 10 * sizes.base_words.vocab_size,
        memory=LIBRARIES
        + held(params, sizes.base)
        + 16 * teacher.base_width * params.sae.latents
        + 8 * section.sample * teacher.concepts,
    )
