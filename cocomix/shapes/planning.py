"""Estimated needs of each stage, from the parameters alone: text, FLOPs, disk and memory, computed without tensors.

FLOPs are matrix products, two operations per multiply-add, as `cocomix.shapes.models` counts. With F FLOPs per token
of the base model's forward pass, f of them up to the layer, d its width, C latents:

    base_tokens  none; with base.tokenizer: own, F and f are for each of the base model's tokens
    base         3 F per training token; if pretrained, F per validation token
    activations  f per stored token
    sae          `cocomix.shapes.label_flops`, per token and epoch; plus f if the activations are not kept
    attribution  `cocomix.shapes.label_flops`, per training and validation token
    distribution F per training and validation token; 0 without draws
    explain      f + 2 d C per token read
    pretrain     3 times the model's forward pass per token, plus the base model's part
    with Muon    also the orthogonalisation of each matrix of the blocks, per step, in base and pretrain
    evaluate     the model's forward pass per held-out token; for CoCoMix also the passes with changed concepts
    steer        for each edit, the model's forward pass per token of the text and of the continuation; and for each
                 concept, that of the windows in which it is doubled

Training FLOPs are counted as in the metrics, without the validation losses. Disk is the size of the artifact, plus that
of the work folder while the stage runs. Memory is a rough estimate for one process: weights, gradients and AdamW's two
moments in fp32, 16 bytes per parameter, or 12 with Muon's one; and activations kept for the backward pass, 34 bytes per
layer, position and dimension (Korthikanti et al. 2022, arXiv 2205.05198, Eq. 2, without the attention matrix). A base
model that only runs has the bytes of its weights, in base.dtype; up to the layer where no block above it is needed.
Measured constants name their source.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from cocomix.params import (
    CocomixParams,
    MethodParams,
    MtpParams,
    Params,
    SaeParams,
    Site,
    TrainingParams,
    mixes_concepts,
    reads_distribution,
    runs_base,
)
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import LOGITS
from cocomix.shapes.label_flops import attribution_flops, sae_flops
from cocomix.shapes.models import (
    Shape,
    TeacherSizes,
    Vocabulary,
    block_matrices,
    deepened,
    dimensions,
    flops_per_token,
    newton_schulz_flops,
    parameters_of,
    plain_shape,
    shape_of,
    shapes,
    training_flops,
)
from cocomix.shapes.pretrained import pretrained_shape

INSTALLED_DOCS_BYTES = 13e6
"""Text in the documentation of some 200 packages, where corpus.megabytes sets no limit."""
CORPUS_COMPRESSION = 0.4
"""Compressed over raw size of English text with zstd; measured on the default corpus: 0.37."""
BYTES_PER_TOKEN = ((512, 2.3), (4096, 3.86), (50257, 4.40))
"""By vocabulary size of a byte-level BPE: smoke test, default run, GPT-2's on OpenWebText."""
TOKENIZER_BYTES = 65
"""Size of tokenizer.json per entry, measured in the default run."""
PRETRAINED_VOCABULARY = 50257
"""GPT-2's, assumed until the stage has read the tokenizer."""
ORIGIN_BYTES = 5
"""Token, document and position of a stored activation, compressed."""
SCORE_BITS = 13
"""A label's score, compressed; its concept number takes log2 C bits."""
UNIQUE_EXPONENT = ((512, 0.95), (4096, 0.89), (50257, 0.64))
"""By vocabulary size: of D tokens drawn at a position, D to this power are different. Smoke test, default run, and 12
of 50 in arXiv 2503.16870; a better base model has fewer. Each takes log2 V bits with its count, compressed: measured
0.4 and 0.8 less."""
DRAWN_BYTES = 2
"""Entropy of a position and number of its different tokens, compressed."""
ENCODINGS = 4.5
"""Times that `tokenize` could encode the text while `base_tokens` encodes it in the base model's tokens, and then in
both models' with their places, which takes longer; measured on Python's help topics."""
NUMBER_BYTES = {"fp32": 4, "bf16": 2}
"""Of a weight, by base.dtype."""
FORWARD_TOKENS = 2048
"""Tokens per forward pass of a frozen model, as `cocomix.base.loading.micro_batch` on a CPU."""
LIBRARIES = 500e6
"""Memory of a process after importing torch and transformers."""
INTERVENTIONS = 12
"""Passes over evaluate.intervention_windows with changed concepts, or with true labels substituted one by one."""
DOUBLED = 2
"""Windows in which `steer` doubles a concept: `cocomix.predictions.measure.DOUBLED`, which imports torch."""
PLAIN = 100e6
"""Memory of a process that imports neither torch nor transformers."""


class Words(NamedTuple):
    """The assumed `Vocabulary` before tokens exist."""

    vocab_size: int
    context: int
    eos_id: int = 0


class CorpusSize(NamedTuple):
    """The size of a corpus."""

    bytes: dict[str, float]
    """UTF-8 bytes of each split."""
    tokens: dict[str, float]
    """Tokens of each split."""
    vocab_size: int


class StageNeeds(NamedTuple):
    """Estimated needs of a stage."""

    text: float = 0.0
    """Bytes of text that it processes."""
    flops: float = 0.0
    disk: float = 0.0
    """Bytes of its artifact."""
    scratch: float = 0.0
    """Bytes of its work folder while it runs, besides the artifact: checkpoints, unpacked labels and draws."""
    memory: float = LIBRARIES
    """Bytes of one process, independent of the micro-batch."""
    window_memory: float = 0.0
    """Additional bytes per window of the micro-batch in training."""


def estimated_corpus(params: Params, corpus_bytes: float | None) -> CorpusSize:
    """Estimate the size of a corpus before it exists.

    Args:
        corpus_bytes: size of the source, if known.

    Raises:
        UserError: when neither the source nor corpus.megabytes gives a size.
    """
    known = INSTALLED_DOCS_BYTES if params.corpus.source == "installed-docs" else corpus_bytes
    _, most = params.corpus.limit
    total = min(most, math.inf if known is None else known)
    if math.isinf(total):
        raise UserError(
            "corpus.megabytes: null: the size of a dataset of the hub is not known before it is read; set a limit"
        )
    shares = {"validation": params.corpus.validation_share, "test": params.corpus.test_share}
    shares = {"train": 1 - sum(shares.values())} | shares
    trained = params.tokenize.source == "train"
    vocab_size = params.tokenize.vocab_size if trained else PRETRAINED_VOCABULARY
    bytes_per_token = _by_vocabulary(BYTES_PER_TOKEN, vocab_size)
    sizes = {split: share * total for split, share in shares.items()}
    return CorpusSize(sizes, {split: size / bytes_per_token for split, size in sizes.items()}, vocab_size)


def stage_needs(params: Params, text: CorpusSize, pretrained: Mapping[str, Any] | None = None) -> dict[str, StageNeeds]:
    """Estimate the needs of each stage, by its name in dvc.yaml.

    Args:
        text: `measured_corpus` or `estimated_corpus`.
        pretrained: the configuration of the model of `pretrain.init`; None: `pretrain.model` is assumed.

    Raises:
        UserError: when `pretrain.model` is assumed, and has no block above a concept layer.
    """
    words = Words(text.vocab_size, params.tokenize.context)
    windows = {split: tokens // words.context for split, tokens in text.tokens.items()}
    total = sum(text.bytes.values())
    read = _of_base(params, text)
    base_words = Words(read.vocab_size, params.base.context or words.context)
    base_windows = {split: tokens // base_words.context for split, tokens in read.tokens.items()}
    base = plain_shape(params.base.model, base_words)
    whole = flops_per_token(base, base_words.context)
    width = params.base.model.d_model
    blocks = whole - 2 * width * base_words.vocab_size
    site = Site.parse(params.sae.site or params.activations.sites[0])
    teacher = TeacherSizes(params.sae.concepts, width, whole, _to_layer(blocks, base, site.layer))
    stored = {
        "train": min(params.activations.tokens, base_windows["train"] * base_words.context),
        "validation": min(params.activations.validation_tokens, base_windows["validation"] * base_words.context),
    }
    found = {
        "corpus": StageNeeds(total, disk=CORPUS_COMPRESSION * total, memory=150e6 + 3 * min(total, 100e6)),
        "tokenize": StageNeeds(
            total,
            disk=_ids(text) + 4 * sum(windows.values()) + TOKENIZER_BYTES * words.vocab_size,
            scratch=_ids(text),
            memory=150e6 + 3 * min(params.tokenize.train_megabytes * 1e6, total),
        ),
        "base_tokens": _base_tokens(params, text, read),
        "base": _base(params, base, whole, read),
        "activations": _activations(params, base, blocks, stored),
        "sae": _saes(params, base, base_words, teacher.base_flops_to_layer, stored),
        "attribution": _attribution(params, teacher, base, windows, words, base_windows, base_words),
        "distribution": _distribution(params, base, whole, windows, words),
        "explain": _explain(params, base, teacher, base_words, read),
        "methods": StageNeeds(disk=2000, memory=PLAIN),
        "report": StageNeeds(disk=5e4, memory=2 * PLAIN),
    }
    if pretrained is None and params.pretrain.init.source == "pretrained":
        for key, layer in params.pretrain.concept_layers.items():
            if layer >= params.pretrain.model.n_layer:
                raise UserError(
                    f"pretrain.init.path: {params.pretrain.init.path!r} is not on this machine, and pretrain.{key} "
                    f"({layer}) is not below pretrain.model.n_layer ({params.pretrain.model.n_layer}): to plan, "
                    "download it, or set pretrain.model to its shape"
                )
    start = None if pretrained is None else pretrained_shape(pretrained, params.pretrain.model.dropout, words)
    models = shapes(params.pretrain, words, teacher, start)
    listed = params.pretrain.listed
    steered = [shape_of(name, models[name]) for name, section in listed.items() if mixes_concepts(section)]
    found["steer"] = _steer(params, steered, base, text)
    for name, section in listed.items():
        shape = shape_of(name, models[name])
        for seed in params.pretrain.seeds:
            found[f"pretrain@{name}-{seed}"] = _pretrain(params, section, shape, base, teacher, windows)
            found[f"evaluate@{name}-{seed}"] = _evaluate(params, shape, text)
    return found


def _of_base(params: Params, text: CorpusSize) -> CorpusSize:
    """The corpus in the base model's tokens."""
    if params.base.tokenizer == "shared":
        return text
    bytes_per_token = _by_vocabulary(BYTES_PER_TOKEN, PRETRAINED_VOCABULARY)
    tokens = {split: size / bytes_per_token for split, size in text.bytes.items()}
    return CorpusSize(text.bytes, tokens, PRETRAINED_VOCABULARY)


def _ids(text: CorpusSize) -> float:
    """Bytes of the token ids."""
    return sum(text.tokens.values()) * (2 if text.vocab_size <= 2**16 else 4)


def _base_tokens(params: Params, text: CorpusSize, read: CorpusSize) -> StageNeeds:
    if params.base.tokenizer == "shared":
        return StageNeeds(disk=500, memory=PLAIN)
    labelled = text.tokens["train"] + text.tokens["validation"]
    place = 4 if max(read.tokens.values()) < 2**31 else 8
    return StageNeeds(
        ENCODINGS * sum(text.bytes.values()),
        disk=_ids(read) + place * labelled + TOKENIZER_BYTES * read.vocab_size,
        scratch=_ids(read) + 8 * labelled,
        memory=250e6,
    )


def _by_vocabulary(points: tuple[tuple[int, float], ...], vocab_size: int) -> float:
    """Interpolate and extrapolate linearly in the logarithm of the vocabulary size."""
    (left, low), (middle, between), (right, high) = ((math.log2(size), each) for size, each in points)
    at = math.log2(vocab_size)
    if at < middle:
        return low + (between - low) * (at - left) / (middle - left)
    return between + (high - between) * (at - middle) / (right - middle)


def _to_layer(blocks: float, base: Shape, layer: int) -> int:
    return int(blocks * layer / dimensions(base).n_layer)


def _saved(shape: Shape, number: int = 4) -> float:
    """Bytes of a model's folder.

    Args:
        number: bytes of a weight.
    """
    code = 70e3 if "concept_layer" in shape else 4e3
    return number * parameters_of(shape).stored + TOKENIZER_BYTES * shape["vocab_size"] + code


def _held(params: Params, base: Shape, layers: int | None = None) -> float:
    """Bytes of the base model's weights.

    Args:
        layers: of its embeddings and this many blocks; None: of all.
    """
    size, stored = dimensions(base), parameters_of(base).stored
    embeddings = size.d_model * base["vocab_size"]
    some = stored if layers is None else embeddings + (stored - embeddings) * layers / size.n_layer
    return NUMBER_BYTES[params.base.dtype] * some


def _window_memory(shape: Shape, context: int) -> float:
    """Memory per window: the blocks' activations, attention matrices where they are materialised, and logits."""
    size = dimensions(shape)
    d, layers = size.d_model, size.n_layer
    interleaved = shape.get("mixing") in ("interleave", "interleave_with_state")
    above = layers - shape["concept_layer"] if interleaved else 0
    positions = context * (layers + above)
    attention = 10 * size.n_head * context**2 * (layers + 3 * above) if context <= 512 else 0
    concepts = 6 * context * shape["num_concepts"] if shape.get("predicts") == "concepts" else 0
    return 34 * d * positions + attention + concepts + 6 * context * shape["vocab_size"]


class _Optimizing(NamedTuple):
    """What the optimiser of a training run needs."""

    flops: float
    """Of all steps."""
    state: float
    """Bytes of its moments."""


def _optimizing(training: TrainingParams, shape: Shape) -> _Optimizing:
    stored = parameters_of(shape).stored
    if training.optimizer == "adamw":
        return _Optimizing(0, 8 * stored)
    matrices = block_matrices(shape)
    flops = sum(newton_schulz_flops(*each) for each in matrices)
    return _Optimizing(training.steps * flops, 8 * stored - 4 * sum(rows * columns for rows, columns in matrices))


def _base(params: Params, shape: Shape, whole: int, text: CorpusSize) -> StageNeeds:
    training, stored = params.base.training, parameters_of(shape).stored
    if params.base.source == "pretrained":
        disk = _saved(shape, NUMBER_BYTES[params.base.dtype])
        memory = LIBRARIES + 2 * _held(params, shape)
        return StageNeeds(flops=whole * text.tokens["validation"], disk=disk, memory=memory)
    tokens = training.steps * training.batch_size * dimensions(shape).context
    optimizing = _optimizing(training, shape)
    return StageNeeds(
        flops=3 * whole * tokens + optimizing.flops,
        disk=_saved(shape),
        scratch=2 * (4 * stored + optimizing.state),
        memory=LIBRARIES + 8 * stored + optimizing.state,
        window_memory=_window_memory(shape, params.tokenize.context),
    )


def _activations(params: Params, base: Shape, blocks: float, stored: dict[str, float]) -> StageNeeds:
    section, width = params.activations, dimensions(base).d_model
    row = width * (1 if section.dtype == "int8" else 2) + ORIGIN_BYTES
    rows = stored["validation"] + section.keep * stored["train"]
    last = max(Site.parse(each).layer for each in section.sites)
    made, coding = (4, 16) if section.dtype == "int8" else (2, 4)  # bytes of a number
    gathered = 2 * len(section.sites) * made + coding  # two shards at all sites, and one that is being encoded
    return StageNeeds(
        flops=_to_layer(blocks, base, last) * rows,
        disk=row * rows * len(section.sites),
        memory=LIBRARIES + _held(params, base, last) + gathered * section.shard_tokens * width,
    )


def _saes(params: Params, base: Shape, words: Vocabulary, to_layer: float, stored: dict[str, float]) -> StageNeeds:
    width = dimensions(base).d_model

    def weights(section: SaeParams) -> int:
        return 2 * width * section.latents + section.latents + width

    sections = [params.sae, *params.sae.others().values()]
    disk = 4 * sum(map(weights, sections))
    splicing = _held(params, base) + 4 * words.vocab_size * (3 * FORWARD_TOKENS + 5 * words.context)
    # What is not stored is computed by a base model of its own for each site, which stays in memory to the end.
    sites = {each.site or params.activations.sites[0] for each in sections} if not params.activations.keep else set()
    held = LIBRARIES + sum(_held(params, base, Site.parse(each).layer) for each in sites)
    if params.sae.source == "published":
        return StageNeeds(disk=disk, memory=held + 2 * disk + splicing)
    steps = sum(sae_flops(width, each.latents, each.k) * each.epochs for each in sections)
    again = 0 if params.activations.keep else to_layer * max(each.epochs for each in sections)
    batch = 8 * params.sae.batch_size * sum(each.latents for each in sections)
    return StageNeeds(
        flops=(steps + again) * stored["train"],
        disk=disk,
        scratch=2 * 3 * disk,
        memory=held + max(4 * disk + batch, disk + splicing),
    )


def _attribution(
    params: Params,
    teacher: TeacherSizes,
    base: Shape,
    windows: dict[str, float],
    words: Vocabulary,
    base_windows: dict[str, float],
    base_words: Vocabulary,
) -> StageNeeds:
    positions, read = (
        (count["train"] + count["validation"]) * each.context
        for count, each in ((windows, words), (base_windows, base_words))
    )
    label = (math.log2(teacher.latents) + SCORE_BITS) / 8
    layer = Site.parse(params.sae.site or params.activations.sites[0]).layer
    return StageNeeds(
        flops=attribution_flops(params.attribution, teacher, params.sae.latents, params.sae.k, base_words.context)
        * read,
        disk=label * params.attribution.k_attr * positions,
        memory=LIBRARIES
        + _held(params, base, layer if params.attribution.score == "activation" else None)
        + 16 * teacher.base_width * params.sae.latents
        + 8 * base_words.vocab_size * FORWARD_TOKENS,
    )


def _distribution(params: Params, base: Shape, whole: int, windows: dict[str, float], words: Vocabulary) -> StageNeeds:
    section = params.distribution
    if section.draws is None:
        return StageNeeds()
    positions = (windows["train"] + windows["validation"]) * words.context
    unique = _unique(section.draws, words.vocab_size)
    size = DRAWN_BYTES + unique * math.log2(words.vocab_size) / 8
    return StageNeeds(
        flops=whole * positions,
        disk=size * positions,
        memory=LIBRARIES
        + _held(params, base)
        + 4 * words.vocab_size * FORWARD_TOKENS
        + 2 * 3 * unique * min(section.shard_tokens, positions),
    )


def _unique(draws: int, vocab_size: int) -> float:
    """Different tokens among the draws of a position."""
    return float(draws ** _by_vocabulary(UNIQUE_EXPONENT, vocab_size))


def _explain(params: Params, base: Shape, teacher: TeacherSizes, words: Vocabulary, text: CorpusSize) -> StageNeeds:
    section = params.explain
    looked_at = min(section.tokens, text.tokens["train"]) + min(section.held_out_tokens, text.tokens["validation"])
    context = 2.3 * (section.before + 1 + section.after)
    concept = 300 + (section.contexts + section.quantiles) * context
    return StageNeeds(
        flops=(teacher.base_flops_to_layer + 2 * teacher.base_width * params.sae.latents) * looked_at,
        disk=teacher.latents * concept + 10 * words.vocab_size,
        memory=LIBRARIES
        + _held(params, base)
        + 16 * teacher.base_width * params.sae.latents
        + 8 * section.sample * teacher.latents,
    )


def _pretrain(
    params: Params, section: MethodParams, shape: Shape, base: Shape, teacher: TeacherSizes, windows: dict[str, float]
) -> StageNeeds:
    training, context = params.pretrain.training, params.tokenize.context
    further = section.tokens - 1 if isinstance(section, MtpParams) else 0
    in_training = deepened(shape, further)
    stored, optimizing = parameters_of(in_training).stored, _optimizing(training, in_training)
    base_bytes = _held(params, base) if runs_base(section) else 0.0
    positions, unpacked = (windows["train"] + windows["validation"]) * context, 0.0
    if isinstance(section, CocomixParams) and section.predicts == "concepts":
        label_bytes = (2 if teacher.latents < 2**16 else 4) + (2 if section.label_weights == "score" else 0)
        unpacked += positions * params.attribution.k_attr * label_bytes
    if params.distribution.draws and reads_distribution(section):
        id_bytes = 2 if shape["vocab_size"] <= 2**16 else 4
        unique = _unique(params.distribution.draws, shape["vocab_size"])
        unpacked += positions * (3 + unique * (id_bytes + 1))
    return StageNeeds(
        flops=training_flops(shape, section, teacher, context) * training.steps * training.batch_size * context
        + optimizing.flops,
        disk=_saved(shape),
        scratch=2 * (4 * stored + optimizing.state) + unpacked,
        memory=LIBRARIES + 8 * stored + optimizing.state + base_bytes,
        window_memory=_window_memory(in_training, context),
    )


def _evaluate(params: Params, shape: Shape, text: CorpusSize) -> StageNeeds:
    section, context = params.evaluate, params.tokenize.context
    overlap = context / section.stride if section.stride else 1
    tokens = (text.tokens["validation"] + text.tokens["test"]) * overlap
    disk = 2e3
    if shape.get("predicts") == "concepts":
        changed = min(section.intervention_windows * context, text.tokens["validation"])
        tokens += text.tokens["validation"] + INTERVENTIONS * changed
        disk += 3e3 + 50 * shape["num_concepts"]
    stored = parameters_of(shape).stored
    logits = min(section.batch_size * context * shape["vocab_size"], LOGITS)
    return StageNeeds(
        flops=flops_per_token(shape, context) * tokens, disk=disk, memory=LIBRARIES + 4 * stored + 6 * logits
    )


def _steer(params: Params, steered: list[Shape], base: Shape, text: CorpusSize) -> StageNeeds:
    if not steered:
        return StageNeeds()
    section, context = params.steer, params.tokenize.context
    edits, seeds = section.concepts * len(section.strengths), len(params.pretrain.seeds)
    tokens = section.windows * (context + section.prompt_tokens + section.new_tokens)
    two_edits_of_each_model = 2 * seeds * sum(flops_per_token(each, context) for each in steered)
    sweeps = 2 * seeds * len(steered) + 1
    windows = min(section.read_windows, text.tokens["validation"] // context)
    reading = sum(flops_per_token(each, context) * (windows + DOUBLED * each["num_concepts"]) for each in steered)
    return StageNeeds(
        flops=edits * tokens * (two_edits_of_each_model + flops_per_token(base, context)) + seeds * context * reading,
        disk=10e3 + 150 * sweeps * edits,
        memory=LIBRARIES + 4 * seeds * sum(parameters_of(each).stored for each in steered) + _held(params, base),
    )


def measured_corpus(corpus: dict[str, Any], tokenize: dict[str, Any]) -> CorpusSize:
    """The size of an existing corpus, from the metrics of the stages corpus and tokenize."""
    splits = ("train", "validation", "test")
    return CorpusSize(
        {split: corpus[split]["bytes"] for split in splits},
        {split: tokenize[split]["tokens"] for split in splits},
        tokenize["vocab_size"],
    )
