"""How much training a method needs to come down to the baseline's final loss, and how far it gets by equal compute."""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from cocomix.report.costs import Cost
from cocomix.report.facts import Curve, Run
from cocomix.statistics import Interval, mean_over_seeds


class Spread(NamedTuple):
    """A figure over the seeds."""

    mean: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Mean, lowest and highest of at least one value."""
    return Spread(fmean(values), min(values), max(values))


class SeedMean(NamedTuple):
    """A figure over the seeds, and how far its mean can be trusted."""

    mean: float
    low: float
    high: float
    interval: Interval | None
    """Of what other seeds would do; None: there is one seed."""


def seed_mean(values: Sequence[float], low: float = -math.inf, high: float = math.inf) -> SeedMean:
    """Mean, lowest and highest of at least one value of a figure from `low` to `high`, with the mean's interval."""
    interval = mean_over_seeds(values)
    return SeedMean(*spread(values), interval and interval.within(low, high))


class Reach(NamedTuple):
    """Training that a run needed to come down to a loss."""

    tokens: float
    flops: float
    seconds: float


class TrainingToReach(NamedTuple):
    """What the runs of all seeds needed to come down to the baseline's final loss."""

    tokens: Spread
    tokens_saved: SeedMean
    """Share of the baseline's tokens that were not needed."""
    flops_ratio: SeedMean
    """Training FLOPs over all of the baseline's."""
    flops_ratio_with_supervision: SeedMean
    """The same, with the making of what the method learns from."""
    seconds_ratio: Spread
    """Seconds of training over all of the baseline's."""
    seconds_ratio_with_supervision: Spread | None
    """None: a stage did not say how long it took."""


class Saving(NamedTuple):
    """How soon the runs of a method came down to the final loss of the baseline's run with the same seed."""

    seeds: int
    """Pairs of runs."""
    reached: int
    """Those in which the loss was reached."""
    spent: TrainingToReach | None
    """None, unless all reached it, after their first evaluation: a mean of some would be that of the lucky seeds."""


def reach(curve: Curve, loss: float) -> Reach | None:
    """Where a learning curve first comes down to `loss`, linear between its points; None: nowhere, or before the first.

    The learning rate is still high there: a schedule that ended at this point would have needed less.
    """
    below = (curve.loss <= loss).nonzero()[0]
    if not len(below) or not below[0]:
        return None
    end = int(below[0])
    start = end - 1
    share = (curve.loss[start] - loss) / (curve.loss[start] - curve.loss[end])
    spent = (curve.tokens, curve.flops, curve.seconds)
    return Reach(*(float(each[start] + share * (each[end] - each[start])) for each in spent))


class AtEqual(NamedTuple):
    """Where the runs of a method were when those of all methods had spent the same compute."""

    flops: float
    """That compute."""
    tokens: float
    """That they had read."""
    loss: Spread
    """On the learning curve."""


def equal_flops(curves: Iterable[Curve]) -> float:
    """The most training FLOPs that all of some runs spent."""
    return min(float(curve.flops[-1]) for curve in curves)


def loss_at(curves: Sequence[Curve], flops: float) -> Spread | None:
    """The losses of a method's runs after so many training FLOPs, linear between the points of their learning curves.

    None, when there is no point yet.
    """
    if flops < curves[0].flops[0]:
        return None
    return spread([float(np.interp(flops, curve.flops, curve.loss)) for curve in curves])


def at_equal(runs: Sequence[Run], flops: float, supervision_flops: float = 0.0) -> AtEqual | None:
    """Where runs of one method were after so many FLOPs.

    Args:
        supervision_flops: those of `flops` that are spent before training starts.

    Returns:
        None, when there is no point of the curves yet.
    """
    curves, trained = [run.curve for run in runs], flops - supervision_flops
    tokens = float(np.interp(trained, curves[0].flops, curves[0].tokens))
    loss = loss_at(curves, trained)
    return AtEqual(flops, tokens, loss) if loss else None


def saving(runs: Sequence[Run], baseline: Sequence[Run], supervision_cost: Cost) -> Saving:
    """Compare runs with the baseline's, seed by seed.

    Args:
        supervision_cost: a run's share of the cost of what the method learns from, besides its training.
    """
    finals = [float(run.curve.loss[-1]) for run in baseline]
    reached = sum(bool(run.curve.loss.min() <= final) for run, final in zip(runs, finals, strict=True))
    pairs = [
        (found, against.training)
        for run, against, final in zip(runs, baseline, finals, strict=True)
        if (found := reach(run.curve, final))
    ]
    if len(pairs) < len(runs):
        return Saving(len(runs), reached, None)
    supervision_seconds = supervision_cost.seconds
    spent = TrainingToReach(
        tokens=spread([found.tokens for found, _ in pairs]),
        tokens_saved=seed_mean([1 - found.tokens / training.tokens for found, training in pairs], high=1),
        flops_ratio=seed_mean([found.flops / training.flops for found, training in pairs], low=0),
        flops_ratio_with_supervision=seed_mean(
            [(found.flops + supervision_cost.flops) / training.flops for found, training in pairs], low=0
        ),
        seconds_ratio=spread([found.seconds / training.seconds for found, training in pairs]),
        seconds_ratio_with_supervision=None
        if supervision_seconds is None
        else spread([(found.seconds + supervision_seconds) / training.seconds for found, training in pairs]),
    )
    return Saving(len(runs), reached, spent)
