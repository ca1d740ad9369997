"""What was tuned: of what decides the validation loss, runs of sweeps that differ in the methods' own weights alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from cocomix.params import Method, Params
from cocomix.plumbing.checked import parse, read_json
from cocomix.plumbing.errors import UserError
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
    """What sweeps have written into the project's folder, by name; none, where none has run."""
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


def own_weight(method: Method, params: Mapping[str, Any]) -> float | None:
    """The weight of a method's own loss, of `decisive` parameters; None: it has none."""
    return float(params["pretrain"][method][WEIGHTS[method]]) if method in WEIGHTS else None


def tuning(params: Params, widths: Mapping[Method, int], runs: Sequence[SweepRun]) -> Tuning | None:
    """What was tried of each method's own weight, all else that makes its model being as in `params`; None: nothing.

    Args:
        widths: of the models, which for some methods depend on another's section.
        runs: of several with the same method, weight and seed, the last one counts.
    """
    found: dict[Method, dict[float | None, dict[int, SweepRun]]] = {}
    others: dict[Method, set[str]] = {}
    now = decisive(params)
    for run in runs:
        if _shared(run.params) != _shared(now) or run.pretrain.get("d_model") != widths.get(run.method):
            continue
        if _own(run.params, run.method) == _own(now, run.method):
            weight = own_weight(run.method, run.params)
            found.setdefault(run.method, {}).setdefault(weight, {})[run.seed] = run
        else:
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
        [trial for method in methods for trial in _trials(method, tried[method], own_weight(method, now), flops)],
        flops,
        same_code=len({run.code for run in every}) == 1,
        others={method: len(others[method]) for method in get_args(Method) if method in others},
    )


def _trials(
    method: Method, by_weight: Mapping[float | None, Sequence[SweepRun]], used: float | None, flops: float
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
            used=weight == used,
        )
        for weight in sorted(losses, key=lambda weight: weight or 0.0)
    ]


def _shared(params: Mapping[str, Any]) -> dict[str, Any]:
    """Of `decisive` parameters, what can decide the validation loss of any method.

    Another version of the code may know fewer or more: its runs differ, and are no error.
    """
    pretrain = {key: value for key, value in params.get("pretrain", {}).items() if key not in get_args(Method)}
    return {**params, "pretrain": pretrain, "evaluate": {"stride": params.get("evaluate", {}).get("stride")}}


def _own(params: Mapping[str, Any], method: Method) -> dict[str, Any]:
    """A method's section, without its weight."""
    section = params["pretrain"].get(method, {})
    return {key: value for key, value in section.items() if key != WEIGHTS.get(method)}
