"""The numbers of the report: all of them, and the few that DVC shows and compares."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cocomix.plumbing.as_json import plain
from cocomix.report.comparison import MethodResult
from cocomix.report.concepts import mean_concepts
from cocomix.report.costs import Cost, SupervisionStage
from cocomix.report.facts import Pipeline, Run
from cocomix.report.tuning import Tuning
from cocomix.report.usage import StageUsage
from cocomix.report.wording import loss_weight
from cocomix.steering.averages import Sweep

DECIMALS = 4


def headline(pipeline: Pipeline, results: Sequence[MethodResult]) -> dict[str, Any]:
    """Losses in nats per token, and shares: JSON values, rounded, for `dvc metrics show` and `dvc metrics diff`.

    `saved_tokens` is the share of the baseline's tokens that a method did not need to reach the baseline's final loss;
    null: not all of its runs reached it.
    """
    return {
        "base": {"validation_loss": round(pipeline.base.validation_loss, DECIMALS)},
        "sae": {"fvu": round(pipeline.sae.fvu, DECIMALS)},
        **{each.method: _headline_of(each) for each in results},
    }


def _headline_of(result: MethodResult) -> dict[str, float | None]:
    found: dict[str, float | None] = {
        f"{split}_loss": round(result.corpora[split].loss.mean, DECIMALS) for split in ("validation", "test")
    }
    if result.saving:
        spent = result.saving.spent
        found["saved_tokens"] = round(spent.tokens_saved.mean, DECIMALS) if spent else None
    return found


def write_curves(path: Path, runs: Mapping[str, Sequence[Run]]) -> None:
    """Write the learning curves of all runs as one table, for `dvc plots`: one row per run and point."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "seed", "tokens", "validation_loss"])
        for method, some in runs.items():
            for run in some:
                points = zip(run.curve.tokens, run.curve.loss, strict=True)
                writer.writerows([method, run.seed, int(tokens), loss] for tokens, loss in points)


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
        "supervision": plain(spent),
        "steering": {sweep.name: {f"{each.strength:g}": plain(each) for each in sweep.effects} for sweep in sweeps},
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
        "seconds": plain(result.seconds),
        "seeds": len(result.runs),
        "supervision": plain(result.supervision_cost),
        "corpora": plain(result.corpora),
        "tasks": plain(result.tasks),
        "mean_accuracy": result.mean_accuracy,
        "down_to_baseline": plain(result.saving),
        "at_equal_compute": plain(result.at_equal),
        "at_equal_compute_with_supervision": plain(result.at_equal_with_supervision),
        "concepts": mean_concepts(result.concepts).model_dump() if result.concepts else None,
    }


def _of_tuning(tuned: Tuning) -> dict[str, Any]:
    trials: dict[str, Any] = {}
    for each in tuned.trials:
        found = {"loss": plain(each.loss), "loss_at_equal_compute": plain(each.loss_at_equal)}
        trials.setdefault(each.method, {})[loss_weight(each.weight)] = found | {"seeds": len(each.seeds)}
    return {"flops": tuned.flops, "trials": trials, "other_settings": tuned.others}
