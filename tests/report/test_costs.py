from pathlib import Path
from typing import Any

import pytest

from cocomix.params import Method, Params, PretrainParams
from cocomix.report.costs import SUPERVISION_STAGES, Cost, costs, share, supervision_stages
from cocomix.report.facts import Pipeline, Usage, read_pipeline
from tests.report.made_metrics import write_pipeline
from tests.shipped import paper_params

LOWER, UPPER, WIDTH, LATENTS, ACTIVE = 800, 1200, 128, 1024, 31.9
STORED, TRAINING_TOKENS = 15000, 30030
ENCODER = 2 * WIDTH * LATENTS


@pytest.fixture
def pipeline(folder: Path) -> Pipeline:
    write_pipeline()
    return read_pipeline()


def params(**sections: dict[str, Any]) -> Params:
    """The shipped parameters, changed by section."""
    content = paper_params().model_dump()
    for name, changes in sections.items():
        content[name] |= changes
    return Params.model_validate(content)


def test_stages_cost_what_their_matrix_products_do(pipeline: Pipeline) -> None:
    found = {name: cost.flops for name, cost in costs(pipeline, params()).items()}
    assert found == pytest.approx(
        {
            "base": 2.3e10,
            "activations": LOWER * STORED,
            "sae": (ENCODER + 8 * WIDTH * ACTIVE) * STORED,
            "attribution": (LOWER + ENCODER + 2 * UPPER + 2 * WIDTH * ACTIVE) * TRAINING_TOKENS,
            "distribution": 0,
        }
    )


@pytest.mark.parametrize(
    ("section", "changes", "stage", "flops"),
    [
        ("attribution", {"score": "activation"}, "attribution", (LOWER + ENCODER) * TRAINING_TOKENS),
        (
            "attribution",
            {"value": "pre_activation"},
            "attribution",
            (LOWER + 2 * ENCODER + 2 * UPPER) * TRAINING_TOKENS,
        ),
        (
            "attribution",
            {"score": "ablation", "scope": "next_token"},
            "attribution",
            (LOWER + ENCODER + (1 + ACTIVE) * UPPER) * TRAINING_TOKENS,
        ),
        ("distribution", {"draws": 50}, "distribution", (LOWER + UPPER) * TRAINING_TOKENS),
        ("sae", {"epochs": 3}, "sae", 3 * (ENCODER + 8 * WIDTH * ACTIVE) * STORED),
        ("sae", {"architecture": "abstopk", "latents": 512}, "sae", (ENCODER / 2 + 8 * WIDTH * ACTIVE) * STORED),
        ("sae", {"epochs": 3}, "activations", LOWER * STORED),
        ("activations", {"keep": False, "mixed_shards": 2}, "activations", LOWER * STORED),
    ],
)
def test_settings_change_what_they_should(
    pipeline: Pipeline, section: str, changes: dict[str, Any], stage: Any, flops: float
) -> None:
    assert costs(pipeline, params(**{section: changes}))[stage].flops == pytest.approx(flops)


def test_activations_that_are_not_kept_are_made_again_each_epoch(pipeline: Pipeline) -> None:
    changed = params(activations={"keep": False, "mixed_shards": 2}, sae={"epochs": 2})
    assert costs(pipeline, changed)["activations"].flops == 2 * LOWER * STORED


def pretrain(**methods: dict[str, Any]) -> PretrainParams:
    """The shipped section, changed by method; draws are there to be read."""
    section = params().pretrain.model_dump()
    for name, changes in methods.items():
        section[name] |= changes
    return params(pretrain=section, distribution={"draws": 50}).pretrain


CACHED = {"source": "cached", "kl_weight": 1.0}


@pytest.mark.parametrize(
    ("method", "section", "stages"),
    [
        ("ntp", {}, []),
        ("pause", {}, []),
        ("mtp", {}, []),
        ("kd", {}, ["base"]),
        ("kd", CACHED, ["base", "distribution"]),
        ("cocomix", {}, ["base", "activations", "sae", "attribution"]),
        ("cocomix", {"predicts": "hidden"}, ["base"]),
        ("cocomix", {"predicts": "nothing"}, []),
        ("cocomix", {"concept_weight": 0.0}, []),
        ("cocomix", {"concept_weight": 0.0, "kd": {"kl_weight": 1.0}}, ["base"]),
        ("cocomix", {"kd": {"kl_weight": 1.0}}, ["base", "activations", "sae", "attribution"]),
        ("cocomix", {"kd": CACHED}, ["base", "activations", "sae", "attribution", "distribution"]),
        ("cocomix", {"kd": CACHED | {"kl_weight": 0.0}}, ["base", "activations", "sae", "attribution"]),
    ],
)
def test_a_method_needs_the_stages_that_make_what_it_learns_from(
    method: Method, section: dict[str, Any], stages: list[str]
) -> None:
    assert list(supervision_stages(pretrain(**{method: section}).section(method))) == stages


def test_a_method_owes_its_share_of_what_it_learns_from() -> None:
    made = {each: Cost(8.0, 2.0) for each in SUPERVISION_STAGES}
    assert share(made, SUPERVISION_STAGES, 2) == Cost(20.0, 5.0)
    assert share(made, (), 2) == Cost(0.0, 0.0)
    assert share(made | {"sae": Cost(8.0, None)}, SUPERVISION_STAGES, 1) == Cost(40.0, None)


def test_seconds_are_those_that_the_stages_report(pipeline: Pipeline) -> None:
    assert {each.seconds for each in costs(pipeline, params()).values()} == {None}
    usage = Usage(seconds=61.0, peak_memory=1, bytes=1, processes=1)
    timed = pipeline._replace(sae=pipeline.sae.model_copy(update={"usage": usage}))
    assert costs(timed, params())["sae"].seconds == 61.0
