"""Zero-shot scores on downstream tasks, by lm-eval in this process.

Prompts and metrics are lm-eval's own. Log-likelihoods are computed by `downstream_likelihood`, and examples may come
from local files (`downstream_tasks`).
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cocomix.evaluation.downstream_tasks import PAPER_TASKS, load_tasks, require_lm_eval
from cocomix.plumbing.device import device

Json = dict[str, Any]


@dataclass(frozen=True)
class MetricValue:
    """A metric with its standard error over documents; None: unknown."""

    value: float
    standard_error: float | None


class DocumentScore(NamedTuple):
    """Score of one document, for paired comparisons of models."""

    document: int
    """Its index in the task's data."""
    correct: float | None
    """Its contribution to the task's accuracy: 1 or 0."""
    log_likelihood: float | None
    """Log-likelihood in nats of the whole right answer given the question, or of the text itself (wikitext)."""
    margin: float | None
    """Log-likelihood of the best right answer minus that of the best wrong one, as the accuracy compares them
    (acc_norm: per character of the answer); positive if the answer counts as right."""
    weight: float
    """Words of the text for a word perplexity, else 1; the perplexity is exp(-sum(log_likelihood) / sum(weight))."""


@dataclass(frozen=True)
class TaskScore:
    """Score of a model on one task."""

    task: str
    metric: str
    """The headline metric, a key of `metrics`: the paper's, else the accuracy or the first that lm-eval reports."""
    metrics: dict[str, MetricValue]
    """lm-eval's metrics by their names there."""
    log_likelihood: MetricValue | None
    """Mean over documents (wikitext: over words)."""
    margin: MetricValue | None
    """Mean over documents."""
    cut: int
    """Documents that exceed the model's context: the start of the question is dropped, or an answer is predicted in
    several windows. A text scored as a whole (wikitext) never counts."""
    documents: list[DocumentScore]


def score_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Sequence[str],
    *,
    tasks_dir: Path | None,
    limit: int | None,
    batch_size: int,
    name: str,
    kept: Path | None = None,
) -> list[TaskScore]:
    """Score `model` on tasks; several processes share the work, and each returns all scores.

    Args:
        tasks: names of lm-eval tasks; a group or a tag gives a score for each task in it.
        tasks_dir: folder of the examples, <task>/<split>.jsonl (docs/evaluation.md); None: the hub.
        limit: number of documents of each task, from the first; None: all.
        batch_size: a forward pass has at most as many tokens as this many full contexts, or as a micro-batch of them
            if that is less.
        name: name of the model, for the progress bar.
        kept: see `cocomix.plumbing.parts.Summing`; applies to log-likelihoods, not to generated text.

    Raises:
        UserError: without lm-eval, for an unknown task, or when a task's data is missing or malformed.
    """
    require_lm_eval()
    from lm_eval import evaluate

    from cocomix.evaluation.downstream_lm import DownstreamLM

    model.eval().to(device())
    scores = []
    with _streamlined():
        lm = DownstreamLM(model, tokenizer, batch_size)
        for wanted in tasks:
            for task_name, task in load_tasks(wanted, tasks_dir).items():
                lm.begin(f"{name}: {task_name}", kept and kept.with_name(f"{kept.name}-{task_name}"))
                results = evaluate(lm, {"tasks": {task_name: task}}, limit=limit, bootstrap_iters=0)
                scores.append(_summary(task_name, task, results, len(lm.cut)))
    return scores


@contextmanager
def _streamlined() -> Iterator[None]:
    """Silence lm-eval's progress bars and warnings, and compile each prompt template once instead of at each use."""
    import datasets
    from lm_eval import utils
    from lm_eval.api import task

    logger = logging.getLogger("lm_eval")
    with ExitStack() as undo:
        undo.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        if not datasets.are_progress_bars_disabled():
            undo.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        undo.enter_context(patch.object(task, "tqdm", partial(task.tqdm, disable=True)))
        undo.enter_context(patch.object(utils.env, "from_string", cache(utils.env.from_string)))
        yield


def _summary(name: str, task: Any, results: Mapping[str, Any], cut: int) -> TaskScore:
    """The score of a task, from the result of `lm_eval.evaluate`."""
    samples: list[Json] = results["samples"][name]
    filters = list(dict.fromkeys(each["filter"] for each in samples))
    metrics = {}
    for key, value in results["results"][name].items():
        metric, _, kept = key.partition(",")
        if kept and not metric.endswith("_stderr"):
            values = [each[metric] for each in samples if each["filter"] == kept and metric in each]
            label = metric if kept == filters[0] else key
            metrics[label] = MetricValue(float(value), _standard_error(task.aggregation().get(metric), values))
    accuracy = next((each for each in ("acc", "exact_match") if each in metrics), None)
    headline = PAPER_TASKS[name].metric if name in PAPER_TASKS else accuracy or next(iter(metrics))
    if headline == "acc_norm":
        accuracy = headline
    documents = [_document(task, each, accuracy) for each in samples if each["filter"] == filters[0]]
    likelihoods = [(each.log_likelihood, each.weight) for each in documents if each.log_likelihood is not None]
    margins = [(each.margin, 1.0) for each in documents if each.margin is not None]
    return TaskScore(name, headline, metrics, _mean(likelihoods), _mean(margins), cut, documents)


def _document(task: Any, sample: Json, accuracy: str | None) -> DocumentScore:
    number, responses, weight = sample["doc_id"], sample["filtered_resps"], 1.0
    correct = float(sample[accuracy]) if accuracy in sample else None
    likelihood = margin = None
    match task.OUTPUT_TYPE:
        case "loglikelihood":
            likelihood, _ = responses[0]
        case "loglikelihood_rolling":
            likelihood = responses[0]
            weight = float(sample["word_perplexity"][1]) if "word_perplexity" in sample else 1.0
        case "multiple_choice":
            choices = task.doc_to_choice(sample["doc"])
            right = _right_choices(task, sample, choices)
            given = np.array([total for total, _ in responses[: len(choices)]])
            compared = given / [len(each) for each in choices] if accuracy == "acc_norm" else given
            if right:
                likelihood = float(max(given[each] for each in right))
            if wrong := set(range(len(choices))) - right if right else set():
                margin = float(max(compared[list(right)]) - max(compared[list(wrong)]))
    return DocumentScore(number, correct, likelihood, margin, weight)


def _right_choices(task: Any, sample: Json, choices: list[str]) -> set[int]:
    """Indices of the right choices; tasks give them by index or by text, and winogrande through `doc_to_text`."""
    stated = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
    several = stated if isinstance(stated, list) else [stated]
    numbers = {choices.index(each) if each in choices else -1 for each in several if isinstance(each, str)}
    numbers |= {each for each in several if isinstance(each, int)}
    return numbers & set(range(len(choices)))


def _mean(weighted: Sequence[tuple[float, float]]) -> MetricValue | None:
    """Sum of values over sum of weights, with the standard error of that ratio (of the mean, if all weights are 1)."""
    if not weighted:
        return None
    values, weights = np.array(weighted).T
    ratio, count = values.sum() / weights.sum(), len(values)
    if count == 1:
        return MetricValue(float(ratio), None)
    spread = math.sqrt(count / (count - 1) * ((values - ratio * weights) ** 2).sum())
    return MetricValue(float(ratio), spread / float(weights.sum()))


def _standard_error(aggregation: object, values: list[Any]) -> float | None:
    """Standard error of a metric over documents: lm-eval's for a mean, first-order for perplexities (no bootstrap)."""
    from lm_eval.api import metrics

    match aggregation:
        case metrics.mean | metrics.perplexity:
            mean = _mean([(float(each), 1.0) for each in values])
        case metrics.weighted_perplexity | metrics.bits_per_byte:
            mean = _mean(values)
        case _:
            return None
    if mean is None or mean.standard_error is None:
        return None
    if aggregation is metrics.mean:
        return mean.standard_error
    if aggregation is metrics.bits_per_byte:
        return mean.standard_error / math.log(2)
    return mean.standard_error * math.exp(-mean.value)
