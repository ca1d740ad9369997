"""What was tuned: of what decides the validation loss, runs of sweeps that differ in the methods' own weights alone."""

import json
from collections.abc import Mapping, Sequence
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
    params: dict[str, Any]
    """`decisive` ones."""
    code: str
    """Digest of the code of all stages."""
    pretrain: dict[str, Any]
    """metrics/pretrain/<method>-<seed>.json."""
    evaluate: dict[str, Any]
    """metrics/evaluate/<method>-<seed>.json."""
    curve: dict[str, list[float]]
    """The learning curve, by the fields of `Curve`."""

    @property
    def weight(self) -> float | None:
        """Of the method's own loss; None: it has none."""
        return float(self.params["pretrain"][self.method][WEIGHTS[self.method]]) if self.method in WEIGHTS else None

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
    others: dict[Method, int]
    """Settings of a method that differ from params.yaml in more of its section than the weight; none of some."""


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


def decisive(params: Params) -> dict[str, Any]:
    """The parameters that can decide what a sweep notes of a run."""
    return params.model_dump(
        mode="json", exclude={"explain": True, "steer": True, "report": True, "pretrain": {"methods", "seeds"}}
    )


def own_weight(method: Method, pretrain: PretrainParams) -> float | None:
    """The weight of a method's own loss; None: it has none."""
    weight: float | None = getattr(getattr(pretrain, method), WEIGHTS[method]) if method in WEIGHTS else None
    return weight


def tuning(params: Params, runs: Sequence[SweepRun]) -> Tuning | None:
    """What was tried of each method's own weight, all but such weights being as in `params`; None: nothing."""
    found: dict[Method, dict[float | None, dict[int, SweepRun]]] = {}
    others: dict[Method, set[str]] = {}
    shared = _without_weights(decisive(params))
    for run in runs:
        theirs = _without_weights(run.params)
        if theirs == shared:
            found.setdefault(run.method, {}).setdefault(run.weight, {})[run.seed] = run
        elif _without_section(theirs, run.method) == _without_section(shared, run.method):
            own = json.dumps(run.params["pretrain"][run.method], sort_keys=True)
            others.setdefault(run.method, set()).add(own)
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
        others={method: len(others[method]) for method in get_args(Method) if method in others},
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


def _without_weights(params: dict[str, Any]) -> dict[str, Any]:
    """Of `decisive` parameters, what else can decide the validation loss."""
    pretrain = params["pretrain"]
    own = {
        method: {key: value for key, value in pretrain[method].items() if key != weight}
        for method, weight in WEIGHTS.items()
    }
    return params | {"pretrain": pretrain | own, "evaluate": {"stride": params["evaluate"]["stride"]}}


def _without_section(params: dict[str, Any], method: Method) -> dict[str, Any]:
    return params | {"pretrain": params["pretrain"] | {method: None}}
