"""Build the atlas: scan the text, label and score the concepts, write the tables."""

from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.base.blocks import check_layer
from cocomix.corpus.splits import Split
from cocomix.explain.atlas import (
    CONCEPTS,
    CONCEPTS_SCHEMA,
    CONTEXTS,
    CONTEXTS_SCHEMA,
    STUDENT_VOCABULARY,
    STUDENT_VOCABULARY_SCHEMA,
    VOCABULARY,
    VOCABULARY_SCHEMA,
    write_table,
)
from cocomix.explain.cues import Cues, background_rates, best_cues, cues_of, label_of
from cocomix.explain.detection import detection
from cocomix.explain.firings import FiringLimits, ScanResult, merge, pack, rank_within, unpack
from cocomix.explain.label_model import Answers, ask
from cocomix.explain.lens import nearest, promoted
from cocomix.explain.scan import TextShard, ids_around, scan_shard, text_shards
from cocomix.explain.tables import (
    chosen_contexts,
    concepts_table,
    contexts_tables,
    student_vocabulary_table,
    tokens_fired_on,
    vocabulary_table,
)
from cocomix.params import ExplainParams
from cocomix.plumbing.artifact import Work
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.parts import Advance, in_parts
from cocomix.plumbing.runtime import runtime
from cocomix.sae.autoencoder import SparseAutoencoder
from cocomix.tokens.base_tokens import BaseTokens
from cocomix.tokens.visible import is_visible
from cocomix.tokens.windows import Tokens

POOL = 4
"""Firings kept in the pool per quantile of the strength; one of them is chosen."""
AT_A_TIME = 2**17
"""Number of held-out firings that are scored at a time."""


@dataclass(frozen=True)
class AtlasSummary:
    """Summary of the whole atlas."""

    tokens: int
    """Number of tokens of the training split that were scanned."""
    concepts: int
    fired: int
    """Number of concepts that fire in them."""
    scored: int
    """Number of concepts whose label has a score, because they fire in the held-out text."""
    auc: float
    """Mean over the scored labels."""
    balanced_accuracy: float
    auc_quartiles: list[float]
    """Quartiles over the scored labels."""


def make_atlas(
    work: Work, model: PreTrainedModel, sae: SparseAutoencoder, tokens: BaseTokens, params: ExplainParams
) -> AtlasSummary | None:
    """Scan this process's shards of text, wait for the others, and, in rank 0, write the atlas.

    Returns:
        The atlas' summary in rank 0; None in the other processes.

    Raises:
        UserError: when the autoencoder does not fit the base model.
    """
    check_layer(model, sae.config.layer)
    if sae.config.d_model != model.config.hidden_size:
        raise UserError(f"sae: is for width {sae.config.d_model}, the base model's is {model.config.hidden_size}")
    read = FiringLimits(
        params.contexts, POOL * params.quantiles, params.sample, params.before, params.after, params.seed
    )
    held_out = read._replace(strongest=0, pool=0, sample=params.held_out)
    shards = [
        *text_shards(tokens, "train", params.tokens, params.shard_tokens, params.seed),
        *text_shards(tokens, "validation", params.held_out_tokens, params.shard_tokens, params.seed),
    ]

    def looked(shard: TextShard, advance: Advance) -> bytes:
        return pack(scan_shard(model, sae, tokens, shard, read if shard.split == "train" else held_out, advance))

    files = {_file(work, shard): shard for shard in shards}
    in_parts(files, looked, lambda shard: len(shard.windows) * tokens.context, "explain", "tokens")
    if runtime().rank and params.labeller == "tokens":
        return None
    train, validation = (
        reduce(partial(merge, keep=keep), (unpack(_file(work, shard)) for shard in shards if shard.split == split))
        for split, keep in (("train", read), ("validation", held_out))
    )
    texts = tokens.texts()
    answers = Answers() if params.labeller == "tokens" else ask(work, train, validation, texts, tokens, params)
    return None if runtime().rank else _write(work, model, sae, tokens, params, train, validation, texts, answers)


def _file(work: Work, shard: TextShard) -> Path:
    return work.scratch / f"{shard.name}.safetensors"


def _write(
    work: Work,
    model: PreTrainedModel,
    sae: SparseAutoencoder,
    tokens: BaseTokens,
    params: ExplainParams,
    train: ScanResult,
    held_out: ScanResult,
    texts: list[str],
    answers: Answers,
) -> AtlasSummary:
    concepts = sae.config.concepts
    cues_at = partial(cues_at_places, tokens, "train", params.before)
    rates = background_rates(train.tokens, cues_at(train.background))
    visible = torch.tensor([is_visible(each) for each in texts])
    cues = best_cues(train.sample, cues_at, rates, visible, concepts, params.label_tokens)
    labels = [label_of(each, texts) for each in cues.numbers.tolist()]
    labellers = ["tokens"] * concepts
    firing, others = held_out_scores(cues, held_out, tokens, params)
    for concept, label in answers.labels.items():
        if not label:  # the model gave no label
            continue
        labels[concept], labellers[concept] = label, "model"
        firing[concept], others[concept] = torch.nan, torch.nan
        firing[concept, : len(answers.firing[concept])] = torch.tensor(answers.firing[concept])
        others[concept, : len(answers.others[concept])] = torch.tensor(answers.others[concept])
    scores = detection(firing, others)
    fired_at = ids_around(tokens, "train", train.sample.places, 0, 0)[:, 0]
    fires_on = tokens_fired_on(train.sample, fired_at, train.tokens, concepts, params.shown)
    table = concepts_table(
        train,
        fires_on,
        labels,
        labellers,
        scores,
        promoted(model, sae, tokens.vocab_size, params.shown),
        nearest(sae, params.shown),
    )
    chosen = chosen_contexts(train, params.quantiles)
    write_table(work, CONCEPTS, [table], CONCEPTS_SCHEMA)
    write_table(work, CONTEXTS, contexts_tables(chosen, tokens, params, concepts), CONTEXTS_SCHEMA)
    write_table(work, VOCABULARY, [vocabulary_table(texts, train)], VOCABULARY_SCHEMA)
    if not tokens.shared:
        table = student_vocabulary_table(tokens.students.texts())
        write_table(work, STUDENT_VOCABULARY, [table], STUDENT_VOCABULARY_SCHEMA)
    scored = ~scores.auc.isnan()
    return AtlasSummary(
        tokens=int(train.tokens.sum()),
        concepts=concepts,
        fired=int((train.counts > 0).sum()),
        scored=int(scored.sum()),
        auc=float(scores.auc[scored].mean()),
        balanced_accuracy=float(scores.balanced_accuracy[scored].mean()),
        auc_quartiles=scores.auc[scored].quantile(torch.tensor([0.25, 0.5, 0.75])).tolist(),
    )


def cues_at_places(tokens: Tokens, split: Split, before: int, places: Tensor) -> Tensor:
    """The cues of the contexts around `places`: see `cues_of`."""
    return cues_of(ids_around(tokens, split, places, before, 1), before, tokens.vocab_size)


class Scores(NamedTuple):
    """Scores that labels give to held-out contexts: [concepts, ...]; NaN is padding."""

    firing: Tensor
    others: Tensor


def held_out_scores(cues: Cues, seen: ScanResult, tokens: Tokens, params: ExplainParams) -> Scores:
    """Score by cues the held-out firings, and the background positions where a concept does not fire."""
    cues_at = partial(cues_at_places, tokens, "validation", params.before)
    sample, concepts = seen.sample, len(cues.numbers)
    firing = torch.full((concepts, params.held_out), torch.nan)
    rank = rank_within(sample.concepts)
    for rows in torch.split(torch.arange(len(rank)), AT_A_TIME):
        some = sample.concepts[rows]
        firing[some, rank[rows]] = cues.score(some, cues_at(sample.places[rows]))
    others = cues.score_all(cues_at(seen.background))
    return Scores(firing, others.masked_fill_(seen.background_fires.T, torch.nan))
