from pathlib import Path

import pytest

from cocomix.errors import UserError
from flows.dag import plan


def test_the_whole_pipeline_is_planned_with_what_is_needed_first(project: Path) -> None:
    stages = plan()
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
    assert [each.name for each in plan(["each@x"])] == ["number", "parity", "each@x"]


def test_the_name_of_a_matrix_stands_for_all_its_stages(project: Path) -> None:
    assert {each.name for each in plan(["each"])} == {"number", "parity", "each@x", "each@y"}


def test_an_unknown_stage_is_refused_with_a_suggestion(project: Path) -> None:
    with pytest.raises(UserError, match=r"^partiy: no such stage in dvc\.yaml; did you mean 'parity'\?$"):
        plan(["partiy"])


def test_a_folder_without_a_pipeline_is_refused_in_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^dvc\.yaml: [^\n]+$"):
        plan()
