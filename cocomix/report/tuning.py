"""Tuning of loss weights: runs of sweeps that differ from params.yaml only in the weight of a method's own loss."""

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
WEIGHTS = {"kd": "kl_weight", "mtp": "weight", "cocomix": "concept_weight"}
"""The parameter that weights a method's auxiliary loss against the next-token loss; a form's is that of cocomix."""


class SweepRun(Facts):
    """A model that a sweep trained and evaluated: an entry of metrics/sweep/<name>.json."""

    setting: str
    values: dict[str, Any]
    """Its differences from params.yaml, nested as there."""
    method: str
    seed: int
    params: dict[str, Any]
    """See `decisive`."""
    outside: dict[str, str | None] | None = None
    """See `decisive_outside`; None in files from before sweeps recorded it."""
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
        """Loss on the whole validation split."""
        return float(self.evaluate["validation"]["loss"])

    @property
    def learning_curve(self) -> Curve:
        """The curve in the form of a pipeline run's."""
        return Curve(*(np.array(self.curve[name]) for name in Curve._fields))


class Trial(NamedTuple):
    """A method with one weight of its auxiliary loss, over some seeds."""

    method: str
    weight: float | None
    """None: the method has no auxiliary loss."""
    seeds: list[int]
    loss: Spread
    """On the validation split."""
    loss_at_equal: Spread | None
    """On the learning curve, after `Tuning.flops`; None: that is before its first point."""
    lowest: bool
    """Whether it has the lowest loss of several weights of the method."""
    used: bool
    """Whether it is the weight in params.yaml."""


class Tuning(NamedTuple):
    """All trials of the weights."""

    trials: list[Trial]
    """Sorted by method and weight; all trials of a method have the same seeds."""
    flops: float
    """The largest number of training FLOPs that all runs reached."""
    same_code: bool
    """Whether the same code made all runs."""
    others: dict[str, int]
    """By method, the number of settings that differ from params.yaml in more of its section than the weight."""

    @property
    def compares(self) -> bool:
        """Whether a method was tried with several weights; a sweep of other parameters tries each with one."""
        return any(each.lowest for each in self.trials)


def sweep_files() -> list[Path]:
    """The files that sweeps have written into the project's folder, sorted by name."""
    return sorted(SWEEPS.glob("*.json"))


def read_sweep(path: Path) -> list[SweepRun]:
    """Read the runs of one sweep.

    Raises:
        UserError: when the file is damaged.
    """
    content = read_json(path, "remove it, or mend it")
    if not isinstance(content, list):
        raise UserError(f"{path}: must hold a list of runs; remove it, or mend it")
    return [parse(SweepRun, each, f"{path}: [{at}]") for at, each in enumerate(content)]


def decisive(params: Params) -> dict[str, Any]:
    """The parameters that can affect what a sweep records of a run."""
    return params.model_dump(
        mode="json", exclude={"explain": True, "steer": True, "report": True, "pretrain": {"methods", "seeds"}}
    )


def decisive_outside(digests: Mapping[str, str | None]) -> dict[str, str | None]:
    """Of what parameters name outside the project, the digests that can affect what a sweep records of a run."""
    return {key: digest for key, digest in digests.items() if not key.startswith(("explain.", "evaluate."))}


def own_weight(method: str, params: Mapping[str, Any]) -> float | None:
    """The weight of a method's auxiliary loss in `decisive` parameters; None: it has none."""
    section, weight = _section(params, method), _weight_of(params, method)
    return float(section[weight]) if weight else None


def tuning(params: Params, widths: Mapping[str, int], runs: Sequence[SweepRun]) -> Tuning | None:
    """Trials of each method's own weight, with all other parameters of its model as in `params`; None: no trials.

    Args:
        widths: of the models; some depend on another method's section.
        runs: if several have the same method, weight and seed, the last one counts.
    """
    found: dict[str, dict[float | None, dict[int, SweepRun]]] = {}
    others: dict[str, set[str]] = {}
    now = decisive(params)
    for run in runs:
        if _shared(run.params) != _shared(now) or run.pretrain.get("d_model") != widths.get(run.method):
            continue
        if _own(run.params, run.method) == _own(now, run.method):
            weight = own_weight(run.method, run.params)
            found.setdefault(run.method, {}).setdefault(weight, {})[run.seed] = run
        else:
            own = json.dumps(_section(run.params, run.method), sort_keys=True)
            others.setdefault(run.method, set()).add(own)
    tried: dict[str, dict[float | None, list[SweepRun]]] = {}
    for method, by_weight in found.items():
        # An unfinished sweep has fewer seeds for its last weights.
        if seeds := sorted(set.intersection(*map(set, by_weight.values()))):
            tried[method] = {weight: [by_seed[seed] for seed in seeds] for weight, by_seed in by_weight.items()}
    every = [run for by_weight in tried.values() for some in by_weight.values() for run in some]
    if not every:
        return None
    flops = equal_flops(run.learning_curve for run in every)
    methods = [*get_args(Method), *params.pretrain.forms]
    trials = [_trials(method, tried[method], own_weight(method, now), flops) for method in methods if method in tried]
    return Tuning(
        [each for some in trials for each in some],
        flops,
        same_code=len({run.code for run in every}) == 1,
        others={method: len(others[method]) for method in methods if method in others},
    )


def _trials(
    method: str, by_weight: Mapping[float | None, Sequence[SweepRun]], used: float | None, flops: float
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
    """The `decisive` parameters that can affect the validation loss of every method.

    Runs of another version of the code may have more or fewer parameters: they count as different, not as errors.
    """
    own = {*get_args(Method), "forms"}
    pretrain = {key: value for key, value in params.get("pretrain", {}).items() if key not in own}
    shared = {key: value for key, value in params.items() if key != "distribution"}
    return {**shared, "pretrain": pretrain, "evaluate": {"stride": params.get("evaluate", {}).get("stride")}}


def _own(params: Mapping[str, Any], method: str) -> dict[str, Any]:
    """A method's section without the weight."""
    return {key: value for key, value in _section(params, method).items() if key != _weight_of(params, method)}


def _section(params: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The parameters of a method or form."""
    section: dict[str, Any] = _forms(params).get(method) or params["pretrain"].get(method, {})
    return section


def _weight_of(params: Mapping[str, Any], method: str) -> str | None:
    """The key of `own_weight` in the method's section."""
    if _section(params, method).get("predicts") == "nothing":
        return None
    return WEIGHTS.get("cocomix" if method in _forms(params) else method)


def _forms(params: Mapping[str, Any]) -> dict[str, Any]:
    forms: dict[str, Any] = params["pretrain"].get("forms", {})  # runs of earlier versions have none
    return forms
