"""Edits that are written as text."""

import pytest

from cocomix.explore.edit_syntax import parse_edit
from cocomix.modeling import Ablate, Edit, Scale, Set, Swap
from cocomix.plumbing.errors import UserError


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("412x4", Scale(412, 4.0)),
        ("412x-2.5", Scale(412, -2.5)),
        ("412x0", Scale(412, 0.0)),
        ("77=0", Ablate(77)),
        ("77=0.0", Ablate(77)),
        ("9=2.5", Set(9, 2.5)),
        ("9=-1e1", Set(9, -10.0)),
        ("3~8", Swap(3, 8)),
        ("0x.5", Scale(0, 0.5)),
        ("9=2.5@4:", Set(9, 2.5, start=4)),
        ("9=2.5@4:9", Set(9, 2.5, start=4, stop=9)),
        ("3~8@:9", Swap(3, 8, stop=9)),
        ("77=0@4", Ablate(77, start=4, stop=5)),
        ("412x4@0", Scale(412, 4.0, start=0, stop=1)),
    ],
)
def test_a_text_is_its_edit(text: str, edit: Edit) -> None:
    assert parse_edit(text, 1024) == edit


def test_scaling_and_ablating_can_come_before_the_selection() -> None:
    assert parse_edit("412x4", 1024, before_selection=True) == Scale(412, 4.0, before_selection=True)
    assert parse_edit("77=0@3:", 1024, before_selection=True) == Ablate(77, before_selection=True, start=3)
    assert parse_edit("9=2", 1024, before_selection=True) == Set(9, 2.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "412",
        "412*4",
        "x4",
        "412x",
        "9=two",
        "3~",
        "-3=1",
        "9=1@",
        "9=1@:",
        "9=1@x",
        "9=1@1:2:3",
        "\u0663=1",
        "3=\u0663",
        "3=1@\u0663",
    ],
)
def test_a_text_that_is_no_edit_is_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(UserError, match=r"edit '.*': write 412x4 \(times 4\), 77=0"):
        parse_edit(text, 1024)


@pytest.mark.parametrize("text", ["1024x2", "3~1024"])
def test_a_concept_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="no concept 1024; the model has 0 to 1023"):
        parse_edit(text, 1024)
