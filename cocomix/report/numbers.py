"""All numbers of the report, for `dvc metrics show` and `dvc metrics diff`."""

from collections.abc import Mapping, Sequence
from typing import Any

from cocomix.report.comparison import MethodResult
from cocomix.report.concepts import mean_concepts
from cocomix.report.costs import Cost, SupervisionStage
from cocomix.report.facts import Pipeline
from cocomix.report.tuning import Tuning
from cocomix.report.usage import StageUsage
from cocomix.report.wording import loss_weight
from cocomix.steering.averages import Sweep


def numbers(
    pipeline: Pipeline,
    results: Sequence[MethodResult],
    spent: Mapping[SupervisionStage, Cost],
    usages: Sequence[StageUsage],
    sweeps: Sequence[Sweep],
    tuned: Tuning | None,
) -> dict[str, Any]:
    """JSON values: pipeline, methods, tuning, costs of supervision, effects of steering, resources of the stages."""
    return {
        "pipeline": {name: facts.model_dump(exclude={"usage"}) for name, facts in pipeline._asdict().items()},
        "methods": {each.method: _of_method(each) for each in results},
        "tuning": _of_tuning(tuned) if tuned else {},
        "supervision": _plain(spent),
        "steering": {sweep.name: {f"{each.strength:g}": _plain(each) for each in sweep.effects} for sweep in sweeps},
        "stages": {each.name: each.usage and each.usage.model_dump() for each in usages},
    }


def _of_method(result: MethodResult) -> dict[str, Any]:
    training = result.runs[0].training
    return {
        "d_model": training.d_model,
        "n_head": training.n_head,
        "parameters": training.parameters.model_dump(),
        "tokens": training.tokens,
        "flops": training.flops,
        "flops_per_token": training.flops_per_token,
        "seconds": _plain(result.seconds),
        "seeds": len(result.runs),
        "supervision": _plain(result.supervision_cost),
        "corpora": _plain(result.corpora),
        "tasks": _plain(result.tasks),
        "mean_accuracy": result.mean_accuracy,
        "down_to_baseline": _plain(result.saving),
        "at_equal_compute": _plain(result.at_equal),
        "at_equal_compute_with_supervision": _plain(result.at_equal_with_supervision),
        "concepts": mean_concepts(result.concepts).model_dump() if result.concepts else None,
    }


def _of_tuning(tuned: Tuning) -> dict[str, Any]:
    trials: dict[str, Any] = {}
    for each in tuned.trials:
        found = {"loss": _plain(each.loss), "loss_at_equal_compute": _plain(each.loss_at_equal)}
        trials.setdefault(each.method, {})[loss_weight(each.weight)] = found | {"seeds": len(each.seeds)}
    return {"flops": tuned.flops, "trials": trials, "other_settings": tuned.others}


def _plain(value: Any) -> Any:
    """Convert named tuples to mappings, recursively."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    return {key: _plain(each) for key, each in value.items()} if isinstance(value, Mapping) else value
