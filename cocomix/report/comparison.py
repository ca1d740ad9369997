"""Compare the methods' runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, NamedTuple

from cocomix.report.costs import Cost, SupervisionStage, share
from cocomix.report.documents import Documents, TaskFigure, difference
from cocomix.report.efficiency import AtEqual, Saving, Spread, at_equal, equal_flops, saving, spread
from cocomix.report.facts import ConceptFacts, Kind, Run
from cocomix.statistics import Interval

BASELINE = "ntp"
"""The method to which the others are compared."""


class Verdict(NamedTuple):
    """Comparison of a method with the others on one set of documents."""

    difference: Interval | None
    """From the baseline's mean; None for the baseline, without a baseline, and if there is only one document."""
    differences: Mapping[str, Interval | None]
    """The best method's mean minus that of each other method; empty for all methods but the best."""
    best: bool
    """Whether it has the best mean over several seeds, and the interval of its difference from each other method
    excludes zero. An interval from one seed does not cover the variation between seeds."""


class CorpusResult(NamedTuple):
    """Results of a method on one corpus, over its seeds."""

    loss: Spread
    """Nats per token."""
    perplexity: Spread
    bits_per_byte: Spread
    groups: int
    """Number of groups of similar documents: the sample size of the interval."""
    verdict: Verdict
    """Comparison of the losses."""


class Compared(NamedTuple):
    """A figure over the seeds, with its difference from the baseline."""

    value: Spread
    difference: Interval | None
    """See `Verdict`."""


class TaskResult(NamedTuple):
    """Results of a method on one task of lm-eval, over its seeds."""

    metric: str
    """The headline metric: the paper's for this task, or another."""
    kind: Kind
    value: Spread
    standard_error: float | None
    """Standard error over documents, averaged over the seeds."""
    metrics: Mapping[str, float]
    """Mean over the seeds of each of lm-eval's metrics."""
    log_likelihood: Compared | None
    """Log-likelihood of the right answer, nats."""
    margin: Compared | None
    """Log-likelihood of the right answer minus that of the best wrong one."""
    cut: int
    """Documents that exceed the context, which all models share."""
    verdict: Verdict
    """Comparison of the accuracies, or of the losses if the metric is a perplexity; empty for other metrics."""


@dataclass(frozen=True)
class MethodResult:
    """Results of one method, over its seeds."""

    method: str
    runs: tuple[Run, ...]
    corpora: Mapping[str, CorpusResult]
    """By name; validation and test are first."""
    tasks: Mapping[str, TaskResult]
    """By their names in lm-eval."""
    sources: tuple[SupervisionStage, ...]
    """The stages that made its supervision, if it learns from more than the text."""
    supervision_cost: Cost
    """A run's share of their cost."""
    saving: Saving | None
    """None for the baseline, and without a baseline."""
    at_equal: AtEqual | None
    """At the training FLOPs that all runs have spent (the minimum over runs); None: before its first evaluation."""
    at_equal_with_supervision: AtEqual | None
    """The same with the cost of supervision included; None: before its first evaluation."""

    @property
    def seconds(self) -> Spread:
        """Training time."""
        return spread([run.training.seconds for run in self.runs])

    @property
    def mean_accuracy(self) -> float | None:
        """Mean over the tasks whose metric is an accuracy; None: there are none."""
        accuracies = [each.value.mean for each in self.tasks.values() if each.kind == "accuracy"]
        return fmean(accuracies) if accuracies else None

    @property
    def concepts(self) -> list[ConceptFacts]:
        """Concept scores of the runs that predict concepts."""
        return [run.evaluation.concepts for run in self.runs if run.evaluation.concepts]


def compare(
    runs: Mapping[str, Sequence[Run]],
    sources: Mapping[str, tuple[SupervisionStage, ...]],
    spent: Mapping[SupervisionStage, Cost],
    label_runs: int,
) -> list[MethodResult]:
    """Compare methods.

    Args:
        runs: by method, with the same seeds in the same order.
        sources: see `MethodResult`.
        spent: the cost of each source.
        label_runs: number of runs that share that cost.
    """
    first, baseline = next(iter(runs.values()))[0], runs.get(BASELINE)
    corpora = {name: _on_corpus(runs, name) for name in first.evaluation.scores}
    tasks = {name: _on_task(runs, name) for name in first.evaluation.tasks}
    supervision_costs = {method: share(spent, sources[method], label_runs) for method in runs}
    most = equal_flops(run.curve for own in runs.values() for run in own)
    most_with_supervision = min(
        equal_flops(run.curve for run in own) + supervision_costs[method].flops for method, own in runs.items()
    )
    results = []
    for method, own in runs.items():
        cost = supervision_costs[method]
        results.append(
            MethodResult(
                method,
                tuple(own),
                {name: each[method] for name, each in corpora.items()},
                {name: each[method] for name, each in tasks.items()},
                sources[method],
                cost,
                saving(own, baseline, cost) if baseline and method != BASELINE else None,
                at_equal(own, most),
                at_equal(own, most_with_supervision, cost.flops),
            )
        )
    return results


def _on_corpus(runs: Mapping[str, Sequence[Run]], corpus: str) -> dict[str, CorpusResult]:
    documents = {method: [run.documents[corpus] for run in own] for method, own in runs.items()}
    verdicts = _verdicts(documents, corpus, lower_is_better=True)
    results = {}
    for method, own in runs.items():
        scores = [run.evaluation.scores[corpus] for run in own]
        results[method] = CorpusResult(
            loss=spread([each.loss for each in scores]),
            perplexity=spread([each.perplexity for each in scores]),
            bits_per_byte=spread([each.bits_per_byte for each in scores]),
            groups=len(documents[method][0].groups),
            verdict=verdicts[method],
        )
    return results


def _on_task(runs: Mapping[str, Sequence[Run]], task: str) -> dict[str, TaskResult]:
    first = next(iter(runs.values()))[0]
    asked = first.evaluation.tasks[task]
    documents: dict[TaskFigure, dict[str, list[Documents]]] = {
        figure: {method: [run.tasks[figure][task] for run in own] for method, own in runs.items()}
        for figure, by_task in first.tasks.items()
        if task in by_task
    }
    verdicts = dict.fromkeys(runs, Verdict(None, {}, False))
    if asked.kind == "accuracy":
        verdicts = _verdicts(documents["correct"], task, lower_is_better=False, most=1)
    elif asked.kind == "perplexity":
        losses = {
            method: [each._replace(sums=-each.sums) for each in own]
            for method, own in documents["log_likelihood"].items()
        }
        verdicts = _verdicts(losses, task, lower_is_better=True)

    def compared(name: Literal["log_likelihood", "margin"], method: str) -> Compared | None:
        figures = [figure for run in runs[method] if (figure := getattr(run.evaluation.tasks[task], name))]
        if not figures:
            return None
        others = documents.get(name, {})
        return Compared(spread([each.value for each in figures]), _from_baseline(others, method, task))

    results = {}
    for method, own in runs.items():
        facts = [run.evaluation.tasks[task] for run in own]
        figures = [each.metrics[asked.metric] for each in facts]
        errors = [each.standard_error for each in figures if each.standard_error is not None]
        results[method] = TaskResult(
            metric=asked.metric,
            kind=asked.kind,
            value=spread([each.value for each in figures]),
            standard_error=fmean(errors) if errors else None,
            metrics={name: fmean(each.metrics[name].value for each in facts) for name in asked.metrics},
            log_likelihood=compared("log_likelihood", method),
            margin=compared("margin", method),
            cut=asked.cut,
            verdict=verdicts[method],
        )
    return results


def _verdicts(
    documents: Mapping[str, Sequence[Documents]], where: str, *, lower_is_better: bool, most: float = math.inf
) -> dict[str, Verdict]:
    """Compare the methods on documents, by a figure whose differences are at most `most`."""
    means = {method: fmean(each.sums.sum() / each.weights.sum() for each in own) for method, own in documents.items()}
    best = min(means, key=lambda method: means[method] if lower_is_better else -means[method])
    others = {method: own for method, own in documents.items() if method != best}
    gaps = {method: _within(difference(documents[best], own, where), most) for method, own in others.items()}
    supported = bool(gaps) and len(documents[best]) > 1 and all(gap and gap.excludes_zero for gap in gaps.values())
    return {
        method: Verdict(
            _within(_from_baseline(documents, method, where), most),
            gaps if method == best else {},
            supported and method == best,
        )
        for method in documents
    }


def _within(gap: Interval | None, most: float) -> Interval | None:
    return gap and gap.within(-most, most)


def _from_baseline(documents: Mapping[str, Sequence[Documents]], method: str, where: str) -> Interval | None:
    baseline, own = documents.get(BASELINE), documents.get(method)
    return difference(own, baseline, where) if baseline and own and method != BASELINE else None
