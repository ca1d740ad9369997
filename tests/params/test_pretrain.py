from pathlib import Path

import pytest

from cocomix.params import Params, PretrainParams, load
from cocomix.plumbing.checked import parse
from cocomix.plumbing.errors import UserError
from tests.params.changed import formed, refusal
from tests.shipped import SHIPPED, paper_form, paper_values

FORMS = {"predicted": {"mixing": "none"}, "taught": {"kd": {"kl_weight": 1.0}}}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  seeds: [0]", "  seeds: 0", "pretrain.seeds: 0: input should be a valid list"),
        ("  seeds: [0]", "  seeds: [0, 0]", "pretrain: seeds lists a value twice: [0, 0]"),
        ("[ntp, cocomix]", "[npt]", "pretrain: methods lists 'npt', which is no method or form; did you mean 'ntp'?"),
        ("[ntp, cocomix]", "[ntp, ntp]", "pretrain: methods lists a value twice: ['ntp', 'ntp']"),
        ("[ntp, cocomix]", "[1]", "pretrain.methods.0: 1: input should be a valid string"),
        ("forms: {}", "forms: [1]", "pretrain.forms: [1]: input should be a valid dictionary"),
        ("forms: {}", "forms: {a: 3}", "pretrain.forms.a: must be a section of 'key: value', not 3"),
        ("forms: {}", "forms: {a: {mixin: add}}", "pretrain.forms.a.mixin: unknown key; did you mean 'mixing'?"),
        (
            "forms: {}",
            "forms: {a: {kd: {weight: 1}}}",
            "pretrain.forms.a.kd.weight: unknown key; did you mean 'kl_weig",
        ),
        ("forms: {}", "forms: {a: {mixing: sum}}", "pretrain.forms.a.mixing: 'sum': input should be 'interleave', 'in"),
        ("forms: {}", "forms: {a: {kd: null}}", "pretrain.forms.a.kd: must be a section of 'key: value', not None"),
        ("forms: {}", "forms: {a: {concept_layer: 4}}", "pretrain: forms.a.concept_layer (4) must be below model.n_la"),
        (
            "forms: {}",
            "forms: {kd: {}}",
            "pretrain.forms.kd: 'kd': allowed: a small letter, then small letters, digits",
        ),
        ("forms: {}", "forms: {no-mix: {}}", "pretrain.forms.no-mix: 'no-mix': allowed: a small letter, then small"),
        ("mixing: interleave ", "mixing: sum ", "pretrain.cocomix.mixing: 'sum': input should be 'interleave', 'int"),
        ("  ntp: {}", "  ntp: [1]", "pretrain.ntp: must be a section of 'key: value', not [1]"),
    ],
)
def test_a_wrong_method_or_form_is_one_line_with_the_key_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert refusal(tmp_path, old, new).startswith(message)


def test_a_form_is_cocomix_but_for_what_is_given() -> None:
    pretrain = formed(["ntp", "predicted", "taught"], FORMS).pretrain
    cocomix = pretrain.cocomix.model_dump()
    assert pretrain.forms["predicted"].model_dump() == cocomix | {"mixing": "none"}
    assert pretrain.forms["taught"].model_dump() == cocomix | {"kd": cocomix["kd"] | {"kl_weight": 1.0}}
    assert {name: pretrain.kind(name) for name in pretrain.methods} == {
        "ntp": "ntp",
        "predicted": "cocomix",
        "taught": "cocomix",
    }
    assert pretrain.listed == {
        "ntp": pretrain.ntp,
        "predicted": pretrain.forms["predicted"],
        "taught": pretrain.forms["taught"],
    }
    assert PretrainParams.model_validate(pretrain.model_dump()) == pretrain


def test_a_near_miss_of_a_form_is_suggested() -> None:
    with pytest.raises(
        UserError, match="methods lists 'predicte', which is no method or form; did you mean 'predicted'"
    ):
        formed(["predicte"], FORMS)


def test_a_form_that_contradicts_cocomix_is_refused_where_it_is_listed_and_else_left_out() -> None:
    values = paper_values()
    values["pretrain"]["cocomix"]["gate"] = True
    values["pretrain"]["forms"] = {"predicted": {"mixing": "none"}, "added": {"mixing": "add"}}
    assert list(parse(Params, values, "params.yaml").pretrain.forms) == ["added"]
    values["pretrain"]["methods"] = ["ntp", "predicted"]
    with pytest.raises(UserError, match=r"pretrain\.forms\.predicted: gate must be false with mixing: none"):
        parse(Params, values, "params.yaml")


def test_a_gradient_that_is_stopped_where_nothing_flows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = paper_form().replace("mixing: interleave ", "mixing: none ")
    path.write_text(text.replace("learned_scale: false", "learned_scale: true"))
    with pytest.raises(
        UserError, match=r"pretrain.cocomix: learned_scale must be false with mixing: none, which mixes nothing"
    ):
        load(path)
    path.write_text(text.replace("concept_weight: 0.3", "concept_weight: 0.0"))
    with pytest.raises(
        UserError, match=r"pretrain.cocomix: concept_weight: 0 with mixing: none or stop_gradient: true"
    ):
        load(path)
    path.write_text(text.replace("stop_gradient: false", "stop_gradient: true"))
    with pytest.raises(UserError, match=r"pretrain.cocomix: stop_gradient must be false with mixing: none"):
        load(path)


def test_the_shipped_form_with_distillation_is_cocomix_that_learns_from_stored_draws_too() -> None:
    params = load(SHIPPED)
    cocomix = params.pretrain.cocomix.model_dump()
    falling = {"shape": "learning_rate", "until": 1.0}
    with_distillation = cocomix | {"kd": cocomix["kd"] | {"kl_weight": 1.0, "schedule": falling}}
    assert params.pretrain.forms["cocomix_kd"].model_dump() == with_distillation
    assert with_distillation["kd"]["source"] == "cached"
    assert params.distribution.draws == 50
    assert params.pretrain.methods == ["ntp", "cocomix", "cocomix_kd"]
