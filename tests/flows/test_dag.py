from pathlib import Path

import pytest

from cocomix.plumbing.errors import UserError
from flows.dag import Mode, Stage, names, outdated_inputs, read_dag, select


def test_the_whole_pipeline_is_planned_with_what_is_needed_first(project: Path) -> None:
    stages = select(read_dag(), [])
    assert {each.name: each.needs for each in stages} == {
        "number": (),
        "parity": ("number",),
        "each@x": ("parity",),
        "each@y": ("parity",),
        "wait": ("each@x",),
    }
    seen: set[str] = set()
    for each in stages:
        assert set(each.needs) <= seen
        seen.add(each.name)
    assert all(each.changed for each in stages)


def test_a_named_stage_brings_what_it_needs_and_nothing_else(project: Path) -> None:
    assert [each.name for each in select(read_dag(), ["each@x"])] == ["number", "parity", "each@x"]


def test_the_name_of_a_matrix_stands_for_all_its_stages(project: Path) -> None:
    assert {each.name for each in select(read_dag(), ["each"])} == {"number", "parity", "each@x", "each@y"}


def test_an_unknown_stage_is_refused_with_a_suggestion(project: Path) -> None:
    with pytest.raises(UserError, match=r"^partiy: no such stage in dvc\.yaml; did you mean 'parity'\?$"):
        select(read_dag(), ["partiy"])


def test_a_folder_without_a_pipeline_is_refused_in_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^dvc\.yaml: [^\n]+$"):
        select(read_dag(), [])


def dag(*changed: str) -> dict[str, Stage]:
    """a -> b@1, b@2 -> c; d apart."""
    needs = {"a": (), "b@1": ("a",), "b@2": ("a",), "c": ("b@1", "b@2"), "d": ()}
    return {name: Stage(name, each, name in changed, (), gpu=False) for name, each in needs.items()}


@pytest.mark.parametrize(
    ("mode", "found"), [("upstream", ["a", "b@1"]), ("only", ["b@1"]), ("downstream", ["b@1", "c"])]
)
def test_a_mode_says_what_is_run_besides(mode: Mode, found: list[str]) -> None:
    assert [each.name for each in select(dag(), ["b@1"], mode)] == found


@pytest.mark.parametrize("mode", ["upstream", "only", "downstream"])
def test_no_name_is_the_whole_pipeline_in_every_mode(mode: Mode) -> None:
    assert [each.name for each in select(dag(), [], mode)] == list(dag())


def test_what_is_left_out_although_it_changed_is_known() -> None:
    changed = dag("a", "b@2", "d")
    assert outdated_inputs(changed, select(changed, ["c"], "only")) == ["a", "b@2"]
    assert outdated_inputs(changed, select(changed, ["c"], "upstream")) == []


def test_the_form_offers_the_stages_of_the_folder(project: Path) -> None:
    assert names() == ["number", "parity", "each", "each@x", "each@y", "wait"]


def test_the_form_offers_nothing_in_a_folder_without_a_pipeline(folder: Path) -> None:
    assert names() == []


def test_figures_of_a_stage_are_those_of_dvc_yaml(project: Path) -> None:
    assert {each.name: each.metrics for each in select(read_dag(), [])}["number"] == (Path("metrics/number.json"),)
