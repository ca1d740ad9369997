from pathlib import Path

import pytest

from cocomix.plumbing.errors import UserError
from flows.settings import Setting, alike, settings, tasks
from tests.flows.conftest import ROOT


def test_a_grid_is_the_product_of_its_axes() -> None:
    assert settings(None, ["a.b=1,x", "c=[0.9, 0.95]"]) == [
        Setting("a.b=1, c=[0.9, 0.95]", {"a": {"b": 1}, "c": [0.9, 0.95]}),
        Setting("a.b=x, c=[0.9, 0.95]", {"a": {"b": "x"}, "c": [0.9, 0.95]}),
    ]


def test_values_are_yaml() -> None:
    assert [each.values["k"] for each in settings(None, ["k=1e-3,true,null,'1, 2'"])] == [1e-3, True, None, "1, 2"]


def test_without_a_grid_the_only_setting_is_the_parameters_as_they_are() -> None:
    assert settings(None, []) == [Setting("", {})]


def test_the_settings_of_a_file_are_taken_at_each_point_of_the_grid(folder: Path) -> None:
    Path("some.yaml").write_text("plain:\nadded: {a: {b: 1}}\n")
    assert settings(Path("some.yaml"), ["a.c=2,3"]) == [
        Setting("plain, a.c=2", {"a": {"c": 2}}),
        Setting("plain, a.c=3", {"a": {"c": 3}}),
        Setting("added, a.c=2", {"a": {"b": 1, "c": 2}}),
        Setting("added, a.c=3", {"a": {"b": 1, "c": 3}}),
    ]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["k"], "k: must be key=value,value"),
        (["k="], "k=: must be key=value,value"),
        (["=1"], "=1: must be key=value,value"),
        (["k=[1"], "k=[1: not valid YAML"),
        (["k=1,010"], "k=1,010: 010: readers of YAML take it differently"),
        (["k=1,2020-99-99"], "k=1,2020-99-99: 2020-99-99: readers of YAML take it differently"),
        (["k=1,2", "k=3"], "k: is given twice"),
        (["a.b=1", "a={b: 2}"], "a.b: is given twice"),
        (["k=1,1"], "setting k=1: is given twice"),
    ],
)
def test_an_axis_that_is_none_is_refused(grid: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        settings(None, grid)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("half: 0\n", "half: must be a section of 'key: value'"),
        ("half: false\n", "half: must be a section of 'key: value'"),
        ("half: []\n", "half: must be a section of 'key: value'"),
        ("'': {sae: {k: 8}}\n", "a setting has no name"),
        ("~: {sae: {k: 8}}\n", "a setting has no name"),
        ("1: {sae: {k: 8}}\n'1': {sae: {k: 4}}\n", "setting 1: is given twice"),
        ("a: &a {sae: {k: 8}}\nb: *a\n", ":1: &a names a value to repeat it"),
    ],
)
def test_settings_without_names_of_their_own_are_refused(folder: Path, content: str, message: str) -> None:
    Path("settings.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        settings(Path("settings.yaml"), [])


def test_a_setting_that_is_not_valid_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"pretrain\.cocomix\.mixng: unknown key; did you mean 'mixing'"):
        tasks(settings(None, ["pretrain.cocomix.mixng=add"]))


def test_runs_differ_by_what_decides_their_result_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = tasks(settings(None, ["report.title=A,B", "sae.k=16,32"]), ["ntp", "kd"], [0, 1])
    assert [(each.method, each.seed) for each in found[:4]] == [("ntp", 0), ("ntp", 1), ("kd", 0), ("kd", 1)]
    params = {each.setting.name: each.params for each in found}
    assert params["report.title=A, sae.k=16"] == params["report.title=B, sae.k=16"]
    assert params["report.title=A, sae.k=16"] != params["report.title=A, sae.k=32"]


def test_methods_and_seeds_of_the_command_line_are_those_of_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = tasks([Setting("own", {"pretrain": {"methods": ["ntp", "pause"], "seeds": [5]}})], ["kd"])
    assert [(each.method, each.seed) for each in found] == [("kd", 5)]


@pytest.mark.parametrize(
    ("grid", "methods"),
    [
        (["pretrain.kd.kl_weight=0.1,0.3"], ["ntp", "pause", "cocomix"]),
        (["pretrain.cocomix.concept_weight=0.1,0.3"], ["pause"]),
        (["distribution.draws=10,20"], ["ntp", "cocomix"]),
        (["pretrain.forms.predicted.concept_weight=0.1,0.3"], ["cocomix"]),
    ],
)
def test_settings_that_differ_in_nothing_that_a_method_reads_are_named(
    monkeypatch: pytest.MonkeyPatch, grid: list[str], methods: list[str]
) -> None:
    monkeypatch.chdir(ROOT)
    one, other = (each.name for each in settings(None, grid))
    listed = ["ntp", "kd", "pause", "cocomix", "predicted"]
    found = alike(tasks(settings(None, grid), listed, [0, 1]))
    for method in methods:
        assert f"{method} reads nothing in which {one} and {other} differ: equal models" in found
    assert alike(tasks(settings(None, ["sae.k=16,32"]), listed)) == []


@pytest.mark.parametrize(
    ("key", "method"),
    [
        ("pretrain.kd.kl_weight=0.1,0.3", "kd"),
        ("pretrain.cocomix.concept_weight=0.1,0.3", "predicted"),
        ("pretrain.cocomix.concept_layer=1,2", "ntp"),  # which has as many parameters
        ("pretrain.training.steps=100,200", "ntp"),
    ],
)
def test_settings_that_differ_in_what_a_method_reads_are_not(
    monkeypatch: pytest.MonkeyPatch, key: str, method: str
) -> None:
    monkeypatch.chdir(ROOT)
    assert alike(tasks(settings(None, [key]), [method])) == []
