"""What each stage will need, from the parameters alone: text, operations, disk and memory. Knows no tensor.

Operations are matrix products, two a multiply-add, as `cocomix.shapes.models` counts. With F operations of the base
model's forward pass a token, f of them up to the layer, d its width, C latents:

    base         3 F a token that it is trained on; from elsewhere, F a validation token
    activations  f a stored token
    sae          as `cocomix.shapes.label_flops` says, a token and epoch; and f where the activations are not kept
    attribution  as `cocomix.shapes.label_flops` says, a training or validation token
    explain      f + 2 d C a token that is looked at
    pretrain     3 times the model's forward pass a token, and what the base model adds to it
    evaluate     the model's forward pass a held-out token; for CoCoMix also the passes with changed concepts
    steer        for each edit, the model's forward pass a token of the text and of what it writes

Trainings are counted as their metrics count them, without the validation losses on the way. Disk is what the artifact
holds, and beside it what lies in the work folder while the stage runs. Memory is that of one process, roughly: weights,
gradients and AdamW's two moments in fp32, 16 bytes a parameter; and what a forward pass keeps for the backward, 34
bytes a layer, position and dimension (Korthikanti et al. 2022, arXiv 2205.05198, Eq. 2, without the attention matrix).
Constants that were measured say where.
"""

import math
from typing import Any, NamedTuple

from cocomix.params import Method, Params, SaeParams, Site
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import LOGITS
from cocomix.shapes.label_flops import attribution_flops, sae_flops
from cocomix.shapes.models import (
    Shape,
    TeacherSizes,
    Vocabulary,
    flops_per_token,
    gpt2_shape,
    parameters_of,
    shape_of,
    shapes,
)

INSTALLED_DOCS_BYTES = 13e6
"""Of the documentation of some 200 packages, where corpus.megabytes sets no limit."""
CORPUS_COMPRESSION = 0.4
"""zstd on English text: 0.37 on the default corpus."""
BYTES_PER_TOKEN = ((512, 2.3), (4096, 3.86), (50257, 4.40))
"""By entries of a byte-level BPE: of the smoke test, of the default run, of GPT-2's on OpenWebText."""
TOKENIZER_BYTES = 65
"""tokenizer.json, an entry: of the default run."""
PRETRAINED_VOCABULARY = 50257
"""GPT-2's, until the stage has read the tokenizer."""
ORIGIN_BYTES = 5
"""Beside each stored activation: token, document and position, compressed."""
SCORE_BITS = 13
"""Of a label's score, compressed; its number takes log2 C bits."""
FORWARD_TOKENS = 2048
"""Of a forward pass of a frozen model, `cocomix.base.loading.micro_batch` on a CPU."""
LIBRARIES = 500e6
"""Memory of a process that has only imported torch and transformers."""
INTERVENTIONS = 12
"""Passes over evaluate.intervention_windows, and over labels told one after another."""


class Words(NamedTuple):
    """A vocabulary that is not there yet."""

    vocab_size: int
    context: int
    eos_id: int = 0


class CorpusSize(NamedTuple):
    """A corpus."""

    bytes: dict[str, float]
    """UTF-8 bytes of each split."""
    tokens: dict[str, float]
    """Tokens of each split."""
    vocab_size: int


class StageNeeds(NamedTuple):
    """What a stage needs."""

    text: float = 0.0
    """Bytes of text that it works through."""
    flops: float = 0.0
    disk: float = 0.0
    """Bytes of its artifact."""
    scratch: float = 0.0
    """Bytes beside it while it runs: checkpoints, labels as they are read."""
    memory: float = LIBRARIES
    """Bytes of one process, whatever it computes at a time."""
    window_memory: float = 0.0
    """And for each window of a training step that it computes at a time."""


def estimated_corpus(params: Params, corpus_bytes: float | None) -> CorpusSize:
    """What a corpus will be, before it is there.

    Args:
        corpus_bytes: of the source, where that is known.

    Raises:
        UserError: when nothing says how large it will be.
    """
    limit = math.inf if params.corpus.megabytes is None else params.corpus.megabytes * 1e6
    known = INSTALLED_DOCS_BYTES if params.corpus.source == "installed-docs" else corpus_bytes
    total = min(limit, math.inf if known is None else known)
    if math.isinf(total):
        raise UserError("corpus.megabytes: null: how large a dataset of the hub is shows when it is read; set a limit")
    shares = {"validation": params.corpus.validation_share, "test": params.corpus.test_share}
    shares = {"train": 1 - sum(shares.values())} | shares
    trained = params.tokenize.source == "train"
    vocab_size = params.tokenize.vocab_size if trained else PRETRAINED_VOCABULARY
    sizes = {split: share * total for split, share in shares.items()}
    return CorpusSize(sizes, {split: size / _bytes_per_token(vocab_size) for split, size in sizes.items()}, vocab_size)


def stage_needs(params: Params, text: CorpusSize) -> dict[str, StageNeeds]:
    """What each stage needs, by its name in dvc.yaml.

    Args:
        text: what is known of the corpus, or `estimated_corpus`.
    """
    words = Words(text.vocab_size, params.tokenize.context)
    windows = {split: tokens // words.context for split, tokens in text.tokens.items()}
    total = sum(text.bytes.values())
    base = gpt2_shape(params.base.model, words)
    whole = flops_per_token(base, words.context)
    blocks = whole - 2 * base["n_embd"] * words.vocab_size
    site = Site.parse(params.sae.site or params.activations.sites[0])
    teacher = TeacherSizes(params.sae.concepts, base["n_embd"], whole, _to_layer(blocks, base, site.layer))
    stored = {
        "train": min(params.activations.tokens, windows["train"] * words.context),
        "validation": min(params.activations.validation_tokens, windows["validation"] * words.context),
    }
    found = {
        "corpus": StageNeeds(total, disk=CORPUS_COMPRESSION * total, memory=150e6 + 3 * min(total, 100e6)),
        "tokenize": StageNeeds(
            total,
            disk=sum(text.tokens.values()) * (2 if words.vocab_size <= 2**16 else 4)
            + 4 * sum(windows.values())
            + TOKENIZER_BYTES * words.vocab_size,
            scratch=sum(text.tokens.values()) * (2 if words.vocab_size <= 2**16 else 4),
            memory=150e6 + 3 * min(params.tokenize.train_megabytes * 1e6, total),
        ),
        "base": _base(params, base, whole, text),
        "activations": _activations(params, base, blocks, stored),
        "sae": _saes(params, base["n_embd"], words, teacher.base_flops_to_layer, stored),
        "attribution": _attribution(params, teacher, base, windows, words),
        "explain": _explain(params, teacher, words, text),
        "shapes": StageNeeds(disk=2000),
        "report": StageNeeds(disk=5e4, memory=100e6),
    }
    models = shapes(params.pretrain, words, teacher)
    found["steer"] = _steer(params, shape_of("cocomix", models), base)
    for method in params.pretrain.methods:
        shape = shape_of(method, models)
        for seed in params.pretrain.seeds:
            found[f"pretrain@{method}-{seed}"] = _pretrain(params, method, shape, base, teacher, windows)
            found[f"evaluate@{method}-{seed}"] = _evaluate(params, method, shape, text)
    return found


def _bytes_per_token(vocab_size: int) -> float:
    """Linear in the logarithm of the vocabulary, between the points that were measured and beyond."""
    (left, low), (middle, between), (right, high) = ((math.log2(size), each) for size, each in BYTES_PER_TOKEN)
    at = math.log2(vocab_size)
    if at < middle:
        return low + (between - low) * (at - left) / (middle - left)
    return between + (high - between) * (at - middle) / (right - middle)


def _to_layer(blocks: float, base: Shape, layer: int) -> int:
    return int(blocks * layer / base["n_layer"])


def _saved(shape: Shape) -> float:
    code = 50e3 if "concept_layer" in shape else 4e3
    return 4 * parameters_of(shape).stored + TOKENIZER_BYTES * shape["vocab_size"] + code


def _window_memory(shape: Shape) -> float:
    """Of a window: what the blocks keep, the attention matrices where they are made, and a chunk of logits."""
    context, d, layers = shape["n_positions"], shape["n_embd"], shape["n_layer"]
    interleaved = shape.get("mixing") in ("interleave", "interleave_with_state")
    above = layers - shape["concept_layer"] if interleaved else 0
    positions = context * (layers + above)
    attention = 10 * shape["n_head"] * context**2 * (layers + 3 * above) if context <= 512 else 0
    concepts = 6 * context * shape["num_concepts"] if shape.get("predicts") == "concepts" else 0
    return 34 * d * positions + attention + concepts + 6 * context * shape["vocab_size"]


def _base(params: Params, shape: Shape, whole: int, text: CorpusSize) -> StageNeeds:
    training, stored = params.base.training, parameters_of(shape).stored
    if params.base.source == "pretrained":
        return StageNeeds(flops=whole * text.tokens["validation"], disk=_saved(shape), memory=LIBRARIES + 8 * stored)
    tokens = training.steps * training.batch_size * shape["n_positions"]
    return StageNeeds(
        flops=3 * whole * tokens,
        disk=_saved(shape),
        scratch=2 * 12 * stored,
        memory=LIBRARIES + 16 * stored,
        window_memory=_window_memory(shape),
    )


def _activations(params: Params, base: Shape, blocks: float, stored: dict[str, float]) -> StageNeeds:
    section = params.activations
    row = base["n_embd"] * (1 if section.dtype == "int8" else 2) + ORIGIN_BYTES
    rows = stored["validation"] + section.keep * stored["train"]
    to_last = _to_layer(blocks, base, max(Site.parse(each).layer for each in section.sites))
    made, coding = (4, 16) if section.dtype == "int8" else (2, 4)  # bytes of a number
    gathered = 2 * len(section.sites) * made + coding  # of two shards at all sites, and of one being coded
    return StageNeeds(
        flops=to_last * rows,
        disk=row * rows * len(section.sites),
        memory=LIBRARIES + 4 * parameters_of(base).stored + gathered * section.shard_tokens * base["n_embd"],
    )


def _saes(params: Params, width: int, words: Vocabulary, to_layer: float, stored: dict[str, float]) -> StageNeeds:
    def weights(section: SaeParams) -> int:
        return 2 * width * section.latents + section.latents + width

    sections = [params.sae, *params.sae.others().values()]
    disk = 4 * sum(map(weights, sections))
    splicing = 4 * words.vocab_size * (3 * FORWARD_TOKENS + 5 * words.context)
    if params.sae.source == "published":
        return StageNeeds(disk=disk, memory=LIBRARIES + 2 * disk + splicing)
    steps = sum(sae_flops(width, each.latents, each.k) * each.epochs for each in sections)
    again = 0 if params.activations.keep else to_layer * max(each.epochs for each in sections)
    batch = 8 * params.sae.batch_size * sum(each.latents for each in sections)
    return StageNeeds(
        flops=(steps + again) * stored["train"],
        disk=disk,
        scratch=2 * 3 * disk,
        memory=LIBRARIES + max(4 * disk + batch, disk + splicing),
    )


def _attribution(
    params: Params, teacher: TeacherSizes, base: Shape, windows: dict[str, float], words: Vocabulary
) -> StageNeeds:
    positions = (windows["train"] + windows["validation"]) * words.context
    label = (math.log2(teacher.latents) + SCORE_BITS) / 8
    return StageNeeds(
        flops=attribution_flops(params.attribution, teacher, params.sae.latents, params.sae.k, words.context)
        * positions,
        disk=label * params.attribution.k_attr * positions,
        memory=LIBRARIES
        + 4 * parameters_of(base).stored
        + 16 * teacher.base_width * params.sae.latents
        + 8 * words.vocab_size * FORWARD_TOKENS,
    )


def _explain(params: Params, teacher: TeacherSizes, words: Vocabulary, text: CorpusSize) -> StageNeeds:
    section = params.explain
    looked_at = min(section.tokens, text.tokens["train"]) + min(section.held_out_tokens, text.tokens["validation"])
    context = 2.3 * (section.before + 1 + section.after)
    concept = 300 + (section.contexts + section.quantiles) * context
    return StageNeeds(
        flops=(teacher.base_flops_to_layer + 2 * teacher.base_width * params.sae.latents) * looked_at,
        disk=teacher.latents * concept + 10 * words.vocab_size,
        memory=LIBRARIES + 16 * teacher.base_width * params.sae.latents + 8 * section.sample * teacher.latents,
    )


def _pretrain(
    params: Params, method: Method, shape: Shape, base: Shape, teacher: TeacherSizes, windows: dict[str, float]
) -> StageNeeds:
    section, context = params.pretrain, shape["n_positions"]
    stored = parameters_of(shape).stored
    token, teacher_bytes, labels = 3 * flops_per_token(shape, context), 0.0, 0.0
    if method == "kd":
        token, teacher_bytes = token + teacher.base_flops, 4 * parameters_of(base).stored
    elif method == "cocomix" and section.cocomix.predicts == "hidden":
        token, teacher_bytes = token + teacher.base_flops_to_layer, 4 * parameters_of(base).stored
    elif method == "cocomix":
        size = 2 if teacher.latents < 2**16 else 4
        labels = (windows["train"] + windows["validation"]) * context * params.attribution.k_attr * size
    return StageNeeds(
        flops=token * section.training.steps * section.training.batch_size * context,
        disk=_saved(shape),
        scratch=2 * 12 * stored + labels,
        memory=LIBRARIES + 16 * stored + teacher_bytes,
        window_memory=_window_memory(shape),
    )


def _evaluate(params: Params, method: Method, shape: Shape, text: CorpusSize) -> StageNeeds:
    section, context = params.evaluate, shape["n_positions"]
    overlap = context / section.stride if section.stride else 1
    tokens = (text.tokens["validation"] + text.tokens["test"]) * overlap
    disk = 2e3
    if method == "cocomix":
        changed = min(section.intervention_windows * context, text.tokens["validation"])
        tokens += text.tokens["validation"] + INTERVENTIONS * changed
        disk += 3e3 + 50 * shape["num_concepts"]
    stored = parameters_of(shape).stored
    logits = min(section.batch_size * context * shape["vocab_size"], LOGITS)
    return StageNeeds(
        flops=flops_per_token(shape, context) * tokens, disk=disk, memory=LIBRARIES + 4 * stored + 6 * logits
    )


def _steer(params: Params, cocomix: Shape, base: Shape) -> StageNeeds:
    section, context = params.steer, base["n_positions"]
    if "cocomix" not in params.pretrain.methods or cocomix["predicts"] != "concepts" or cocomix["mixing"] == "none":
        return StageNeeds()
    edits, seeds = section.concepts * len(section.strengths), len(params.pretrain.seeds)
    tokens = section.windows * (context + section.prompt_tokens + section.new_tokens)
    two_edits_of_each_model = 2 * seeds * flops_per_token(cocomix, context)
    sweeps = 2 * seeds + 1
    return StageNeeds(
        flops=edits * tokens * (two_edits_of_each_model + flops_per_token(base, context)),
        disk=10e3 + 150 * sweeps * edits,
        memory=LIBRARIES + 4 * (seeds * parameters_of(cocomix).stored + parameters_of(base).stored),
    )


def measured_corpus(corpus: dict[str, Any], tokenize: dict[str, Any]) -> CorpusSize:
    """The corpus that is there, from its metrics."""
    splits = ("train", "validation", "test")
    return CorpusSize(
        {split: corpus[split]["bytes"] for split in splits},
        {split: tokenize[split]["tokens"] for split in splits},
        tokenize["vocab_size"],
    )
