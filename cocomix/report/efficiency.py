"""The training that a method needs to reach the baseline's final loss, and its loss at equal compute."""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from cocomix.report.costs import Cost
from cocomix.report.facts import Curve, Run
from cocomix.statistics import Interval, mean_over_seeds


class Spread(NamedTuple):
    """Mean and range of a figure over the seeds."""

    mean: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Mean, minimum and maximum of at least one value."""
    return Spread(fmean(values), min(values), max(values))


class SeedMean(NamedTuple):
    """Mean and range of a figure over the seeds, with the mean's confidence interval."""

    mean: float
    low: float
    high: float
    interval: Interval | None
    """Interval for the mean over all seeds; None: there is one seed."""


def seed_mean(values: Sequence[float], low: float = -math.inf, high: float = math.inf) -> SeedMean:
    """Mean, range and interval of at least one value of a figure bounded by `low` and `high`."""
    interval = mean_over_seeds(values)
    return SeedMean(*spread(values), interval and interval.within(low, high))


class Reach(NamedTuple):
    """Training that a run needed to reach a loss."""

    tokens: float
    flops: float
    seconds: float


class TrainingToReach(NamedTuple):
    """Training that the runs of all seeds needed to reach the baseline's final loss."""

    tokens: Spread
    tokens_saved: SeedMean
    """Share of the baseline's tokens that was not needed."""
    flops_ratio: SeedMean
    """Training FLOPs divided by the baseline's total."""
    flops_ratio_with_supervision: SeedMean
    """The same with the cost of supervision included."""
    seconds_ratio: Spread
    """Seconds of training divided by the baseline's total."""
    seconds_ratio_with_supervision: Spread | None
    """None: a stage did not record its time."""


class Saving(NamedTuple):
    """How soon the runs of a method reached the final loss of the baseline's run with the same seed."""

    seeds: int
    """Number of pairs of runs."""
    reached: int
    """Number of pairs in which the loss was reached."""
    spent: TrainingToReach | None
    """None unless all reached it after their first evaluation: a mean over some would favour the lucky seeds."""


def reach(curve: Curve, loss: float) -> Reach | None:
    """Where a learning curve first reaches `loss`, interpolated linearly; None: nowhere, or before its first point.

    A training that ends at this point need not reach `loss`: its learning rate falls earlier (docs/log.md, 76).
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
    """Progress of a method's runs when the runs of all methods had spent the same compute."""

    flops: float
    """The compute in FLOPs."""
    tokens: float
    """Tokens that the runs had read."""
    loss: Spread
    """Loss on the learning curve."""


def equal_flops(curves: Iterable[Curve]) -> float:
    """The largest number of training FLOPs that all these runs reached."""
    return min(float(curve.flops[-1]) for curve in curves)


def loss_at(curves: Sequence[Curve], flops: float) -> Spread | None:
    """The losses of a method's runs after `flops` training FLOPs, interpolated linearly on their learning curves.

    None: that is before the first point.
    """
    if flops < curves[0].flops[0]:
        return None
    return spread([float(np.interp(flops, curve.flops, curve.loss)) for curve in curves])


def at_equal(runs: Sequence[Run], flops: float, supervision_flops: float = 0.0) -> AtEqual | None:
    """Progress of one method's runs after `flops` FLOPs.

    Args:
        supervision_flops: the part of `flops` that is spent before training starts.

    Returns:
        None when that is before the first point of the curves.
    """
    curves, trained = [run.curve for run in runs], flops - supervision_flops
    tokens = float(np.interp(trained, curves[0].flops, curves[0].tokens))
    loss = loss_at(curves, trained)
    return AtEqual(flops, tokens, loss) if loss else None


def saving(runs: Sequence[Run], baseline: Sequence[Run], supervision_cost: Cost) -> Saving:
    """Compare runs with the baseline's, seed by seed.

    Args:
        supervision_cost: a run's share of the cost of supervision, in addition to its training.
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
