"""Resources that the stages of the pipeline used."""

from collections.abc import Sequence
from typing import NamedTuple

from cocomix.report.facts import Made, Pipeline, Run, Usage


class StageUsage(NamedTuple):
    """Resources of one stage, over all its runs."""

    name: str
    runs: int
    usage: Usage | None
    """Seconds and bytes are sums; memory and processes are maxima. None: not all runs recorded them."""


def stage_usages(pipeline: Pipeline, runs: Sequence[Run]) -> list[StageUsage]:
    """All stages before the report, in order."""
    alone = {
        "corpus": pipeline.corpus,
        "tokenize": pipeline.tokens,
        "base_tokens": pipeline.base_tokens,
        "base": pipeline.base,
        "activations": pipeline.activations,
        "sae": pipeline.sae,
        "attribution": pipeline.attribution,
        "distribution": pipeline.distribution,
        "explain": pipeline.explain,
        "methods": pipeline.methods,
    }
    return [
        *(StageUsage(name, 1, facts.usage) for name, facts in alone.items()),
        StageUsage("pretrain", len(runs), _together([run.training.usage for run in runs])),
        StageUsage("evaluate", len(runs), _together([run.evaluation.usage for run in runs])),
        StageUsage("steer", 1, pipeline.steer.usage),
    ]


def made_with(pipeline: Pipeline, runs: Sequence[Run]) -> dict[str, list[str]]:
    """The different commits, dates, machines and versions of all stages; empty where no stage recorded them."""
    facts = [*pipeline, *(run.training for run in runs), *(run.evaluation for run in runs)]
    made = [each.usage.made for each in facts if each.usage and each.usage.made]
    return {name: sorted({getattr(each, name) for each in made}) for name in Made.model_fields if made}


def startup_share(usages: Sequence[StageUsage]) -> float | None:
    """The share of starting in the time of all stages; None: not all of them recorded it."""
    known = [each.usage for each in usages if each.usage]
    startup = _sum([each.startup_seconds for each in known])
    if len(known) < len(usages) or startup is None:
        return None
    return startup / (startup + sum(each.seconds for each in known))


def _together(usages: Sequence[Usage | None]) -> Usage | None:
    known = [each for each in usages if each]
    if len(known) < len(usages):
        return None
    return Usage(
        seconds=sum(each.seconds for each in known),
        startup_seconds=_sum([each.startup_seconds for each in known]),
        peak_memory=max(each.peak_memory for each in known),
        bytes=sum(each.bytes for each in known),
        processes=max(each.processes for each in known),
    )


def _sum(seconds: Sequence[float | None]) -> float | None:
    known = [each for each in seconds if each is not None]
    return sum(known) if len(known) == len(seconds) else None
