"""What the runs say when they are put side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from cocomix.report.facts import ConceptFacts, Curve, Run

BASELINE = "ntp"
"""The method that the others are compared with."""


class Spread(NamedTuple):
    """A figure over the seeds."""

    mean: float
    low: float
    high: float


class Reach(NamedTuple):
    """Training that a run needed to come down to a loss."""

    tokens: float
    flops: float


class Saving(NamedTuple):
    """How soon the runs of a method came down to the final loss of the baseline's run with the same seed."""

    seeds: int
    """Pairs of runs."""
    reached: int
    """Those in which the loss was reached; the figures are of these."""
    tokens: Spread | None
    """Tokens needed."""
    tokens_saved: Spread | None
    """Share of the baseline's tokens that were not needed; negative when more were."""
    flops_ratio: Spread | None
    """Training FLOPs needed over all of the baseline's."""


@dataclass(frozen=True)
class MethodResult:
    """One method, over its seeds."""

    method: str
    runs: tuple[Run, ...]
    saving: Saving | None
    """None for the baseline, and without one."""

    @property
    def validation_loss(self) -> Spread:
        """On the whole validation split, nats a token."""
        return spread([run.evaluation.validation.loss for run in self.runs])

    @property
    def test_loss(self) -> Spread:
        """On the whole test split, nats a token."""
        return spread([run.evaluation.test.loss for run in self.runs])

    @property
    def test_perplexity(self) -> Spread:
        """On the whole test split, a token."""
        return spread([run.evaluation.test.perplexity for run in self.runs])

    @property
    def test_bits_per_byte(self) -> Spread:
        """On the whole test split."""
        return spread([run.evaluation.test.bits_per_byte for run in self.runs])

    @property
    def seconds(self) -> Spread:
        """Time of training."""
        return spread([run.training.seconds for run in self.runs])

    @property
    def concepts(self) -> list[ConceptFacts]:
        """Of the runs that predict concepts."""
        return [run.evaluation.concepts for run in self.runs if run.evaluation.concepts]


def spread(values: Sequence[float]) -> Spread:
    """Mean, lowest and highest of at least one value."""
    return Spread(fmean(values), min(values), max(values))


def reach(curve: Curve, loss: float) -> Reach | None:
    """Where a learning curve first comes down to `loss`, linear between its points; None: nowhere.

    The learning rate is still high there: a schedule that ended at this point would have needed less.
    """
    below = (curve.loss <= loss).nonzero()[0]
    if not len(below):
        return None
    end = int(below[0])
    start = max(0, end - 1)
    drop = curve.loss[start] - curve.loss[end]
    share = (curve.loss[start] - loss) / drop if drop > 0 else 1.0
    tokens, flops = (float(each[start] + share * (each[end] - each[start])) for each in (curve.tokens, curve.flops))
    return Reach(tokens, flops)


def compare(runs: dict[str, Sequence[Run]]) -> list[MethodResult]:
    """Put methods side by side.

    Args:
        runs: of each method, with the same seeds in the same order.
    """
    baseline = runs.get(BASELINE)
    return [
        MethodResult(method, tuple(own), _saving(own, baseline) if baseline and method != BASELINE else None)
        for method, own in runs.items()
    ]


def _saving(runs: Sequence[Run], baseline: Sequence[Run]) -> Saving:
    pairs = [
        (found, against.training)
        for run, against in zip(runs, baseline, strict=True)
        if (found := reach(run.curve, float(against.curve.loss[-1])))
    ]
    if not pairs:
        return Saving(len(runs), 0, None, None, None)
    return Saving(
        seeds=len(runs),
        reached=len(pairs),
        tokens=spread([found.tokens for found, _ in pairs]),
        tokens_saved=spread([1 - found.tokens / training.tokens for found, training in pairs]),
        flops_ratio=spread([found.flops / training.flops for found, training in pairs]),
    )
