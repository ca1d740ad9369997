"""What a plan says of stages that have not run; against finished ones: tests/stages/test_plan.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocomix.params import Params
from cocomix.plumbing.checked import parse, read_yaml
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.gpus import GPUS, gpu_named
from cocomix.predictions import measure
from cocomix.shapes.planning import DOUBLED, CorpusSize, StageNeeds, estimated_corpus, stage_needs
from tests.shipped import paper_values

PARAMS = paper_values()
TEXT = CorpusSize(
    {"train": 4e6, "validation": 1e6, "test": 1e6}, {"train": 1e6, "validation": 2.5e5, "test": 2.5e5}, 4096
)


def params(**changes: Mapping[str, Any]) -> Params:
    """The shipped parameters with other ones, by section."""
    return parse(Params, PARAMS | {name: PARAMS[name] | dict(values) for name, values in changes.items()}, "test")


def needs(text: CorpusSize = TEXT, **changes: Mapping[str, Any]) -> dict[str, StageNeeds]:
    return stage_needs(params(**changes), text)


def test_activations_that_are_not_kept_take_no_disk_and_are_computed_in_the_autoencoders_training() -> None:
    kept, not_kept = needs(), needs(activations={"keep": False, "mixed_shards": 2})
    assert not_kept["activations"].disk < 0.1 * kept["activations"].disk
    assert not_kept["sae"].flops > 2 * kept["sae"].flops
    assert not_kept["attribution"] == kept["attribution"]


def test_each_site_is_stored() -> None:
    one, two = needs(), needs(activations={"sites": ["resid_post_2", "mlp_out_1"]}, sae={"site": "resid_post_2"})
    assert two["activations"].disk == 2 * one["activations"].disk


def test_a_published_autoencoder_takes_no_training() -> None:
    found = needs(sae={"source": "published", "published": {"path": "x", "format": "openai"}})
    assert found["sae"].flops == 0 < found["sae"].disk


def test_a_base_model_in_bf16_takes_half_the_memory_and_disk_wherever_it_is_loaded() -> None:
    taken = {"source": "pretrained", "pretrained": "x", "model": PARAMS["base"]["model"] | {"d_model": 1024}}
    methods = {"methods": ["kd", "cocomix"]}
    full, half = (needs(base=taken | {"dtype": each}, pretrain=methods) for each in ("fp32", "bf16"))
    weights = full["base"].disk - half["base"].disk
    assert 2 * weights == pytest.approx(full["base"].disk, rel=0.01)
    saved = {name: full[name].memory - half[name].memory for name in full}
    for name in ("sae", "attribution", "explain", "steer", "pretrain@kd-0"):
        assert saved[name] == pytest.approx(weights)
    assert 0 < saved["activations"] < weights
    assert saved["pretrain@cocomix-0"] == 0


def test_where_no_block_above_the_layer_is_needed_none_takes_memory() -> None:
    taken = {"source": "pretrained", "pretrained": "x"}
    loss, activation = (
        needs(base=taken, attribution={"score": each})["attribution"] for each in ("gradient", "activation")
    )
    assert activation.memory < loss.memory


@pytest.mark.parametrize("section", [{}, {"source": "published", "published": {"path": "x", "format": "openai"}}])
def test_activations_that_are_not_stored_need_the_base_model_up_to_their_site_beside_the_whole_one(
    section: dict[str, Any],
) -> None:
    stored, low, high = (
        needs(activations={"keep": keep, "mixed_shards": 2, "sites": [site]}, sae=section)["sae"].memory
        for keep, site in ((True, "resid_post_3"), (False, "resid_post_1"), (False, "resid_post_3"))
    )
    assert stored < low < high


def test_no_more_activations_are_stored_than_there_are_tokens() -> None:
    few = TEXT._replace(tokens={"train": 12_800.0, "validation": 1280.0, "test": 1280.0})
    bytes_of_a_row = 2 * 128 + 5
    assert needs(few)["activations"].disk == bytes_of_a_row * (12_800 + 1280)


def test_every_method_and_seed_is_trained_and_evaluated() -> None:
    found = needs(pretrain={"methods": ["kd", "pause"], "seeds": [3, 4]})
    items = {
        f"{stage}@{method}-{seed}"
        for stage in ("pretrain", "evaluate")
        for method in ("kd", "pause")
        for seed in (3, 4)
    }
    assert {name for name in found if "@" in name} == items


def test_forms_are_planned_by_their_own_parameters() -> None:
    forms = {
        "predicted": {"mixing": "none"},
        "taught": {"kd": {"kl_weight": 1.0}},
        "control": {"predicts": "nothing"},
        "added": {"mixing": "add"},
    }
    found = needs(pretrain={"methods": ["ntp", "cocomix", *forms], "forms": forms})
    alone = needs(pretrain={"methods": ["ntp", "cocomix"]})
    assert {name: need for name, need in found.items() if name in alone and name != "steer"} == {
        name: need for name, need in alone.items() if name != "steer"
    }
    assert found["pretrain@predicted-0"].flops < found["pretrain@cocomix-0"].flops
    assert found["pretrain@taught-0"].flops > found["pretrain@cocomix-0"].flops
    assert found["pretrain@taught-0"].memory > found["pretrain@cocomix-0"].memory
    assert found["pretrain@control-0"].scratch < found["pretrain@cocomix-0"].scratch  # it unpacks no labels
    assert found["evaluate@control-0"].disk == found["evaluate@ntp-0"].disk
    without = needs(pretrain={"methods": ["ntp", "cocomix", "predicted", "control"], "forms": forms})
    assert without["steer"] == alone["steer"]
    assert found["steer"].flops > alone["steer"].flops
    assert needs(pretrain={"methods": ["ntp", "predicted"], "forms": forms})["steer"] == StageNeeds()


def test_steering_costs_the_windows_in_which_each_concept_is_doubled() -> None:
    assert DOUBLED == measure.DOUBLED
    few, many = (needs(steer={"read_windows": windows})["steer"].flops for windows in (1, 101))
    reading = (many - few) / 100  # FLOPs of a window
    assert few > DOUBLED * params().sae.concepts * reading


def test_multi_token_prediction_costs_further_blocks_and_heads_in_training_alone() -> None:
    found = needs(pretrain={"methods": ["ntp", "mtp"], "match": "width"})
    assert found["pretrain@mtp-0"].flops > 1.5 * found["pretrain@ntp-0"].flops
    assert found["pretrain@mtp-0"].memory > found["pretrain@ntp-0"].memory
    assert found["pretrain@mtp-0"].disk == found["pretrain@ntp-0"].disk
    assert found["evaluate@mtp-0"] == found["evaluate@ntp-0"]


def test_muon_keeps_one_moment_less_for_each_number_in_a_matrix_of_a_block_and_multiplies_matrices() -> None:
    changes = {"methods": ["ntp", "mtp"], "match": "width"}
    training = params().pretrain.training.model_dump() | {"optimizer": "muon"}
    adamw, muon = needs(pretrain=changes), needs(pretrain=changes | {"training": training})
    shape = params().pretrain.model
    matrices = 12 * shape.d_model**2
    for name, blocks in (("ntp", shape.n_layer), ("mtp", shape.n_layer + params().pretrain.mtp.tokens - 1)):
        one, other = adamw[f"pretrain@{name}-0"], muon[f"pretrain@{name}-0"]
        assert one.memory - other.memory == 4 * blocks * matrices
        assert one.scratch - other.scratch == 2 * 4 * blocks * matrices
        # 30 d^3 for each of four square matrices, 90 d^3 for each of two that are four times as long.
        assert other.flops - one.flops == training["steps"] * blocks * 300 * shape.d_model**3
        assert other.disk == one.disk
    assert adamw["base"] == muon["base"]


def test_distillation_costs_the_base_models_forward_pass_too() -> None:
    changes = {"methods": ["ntp", "kd"], "match": "width"}
    found, training = needs(pretrain=changes), params().pretrain.training
    base_training = params().base.training
    forward = found["base"].flops / (3 * base_training.steps * base_training.batch_size)
    more = found["pretrain@kd-0"].flops - found["pretrain@ntp-0"].flops
    assert more == forward * training.steps * training.batch_size


def test_draws_that_are_read_cost_disk_in_place_of_the_base_models_forward_pass() -> None:
    methods = {"methods": ["ntp", "kd", "cocomix"], "match": "width"}
    kd = params().pretrain.kd.model_dump()
    cached = {"kd": kd | {"source": "cached"}}
    none, drawn = needs(pretrain=methods), needs(pretrain=methods, distribution={"draws": 50})
    read = needs(pretrain=methods | cached, distribution={"draws": 50})
    assert none["distribution"] == StageNeeds()
    tokens = TEXT.tokens["train"] // 128 * 128 + TEXT.tokens["validation"] // 128 * 128
    assert 20 * tokens < drawn["distribution"].disk < 70 * tokens
    assert drawn["distribution"].flops < drawn["attribution"].flops
    assert read["pretrain@kd-0"].flops == read["pretrain@ntp-0"].flops < drawn["pretrain@kd-0"].flops
    assert read["pretrain@kd-0"].scratch > drawn["pretrain@kd-0"].scratch + 30 * tokens
    both = params().pretrain.cocomix.model_dump() | {"kd": kd | {"source": "cached"}}
    read_too = needs(pretrain=methods | {"cocomix": both}, distribution={"draws": 50})["pretrain@cocomix-0"]
    assert read_too.scratch > drawn["pretrain@cocomix-0"].scratch + 30 * tokens
    assert read_too.flops == drawn["pretrain@cocomix-0"].flops


def test_latents_with_two_signs_are_twice_as_many_concepts_and_no_more_work() -> None:
    one, two = needs(), needs(sae={"architecture": "abstopk"})
    twice = needs(sae={"latents": 2 * params().sae.latents})
    for models in ("pretrain@ntp-0", "pretrain@cocomix-0", "evaluate@cocomix-0"):
        assert two[models] == twice[models] != one[models]
    assert two["explain"].disk == twice["explain"].disk
    for stage in ("sae", "attribution", "explain"):
        assert two[stage].flops == one[stage].flops < twice[stage].flops


@given(st.floats(0.1, 1e5))
def test_a_corpus_is_no_larger_than_its_limit_and_its_source(megabytes: float) -> None:
    corpus = {"source": "files", "files": {"paths": ["*.txt"]}, "megabytes": megabytes}
    text = estimated_corpus(params(corpus=corpus), 1e9)
    assert sum(text.bytes.values()) == pytest.approx(min(megabytes * 1e6, 1e9))
    assert text.tokens["train"] > text.tokens["validation"] > 0


def test_a_dataset_of_unknown_size_must_be_limited() -> None:
    corpus = {"source": "hub", "hub": {"dataset": "a", "revision": "b"}, "megabytes": None}
    with pytest.raises(UserError, match=r"corpus\.megabytes: null: .* set a limit"):
        estimated_corpus(params(corpus=corpus), None)


@pytest.mark.parametrize(
    ("name", "gpu"), [("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", "H100 PCIe"), ("a100", "A100")]
)
def test_a_gpu_is_known_by_its_drivers_name(name: str, gpu: str) -> None:
    assert gpu_named(name) == GPUS[gpu]
    assert gpu_named("Voodoo") is None


def test_every_stage_of_the_pipeline_is_known() -> None:
    stages = read_yaml(Path(__file__).parents[2] / "dvc.yaml")["stages"]
    assert {name.partition("@")[0] for name in needs()} == set(stages) - {"check"}  # which needs nothing


OWN = {"source": "pretrained", "pretrained": "x", "tokenizer": "own"}


def test_a_base_model_with_its_own_tokens_takes_disk_for_them_and_for_the_places_of_labels() -> None:
    shared, own = (needs(base={"source": "pretrained", "pretrained": "x"} | each) for each in ({}, OWN))
    assert shared["base_tokens"].disk < 1000
    assert shared["base_tokens"].text == 0
    students = 4 * 1.25e6
    assert students < own["base_tokens"].disk < 2.5 * students
    assert own["base_tokens"].text > sum(TEXT.bytes.values())
    assert own["tokenize"] == shared["tokenize"]
    assert own["pretrain@ntp-0"] == shared["pretrain@ntp-0"]


def test_labels_cost_what_the_base_models_tokens_cost_and_take_the_disk_of_the_students() -> None:
    short, long = (needs(base=OWN | {"context": context}) for context in (128, 1024))
    assert short["attribution"].disk == long["attribution"].disk
    assert short["attribution"].flops < long["attribution"].flops
