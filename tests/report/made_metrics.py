"""Metrics of runs that never happened, in the layout of the stages, with a known answer."""

import csv
import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cocomix.evaluation.downstream import DocumentScore, MetricValue, TaskScore
from cocomix.evaluation.examples import Example
from cocomix.evaluation.language_model import DocumentLosses
from cocomix.evaluation.tables import write_documents, write_examples, write_tasks, write_writings
from cocomix.evaluation.writing import Writing
from cocomix.explain.atlas import (
    CONCEPTS,
    CONCEPTS_SCHEMA,
    CONTEXTS,
    CONTEXTS_SCHEMA,
    VOCABULARY,
    VOCABULARY_SCHEMA,
)
from cocomix.params import FILE
from cocomix.plumbing.artifact import Work
from cocomix.steering.effect import EditEffect, Measured, effects_table
from tests.shipped import paper_form

DOCUMENTS = 40
GROUPS = 25
"""Of the documents of a corpus."""
TOKENS = [1000 * step for step in range(1, 11)]
WIDTHS = {"ntp": 208, "kd": 208, "pause": 192, "mtp": 208, "cocomix": 192}
FORMS = ("predicted", "control", "added")
WIDTHS |= dict.fromkeys(FORMS, 192)
LABELS = ["", "names of months", "<b>"]
"""Of the atlas' concepts."""
TEXTS = [".", " end", " <middle>", " of", "Start"]
"""Of its tokens."""
CORPORA: list[str] = []
"""Further text that models are measured on."""
FLOPS_PER_TOKEN = {"ntp": 1e7, "kd": 1.2e7, "pause": 1.4e7, "mtp": 1.3e7, "cocomix": 1.5e7}
FLOPS_PER_TOKEN |= dict.fromkeys(FORMS, 1.1e7)


def write_params(methods: Sequence[str], seeds: Sequence[int]) -> None:
    """The parameters in the paper's form with other methods and seeds."""
    text = re.sub(r"(?m)^  methods: .*$", f"  methods: [{', '.join(methods)}]", paper_form())
    FILE.write_text(re.sub(r"(?m)^  seeds: .*$", f"  seeds: {list(seeds)}", text))


def write_pipeline() -> None:
    """Metrics and curves of the stages that are no matrix, the atlas, the effects of steering, the shipped values."""
    Path("presets").mkdir(exist_ok=True)
    shutil.copy(Path(__file__).parents[2] / "presets/default.yaml", "presets")
    Path("plots").mkdir(exist_ok=True)
    Path("plots/base.csv").write_text("step,tokens,validation_loss\n10,5000,5.1\n20,10000,4.49\n")
    Path("plots/sae.csv").write_text("step,tokens,fvu\n1,7500,0.3\n2,15000,0.041\n")
    write_atlas()
    write_steering(["cocomix_set", "cocomix_scale", "base_set"])
    split = {"documents": 71, "bytes": 115868, "tokens": 30030, "windows": 234, "bytes_per_token": 3.858}
    splits = dict.fromkeys(("train", "validation", "test"), split)
    _write("corpus", splits | {"sources": 226, "dropped": {}, "limited": True})
    _write("tokenize", splits | {"vocab_size": 4096})
    _write("base_tokens", {})
    _write("base", {"parameters": 1330, "tokens": 10000, "flops": 2.3e10, "seconds": 1, "validation_loss": 4.49})
    _write("activations", {"train_tokens": 15000, "validation_tokens": 655, "d_model": 128})
    sae = {"fvu": 0.041, "fvu_raw": 0.02, "l0": 31.9, "dead_share": 0.002, "loss_recovered": 0.983}
    _write("sae", sae | {"loss_base": 4.49, "loss_spliced": 4.53, "loss_mean_ablated": 6.9})
    labels = {
        "positions": 29795,
        "full_share": 0.998,
        "unlabelled_share": 0.0,
        "label_entropy": 8.7,
        "distinct_concepts": 1011,
    }
    _write("attribution", labels | {"most_frequent": 3, "most_frequent_share": 0.031})
    _write("distribution", {"mean_unique": 33.3, "mean_entropy": 5.0, "bytes_per_token": 49.8})
    _write("explain", {"fired": 1000, "auc": 0.87})
    _write(
        "methods",
        {
            "widths": WIDTHS,
            "context": 128,
            "base_context": 128,
            "concepts": 1024,
            "base_flops": 2000,
            "base_flops_to_layer": 800,
        },
    )


def write_run(method: str, seed: int, losses: Sequence[float], right: int | None = None) -> None:
    """One model, whose validation loss is `losses` after 1000, 2000, ... 10000 tokens.

    Args:
        right: of the `DOCUMENTS` documents of hellaswag, those that it answers right, and twice those of piqa; none:
            there are no tasks.
    """
    cost = FLOPS_PER_TOKEN[method]
    _write(
        f"pretrain/{method}-{seed}",
        {
            "method": method,
            "seed": seed,
            "d_model": WIDTHS[method],
            "n_head": {"ntp": 13, "kd": 13}.get(method, 6),
            "parameters": {"stored": 2_590_000, "active": 2_090_000},
            "tokens": TOKENS[-1],
            "flops": TOKENS[-1] * cost,
            "flops_per_token": cost,
            "seconds": TOKENS[-1] / 30,
            "validation_loss": losses[-1],
        },
    )
    mixing = {"windows": 64, "as_it_is": 4.0, "zeroed": 4.5, "shuffled": 4.4, "mean": 4.2, "fed_others": 4.3}
    mixing |= {"fed_by_uncertainty": [4.0, 3.9, 3.85], "fed_at_random": [4.0, 3.95, 3.85]}
    concepts = {"cross_entropy": 5.2, "recall_at_k": 0.51, "recall_at_labels": 0.22, "never_predicted": 0.12}
    concepts |= {"ignored": 0.058, "mixing": mixing}
    score = {"loss": losses[-1], "perplexity": math.exp(losses[-1]), "bits_per_byte": losses[-1] / math.log(2) / 3.8}
    tasks = (
        []
        if right is None
        else [
            _accuracy("hellaswag", "acc_norm", right),
            _accuracy("piqa", "acc", right // 2),
            _perplexity(losses[-1]),
        ]
    )
    _write_evaluation(f"{method}-{seed}", losses[-1], tasks)
    _write(
        f"evaluate/{method}-{seed}",
        {
            "validation": score,
            "test": score,
            "corpora": dict.fromkeys(CORPORA, score),
            "tasks": {each.task: asdict(replace(each, documents=[])) for each in tasks},
            "concepts": concepts if method in ("cocomix", "predicted", "added") else None,
        },
    )
    path = Path("plots/pretrain") / f"{method}-{seed}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "tokens", "flops", "seconds", "train_loss", "validation_loss", "concept_loss"])
        for tokens, loss in zip(TOKENS, losses, strict=True):
            writer.writerow([tokens // 100, tokens, tokens * cost, tokens / 30, loss, loss, ""])


def _write_evaluation(name: str, loss: float, tasks: Sequence[TaskScore]) -> None:
    """Tables with documents that are easier or harder for all models alike, and one example."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(20, 400, DOCUMENTS)
    ease = generator.normal(0, 0.3, DOCUMENTS)
    ease -= (ease * tokens).sum() / tokens.sum()
    losses = (tokens * (loss + ease)).tolist()
    groups = [f"package {each % GROUPS}" for each in range(DOCUMENTS)]
    documents = DocumentLosses([*range(DOCUMENTS)], groups, tokens.tolist(), (4.0 * tokens).tolist(), losses)
    example = Example([4, 3], 2, [1, 0], [1], [1, 2], [0.75, 0.25])
    with Work(f"evaluate@{name}", Path("artifacts/evaluations") / name, {}, {"loss": loss}) as work:
        with work.write("documents.parquet") as pending:
            write_documents(pending.path, dict.fromkeys(["validation", "test", *CORPORA], documents))
        with work.write("examples.parquet") as pending:
            write_examples(pending.path, [example])
        with work.write("writings.parquet") as pending:
            write_writings(pending.path, [Writing([4, 3], [2, 1 if name.startswith("ntp") else 0])])
        with work.write("tasks.parquet") as pending:
            write_tasks(pending.path, tasks)
        work.finish({})
        work.publish()


def _accuracy(task: str, metric: str, right: int) -> TaskScore:
    share = right / DOCUMENTS
    documents = [DocumentScore(each, float(each < right), share - 2, share / 2, 1.0) for each in range(DOCUMENTS)]
    figures = {metric: MetricValue(share, 0.05), "brier": MetricValue(1 - share, None)}
    return TaskScore(task, metric, figures, MetricValue(share - 2, 0.1), MetricValue(share / 2, 0.1), 0, documents)


def _perplexity(loss: float) -> TaskScore:
    documents = [DocumentScore(each, 0.0, -loss - 0.01 * each, None, 1.0) for each in range(DOCUMENTS)]
    figures = {"perplexity": MetricValue(math.exp(loss), 1.0), "acc": MetricValue(0.0, 0.0)}
    return TaskScore("lambada_openai", "perplexity", figures, MetricValue(-loss, 0.1), None, 7, documents)


def write_atlas() -> None:
    """Five tokens and three concepts, of which the last two fire at <middle>."""
    concepts = {"label": LABELS, "labeller": ["tokens"] * 3, "auc": [None, 0.75, 0.95], "held_out": [0, 16, 40]}
    concepts |= {"balanced_accuracy": [None, 0.7, 0.9], "firings": [0, 50, 100], "rate": [0.0, 0.01, 0.02]}
    concepts |= {"mean_strength": [0.0, 1.0, 2.0], "max_strength": [0.0, 2.0, 3.0]}
    rows = [{"concept": each} | {name: column[each] for name, column in concepts.items()} for each in range(3)]
    lists = {field.name: [] for field in CONCEPTS_SCHEMA if pa.types.is_list(field.type)}
    context = {"kind": "top", "quantile": None, "strength": 2.0, "window": 0, "position": 1, "start": 0}
    context |= {"tokens": [4, 2, 1, 0], "strengths": [0.0, 2.0, 0.0, 0.0]}
    vocabulary = [{"token": each, "text": text, "count": 1} for each, text in enumerate(TEXTS)]
    tables = {
        CONCEPTS: pa.Table.from_pylist([row | lists for row in rows], CONCEPTS_SCHEMA),
        CONTEXTS: pa.Table.from_pylist([{"concept": each} | context for each in (1, 2)], CONTEXTS_SCHEMA),
        VOCABULARY: pa.Table.from_pylist(vocabulary, VOCABULARY_SCHEMA),
    }
    with Work("explain", Path("artifacts/atlas"), {}, {}) as work:
        for name, table in tables.items():
            with work.write(name) as pending:
                pq.write_table(table, pending.path)
        work.finish({"concepts": 3})
        work.publish()


def write_steering(sweeps: Sequence[str]) -> None:
    """Two concepts: what is done to them triples the odds of their own tokens at 10, or divides them at -10."""
    _write("steer", {})
    unedited = Measured(probability=0.01, read=0.05, loss=4.0, distinct=0.9)
    control = unedited._replace(loss=4.2)
    effects = [
        EditEffect(concept, strength, unedited, control._replace(probability=probability), control, success, 0.5)
        for strength, probability in ((-10.0, 0.01 / 3), (10.0, 0.03))
        for concept, success in ((7, True), (9, False))
    ]
    with Work("steer", Path("artifacts/steering"), {}, {"sweeps": list(sweeps)}) as work:
        with work.write("effects.parquet") as pending:
            pq.write_table(effects_table({each: {0: effects} for each in sweeps}), pending.path)
        work.finish({})
        work.publish()


def falling(start: float, end: float) -> list[float]:
    """A straight learning curve."""
    steps = len(TOKENS) - 1
    return [start + (end - start) * step / steps for step in range(steps + 1)]


def _write(name: str, content: dict[str, Any]) -> None:
    path = Path("metrics") / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
