"""What was tuned: runs of sweeps that differ from params.yaml in the methods' own loss weights, and in nothing else."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from cocomix.checked import parse, read_json
from cocomix.errors import UserError
from cocomix.params import Method, Params, PretrainParams
from cocomix.report.efficiency import Spread, equal_flops, loss_at, spread
from cocomix.report.facts import METRICS, Curve, Facts

SWEEPS = METRICS / "sweep"
WEIGHTS: dict[Method, str] = {"kd": "kl_weight", "cocomix": "concept_weight"}
"""The parameter by which a method weighs what it minimises besides the next token's loss."""


class SweepRun(Facts):
    """A model that a sweep has trained and evaluated: an entry of metrics/sweep/<name>.json."""

    setting: str
    values: dict[str, Any]
    """How its parameters differ from params.yaml, nested as there."""
    method: Method
    seed: int
    params: str
    """`decisive_digest` of its parameters."""
    code: str
    """Digest of the code of all stages."""
    pretrain: dict[str, Any]
    """metrics/pretrain/<method>-<seed>.json."""
    evaluate: dict[str, Any]
    """metrics/evaluate/<method>-<seed>.json."""
    curve: dict[str, list[float]]
    """The learning curve, by the fields of `Curve`."""

    @property
    def validation_loss(self) -> float:
        """Of the whole split."""
        return float(self.evaluate["validation"]["loss"])

    @property
    def learning_curve(self) -> Curve:
        """As of a run of the pipeline."""
        return Curve(*(np.array(self.curve[name]) for name in Curve._fields))


class Trial(NamedTuple):
    """A method with one weight of its own loss, over some seeds."""

    method: Method
    weight: float | None
    """None: the method has no loss of its own."""
    seeds: list[int]
    loss: Spread
    """Of the validation split."""
    loss_at_equal: Spread | None
    """Of the learning curve, after `Tuning.flops`; None: it has no point yet."""
    lowest: bool
    """Whether it has the lowest loss of the method's weights, of which there are several."""
    used: bool
    """Whether it is the weight in params.yaml."""


class Tuning(NamedTuple):
    """All that was tried."""

    trials: list[Trial]
    """By method, then by weight; those of a method have the same seeds."""
    flops: float
    """The most that all runs spent on training."""
    same_code: bool
    """Whether the same code made all runs."""


def sweep_files() -> list[Path]:
    """What sweeps have written into the project's folder; none, where none has run."""
    return sorted(SWEEPS.glob("*.json"))


def read_sweep(path: Path) -> list[SweepRun]:
    """The runs of one sweep.

    Raises:
        UserError: when the file is damaged.
    """
    content = read_json(path, "remove it, or mend it")
    if not isinstance(content, list):
        raise UserError(f"{path}: must hold a list of runs; remove it, or mend it")
    return [parse(SweepRun, each, f"{path}: [{at}]") for at, each in enumerate(content)]


def decisive_digest(params: Params) -> str:
    """Of the parameters that can decide what comes of a run."""
    decisive = params.model_dump(mode="json", exclude={"report": True, "pretrain": {"methods", "seeds"}})
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def own_weight(method: Method, pretrain: PretrainParams) -> float | None:
    """The weight of a method's own loss; None: it has none."""
    weight: float | None = getattr(getattr(pretrain, method), WEIGHTS[method]) if method in WEIGHTS else None
    return weight


def tuning(params: Params, runs: Sequence[SweepRun]) -> Tuning | None:
    """What was tried of each method's own weight, all but such weights being as in `params`; None: nothing."""
    found: dict[Method, dict[float | None, dict[int, SweepRun]]] = {}
    weights = _weights_by_digest(params, runs)
    for run in runs:
        if run.params in weights:
            found.setdefault(run.method, {}).setdefault(weights[run.params].get(run.method), {})[run.seed] = run
    tried: dict[Method, dict[float | None, list[SweepRun]]] = {}
    for method, by_weight in found.items():
        # A sweep that is not finished has fewer seeds of its last weights.
        if seeds := sorted(set.intersection(*map(set, by_weight.values()))):
            tried[method] = {weight: [by_seed[seed] for seed in seeds] for weight, by_seed in by_weight.items()}
    every = [run for by_weight in tried.values() for some in by_weight.values() for run in some]
    if not every:
        return None
    flops = equal_flops(run.learning_curve for run in every)
    methods = [each for each in get_args(Method) if each in tried]
    return Tuning(
        [trial for method in methods for trial in _trials(method, tried[method], params.pretrain, flops)],
        flops,
        same_code=len({run.code for run in every}) == 1,
    )


def _trials(
    method: Method, by_weight: Mapping[float | None, Sequence[SweepRun]], pretrain: PretrainParams, flops: float
) -> list[Trial]:
    losses = {weight: spread([run.validation_loss for run in some]) for weight, some in by_weight.items()}
    best = min(losses, key=lambda weight: losses[weight].mean)
    return [
        Trial(
            method,
            weight,
            [run.seed for run in by_weight[weight]],
            losses[weight],
            loss_at([run.learning_curve for run in by_weight[weight]], flops),
            lowest=len(losses) > 1 and weight == best,
            used=weight == own_weight(method, pretrain),
        )
        for weight in sorted(losses, key=lambda weight: weight or 0.0)
    ]


def _weights_by_digest(params: Params, runs: Sequence[SweepRun]) -> dict[str, dict[Method, float]]:
    """All weights that `runs` can have had, by the digest of `params` with them.

    A run notes how it differs from the params.yaml of its time, which may have had other weights: the best ones are
    written there when they are known. So every weight that occurs is tried for every method.
    """
    known = {own_weight(method, params.pretrain) for method in WEIGHTS}
    for run in runs:
        given = run.values.get("pretrain", {})
        known |= {given.get(method, {}).get(name) for method, name in WEIGHTS.items()}
    every = sorted(float(each) for each in known if each is not None)
    combinations = [dict(zip(WEIGHTS, some, strict=True)) for some in product(every, repeat=len(WEIGHTS))]
    return {decisive_digest(_with_weights(params, each)): each for each in combinations}


def _with_weights(params: Params, weights: Mapping[Method, float]) -> Params:
    sections: dict[str, Any] = {
        method: getattr(params.pretrain, method).model_copy(update={WEIGHTS[method]: weight})
        for method, weight in weights.items()
    }
    return params.model_copy(update={"pretrain": params.pretrain.model_copy(update=sections)})
