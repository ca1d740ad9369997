from pathlib import Path
from typing import Any

import pytest

from cocomix.params import Params, load
from cocomix.plumbing.checked import parse, read_yaml
from cocomix.plumbing.errors import UserError
from tests.params.changed import formed, refusal
from tests.shipped import SHIPPED, paper_form, paper_values


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "  decontaminate: null",
            "  decontaminate: drop",
            "corpus.decontaminate (drop): evaluate.tasks and evaluate.corpora are empty: there is nothing to look for",
        ),
        ("forms: {}", "forms: {a: {concept_k: 2048}}", "pretrain.forms.a.concept_k (2048) must not exceed the conce"),
        ("stride: null", "stride: 128", "evaluate.stride (128) must be below tokenize.context (128): a window's first"),
        ("[resid_post_2]", "[resid_post_4]", "activations.sites: the block of resid_post_4 (4) must be below base."),
        ("[resid_post_2]", "[mlp_out_1, attn_out_1]", "sae.site must choose one of activations.sites: mlp_out_1, att"),
        ("site: null", "site: mlp_out_1", "sae.site (mlp_out_1) must be one of activations.sites: resid_post_2"),
        ("also: {}", "also: {a: {site: attn_out_1}}", "sae.also.a.site (attn_out_1) must be one of activations.site"),
    ],
)
def test_values_of_two_sections_that_contradict_are_one_line_with_the_key_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert refusal(tmp_path, old, new).startswith(message)


def test_of_pre_activations_there_are_as_many_labels_as_latents(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = paper_form().replace("k_attr: 4", "k_attr: 40")
    path.write_text(text)
    with pytest.raises(UserError, match=r"attribution.k_attr \(40\) must not exceed sae.k \(32\)"):
        load(path)
    path.write_text(text.replace("value: activation", "value: pre_activation"))
    assert load(path).attribution.k_attr == 40


def test_as_many_concepts_can_be_mixed_as_there_are_two_of_a_latent_with_signs(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = paper_form().replace("concept_k: 32", "concept_k: 2048")
    path.write_text(text)
    with pytest.raises(UserError, match=r"concept_k \(2048\) must not exceed the concepts of sae \(1024\)"):
        load(path)
    path.write_text(text.replace("architecture: topk", "architecture: abstopk"))
    assert load(path).pretrain.cocomix.concept_k == load(path).sae.concepts == 2048


def test_labels_that_know_what_comes_next_are_not_forced() -> None:
    values = paper_values()
    values["pretrain"]["cocomix"]["teacher_forcing"] = 0.5
    with pytest.raises(
        UserError, match=r"pretrain\.cocomix\.teacher_forcing must be 0 with attribution.score: gradient"
    ):
        parse(Params, values, "params.yaml")
    values["attribution"]["score"] = "activation"
    assert parse(Params, values, "params.yaml").pretrain.cocomix.forces_labels
    values["pretrain"]["cocomix"]["label_offsets"] = [1]
    with pytest.raises(UserError, match=r"teacher_forcing needs label_offsets: \[0\]"):
        parse(Params, values, "params.yaml")
    values["pretrain"]["cocomix"]["mixing"] = "none"
    assert not parse(Params, values, "params.yaml").pretrain.cocomix.forces_labels


def test_the_cached_distribution_must_be_there_for_forms_that_are_listed() -> None:
    cached = {"cached": {"kd": {"source": "cached", "kl_weight": 1.0, "temperature": 2.0}}}
    stored = read_yaml(SHIPPED)["distribution"] | {"draws": 50}
    assert formed(["ntp"], cached).pretrain.forms
    with pytest.raises(
        UserError, match=r"pretrain\.forms\.cached\.kd\.source is cached, which needs distribution\.draws"
    ):
        formed(["cached"], cached)
    with pytest.raises(UserError, match=r"pretrain\.forms\.cached\.kd\.temperature \(2\) must be distribution\.temper"):
        formed(["cached"], cached, distribution=stored)
    assert formed(["cached"], cached, distribution=stored | {"temperature": 2.0}).pretrain.listed


def test_distillation_without_a_weight_needs_no_draws() -> None:
    values = read_yaml(SHIPPED)
    values["distribution"]["draws"] = None
    values["pretrain"] |= {"methods": ["kd"], "kd": values["pretrain"]["kd"] | {"kl_weight": 0.0}}
    assert parse(Params, values, "params.yaml").pretrain.methods == ["kd"]
    values["pretrain"]["kd"]["kl_weight"] = 1.0
    with pytest.raises(UserError, match=r"pretrain\.kd\.source is cached, which needs distribution\.draws"):
        parse(Params, values, "params.yaml")


REFUSED = "base.tokenizer: own gives the students other tokens, which does not go with"
OWN = {"source": "pretrained", "pretrained": "gpt2", "revision": "a", "tokenizer": "own"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distribution": {"draws": 50}}, f"{REFUSED} distribution.draws (50); distribution.draws can be null"),
        (
            {"distribution": {"draws": 50}, "pretrain": {"methods": ["kd", "taught"]}},
            f"{REFUSED} distribution.draws (50), pretrain.kd.kl_weight (1), pretrain.forms.taught.kd.kl_weight (1);",
        ),
        (
            {"pretrain": {"methods": ["ntp", "kd"]}},
            f"{REFUSED} pretrain.kd.kl_weight (1);",
        ),
        (
            {"pretrain": {"methods": ["taught"]}},
            f"{REFUSED} pretrain.forms.taught.kd.kl_weight (1);",
        ),
        (
            {"pretrain": {"methods": ["hidden"]}},
            f"{REFUSED} pretrain.forms.hidden.predicts (hidden);",
        ),
        ({"base": {"source": "train"}}, "base: tokenizer: own needs source: pretrained"),
        ({"base": {"context": 8}}, "steer.prompt_tokens (8) and steer.new_tokens (24) together must not exceed base.c"),
        ({"base": {"tokenizer": "shared", "context": 64}}, "base: context (64) needs tokenizer: own"),
    ],
    ids=str,
)
def test_what_needs_the_students_tokenizer_is_refused_with_another(changes: dict[str, Any], message: str) -> None:
    values = paper_values()
    values["base"] |= OWN
    values["pretrain"]["forms"] = {"taught": {"kd": {"kl_weight": 1.0}}, "hidden": {"predicts": "hidden"}}
    assert parse(Params, values, "params.yaml").base.tokenizer == "own", "forms that are not listed need nothing"
    for section, each in changes.items():
        values[section] |= each
    with pytest.raises(UserError) as error:
        parse(Params, values, "params.yaml")
    assert str(error.value).removeprefix("params.yaml: ").startswith(message)
    assert "\n" not in str(error.value)


def test_bf16_is_for_pretrained_base_models_whose_losses_are_not_subtracted() -> None:
    values = paper_values()
    values["base"]["dtype"] = "bf16"
    with pytest.raises(UserError, match="base: dtype: bf16 needs source: pretrained; one that is trained here has fp3"):
        parse(Params, values, "params.yaml")
    values["base"] |= {"source": "pretrained", "pretrained": "gpt2"}
    assert parse(Params, values, "params.yaml").base.dtype == "bf16"
    values["attribution"]["score"] = "ablation"
    with pytest.raises(UserError, match=r"attribution\.score: ablation needs base\.dtype: fp32, not bf16"):
        parse(Params, values, "params.yaml")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("mtp", r"pretrain\.mtp\.tokens \(4\) must be below tokenize\.context \(4\)"),
        ("later", r"pretrain\.forms\.later\.label_offsets \(4\) must be below tokenize\.context \(4\)"),
    ],
)
def test_what_lies_ahead_of_a_position_is_in_its_window(method: str, message: str) -> None:
    forms = {"later": {"label_offsets": [0, 4]}}
    more = {"steer": read_yaml(SHIPPED)["steer"] | {"prompt_tokens": 2, "new_tokens": 2}}
    short, long = (read_yaml(SHIPPED)["tokenize"] | {"context": context} for context in (4, 5))
    with pytest.raises(UserError, match=message):
        formed([method], forms, tokenize=short, **more)
    assert formed(["ntp"], forms, tokenize=short, **more)
    assert formed([method], forms, tokenize=long, **more)
