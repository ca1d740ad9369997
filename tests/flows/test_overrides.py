import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.utilities.schema_tools.validation import validate

from cocomix.params import load
from cocomix.plumbing.errors import UserError
from flows.overrides import assignments, flat, leaves, nested, override
from flows.pipeline import custom
from tests.flows.conftest import ROOT
from tests.flows.test_preset import shipped
from tests.flows.test_serve import deployed
from tests.shipped import paper_values

KEYS = st.text("abc", min_size=1, max_size=3)
FORM = custom.parameters.model_dump_for_openapi()
SCHEMA = FORM["properties"]["overrides"]
SHIPPED = paper_values()
VALUES = flat(SHIPPED)
"""All but empty mappings, by key."""


@st.composite
def parts(draw: st.DrawFn) -> dict[str, Any]:
    """Some of the shipped parameters."""
    return nested({key: VALUES[key] for key in draw(st.sets(st.sampled_from(sorted(VALUES))))})


def errors(overrides: object) -> list[str]:
    """What the server says against them."""
    return [error.message for error in validate({"overrides": overrides}, FORM)]


def field(key: str) -> dict[str, Any]:
    """What the form is told about a parameter."""
    found = SCHEMA
    for name in key.split("."):
        found = found["properties"][name]
    return found


@pytest.fixture
def params(folder: Path) -> Path:
    Path("params.yaml").write_bytes(shipped())
    return Path("params.yaml")


@given(st.dictionaries(KEYS, st.dictionaries(KEYS, st.integers() | st.lists(st.integers()))))
def test_dots_in_keys_are_sections(content: dict[str, dict[str, object]]) -> None:
    flat = {f"{section}.{key}": value for section, values in content.items() for key, value in values.items()}
    assert nested(flat) == {section: values for section, values in content.items() if values}


@given(parts())
def test_a_part_as_a_form_sends_it_is_flat_without_its_empty_sections(part: dict[str, Any]) -> None:
    assert nested(flat(part)) == part
    assert flat({"sae": {"also": {}}, "pretrain": {"cocomix": {}}, "report": {}} | part) == flat(part)


def test_an_empty_section_is_a_leaf_so_that_a_change_of_it_is_seen() -> None:
    assert leaves({"sae": {"also": {}, "k": 8}, "report": {}}) == {"sae.also": {}, "sae.k": 8, "report": {}}


def test_the_form_names_each_parameter_by_its_key_describes_it_and_fills_in_nothing() -> None:
    assert all(field(key)["title"] == key for key in VALUES)
    assert list(SCHEMA["properties"]) == list(SHIPPED)
    assert [field(key)["position"] for key in ("corpus", "tokenize", "sae.architecture", "sae.source")] == [0, 1, 0, 1]
    assert field("sae")["description"] == "The sparse autoencoder."
    latents = load(ROOT / "params.yaml").sae.latents
    about = field("sae.latents")["description"]
    assert about == f"C, the size of the dictionary (paper: 32768). When this form was made: {latents}."
    assert field("sae.k")["type"] == "integer"
    assert "batchtopk" in field("sae.architecture")["enum"]
    assert field("activations.keep")["enum"] == [True, False]
    assert "type" not in field("activations.keep")  # a switch, which may send false untouched
    assert not any(word in json.dumps(SCHEMA["properties"]) for word in ('"$ref"', '"default"', '"required"'))


@settings(max_examples=25)
@given(parts())
def test_any_part_of_params_yaml_is_let_through_nested_or_by_key(part: dict[str, Any]) -> None:
    assert errors(part) == []
    assert errors(flat(part)) == []


@given(st.sampled_from(sorted(VALUES)))
def test_a_value_of_a_wrong_type_is_refused_wherever_it_is(key: str) -> None:
    wrong: dict[str, Any] = copy.deepcopy(SHIPPED)
    *sections, name = key.split(".")
    inner = wrong
    for each in sections:
        inner = inner[each]
    inner[name] = [{}]
    assert errors(wrong)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sae": {"architecture": "topq"}}, "'topq' is not one of ['topk', "),
        ({"sae": {"latnts": 64}}, "Additional properties are not allowed ('latnts' was unexpected)"),
        ({"sea": {"k": 16}}, "'sea' does not match '^(corpus|tokenize|"),
        ({"sea.k": 16}, "'sea.k' does not match"),
        ({"activations": {"keep": 0}}, "0 is not one of [True, False]"),
        ({"sae": {"k": 0}}, "0 is less than or equal to the minimum of 0"),
        ({"sae": {"ema": 1.0}}, "1.0 is not valid under any of the given schemas"),
        ({"evaluate": {"corpora": {"mine": {"paths": "all"}}}}, "'all' is not of type 'array'"),
        ({"sae": {"also": {"wide": {"latnts": 64}}}}, "Additional properties are not allowed"),
        ([], "[] is not of type 'object'"),
    ],
)
def test_what_no_parameter_can_be_is_refused_with_what_is_allowed(overrides: object, message: str) -> None:
    (said,) = errors(overrides)
    assert said.startswith(message)


def test_the_server_starts_no_run_with_a_wrong_value(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    deployment = next(each for each in deployed() if each.name == "custom")
    deployment.entrypoint = None  # nothing is to run
    deployment.name = "overridden"
    id: Any = deployment.apply()
    with get_client(sync_client=True) as client:
        for overrides in ({"sae": {"k": 16}}, {"sae.k": 16}):
            run = client.create_flow_run_from_deployment(id, parameters={"overrides": overrides})
            assert run.parameters["overrides"] == overrides
        with pytest.raises(PrefectHTTPStatusError) as caught:
            client.create_flow_run_from_deployment(id, parameters={"overrides": {"sae": {"architecture": "topq"}}})
    said = caught.value.response.json()["detail"]
    assert "Validation failed for field 'overrides.sae.architecture'" in said
    assert "'topq' is not one of" in said
    assert "\n" not in said


def test_values_are_written_and_every_comment_stays(params: Path) -> None:
    before = params.read_text()
    override({"sae.k": 16, "pretrain": {"training.steps": 10}, "pretrain.methods": ["ntp"]})
    read = load()
    assert (read.sae.k, read.pretrain.training.steps, read.pretrain.methods) == (16, 10, ["ntp"])
    assert params.read_text().count("#") == before.count("#")


def test_a_preset_is_applied_before_the_values(params: Path) -> None:
    Path("presets").symlink_to(ROOT / "presets")
    override({"sae.k": 4}, "smoke")
    assert (load().sae.k, load().sae.latents) == (4, 64)
    before = params.read_bytes()
    with pytest.raises(UserError, match="huge: no such preset"):
        override({}, "huge")
    assert params.read_bytes() == before


@given(parts())
def test_lines_say_the_same_as_values(part: dict[str, Any]) -> None:
    assert assignments(f"{key}={json.dumps(value)}" for key, value in flat(part).items()) == part


@pytest.mark.parametrize("line", ["sae.k", "=3", ""])
def test_a_line_without_a_value_is_refused(line: str) -> None:
    with pytest.raises(UserError, match="must be KEY=VALUE"):
        assignments([line])


def test_null_is_a_value_where_it_is_allowed_and_an_empty_section_changes_nothing(params: Path) -> None:
    override(
        {"corpus": {"installed_docs": {"megabytes": None}}, "sae": {"also": {}}, "pretrain": {"ntp": {}, "cocomix": {}}}
    )
    assert load().corpus.installed_docs.megabytes is None
    assert params.read_bytes() == shipped().replace(b"    megabytes: 7.6 ", b"    megabytes: null")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sae": {"k": None}}, "overrides: sae.k: None: input should be a valid integer"),
        ({"sae": None}, "overrides: sae: must be a section of 'key: value', not None"),
        ({"sae.latnts": 64}, "overrides: sae.latnts: unknown key; did you mean 'latents'"),
        ({"sae.k": "many"}, "overrides: sae.k: 'many': input should be a valid integer"),
        ({"sae": 3}, "overrides: sae: must be a section of 'key: value', not 3"),
        ({"sae.k.x": 3}, "overrides: sae.k"),
        ({"sae.k": 100_000}, "k .100000. must not exceed latents"),
        ({"$(touch here)": 1}, "unknown key"),
        ({"": 1}, "unknown key"),
        ({"sae.k": 16, "sae": {"k": 8}}, "sae.k: is given twice"),
        ({"report.title": "\ud800"}, "holds text that is not Unicode"),
        ({"report.title": "a\0b"}, "report.title"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(
    params: Path, values: dict[str, object], message: str
) -> None:
    before = params.read_bytes()
    with pytest.raises(UserError, match=message) as caught:
        override(values)
    assert "\n" not in str(caught.value)
    assert params.read_bytes() == before
