"""What our reader of YAML takes, DVC takes the same way; the rest is refused with its line."""

import os
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import loads_yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.plumbing.checked import read_file, read_yaml
from cocomix.plumbing.dialect import load_yaml
from cocomix.plumbing.errors import UserError

ROOT = Path(__file__).parents[2]
WORDS = st.text("+-._:0123456789eExXobaAfFnIN~", max_size=8) | st.sampled_from(
    [
        "yes",
        "No",
        "on",
        "OFF",
        "y",
        "n",
        "null",
        "nUll",
        "~",
        "True",
        "FALSE",
        "tRUE",
        "<<",
        "=",
        ".inf",
        "-.INF",
        ".nan",
    ]
)
TEXTS = st.text("ab01:-?[]{},#'\"\\|>%@!&*\t\n \r._~<=\ufeff\x85\u2028\xa0é😀", max_size=14)
PLACES = st.sampled_from(
    ["{}", "k: {}", "k:\n  a: {}\n", "k: {{a: {}}}", "k: [{}]", "k: [a, {}]", "- {}", "a: 1\nb:{}"]
)


def same(ours: object, others: object) -> bool:
    """Whether two values are equal, of the same types throughout."""
    if isinstance(ours, dict) and isinstance(others, dict):
        return same(list(ours.items()), list(others.items()))
    if isinstance(ours, list | tuple) and isinstance(others, list | tuple):
        return len(ours) == len(others) and all(map(same, ours, others))
    return type(ours) is type(others) and (ours == others or (ours != ours and others != others))


def is_read_alike(text: str) -> None:
    try:
        ours = load_yaml(text, "file")
    except UserError:
        return
    assert same(ours, loads_yaml(text)), text


@settings(max_examples=500)
@given(PLACES, WORDS)
def test_a_word_is_for_us_what_it_is_for_dvc_or_is_refused(place: str, word: str) -> None:
    is_read_alike(place.format(word))


@given(st.floats(allow_nan=False), st.sampled_from(["{!r}", "{:e}", "{:.3g}"]))
def test_a_number_as_python_writes_it_is_for_us_what_it_is_for_dvc(value: float, style: str) -> None:
    text = style.format(value)
    if "inf" not in text:
        assert isinstance(load_yaml(text, "file"), int | float)
        is_read_alike(text)


@settings(max_examples=500)
@given(PLACES, TEXTS)
def test_any_text_is_for_us_what_it_is_for_dvc_or_is_refused(place: str, text: str) -> None:
    is_read_alike(place.format(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1_000_000", 1_000_000),
        ("-1", -1),
        ("+0", 0),
        ("1e3", 1000.0),
        ("2.E-3", 0.002),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("~", None),
        ("", None),
        ("TRUE", True),
        ("'010'", "010"),
        ('"yes"', "yes"),
        ("1a2b3c", "1a2b3c"),
        ("1.2.3", "1.2.3"),
        ("\u0663", "\u0663"),  # a digit, but of another script
        ("{a}", {"a": None}),
        ("[a: 1, 'b:c']", [{"a": 1}, "b:c"]),
    ],
)
def test_what_all_readers_take_alike_is_read(text: str, value: object) -> None:
    assert same(load_yaml(text, "file"), value)
    assert same(loads_yaml(text), value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "010",
            "010: readers of YAML take it differently; write a number in decimal digits without a leading 0, or '010'",
        ),
        ("08", "08: readers"),
        ("0o17", "0o17: readers"),
        ("0x1f", "0x1f: readers"),
        ("0b11", "0b11: readers"),
        ("1_", "1_: readers"),
        ("1:30", "1:30: readers"),
        ("1:30.5", "1:30.5: readers"),
        (".5e3", ".5e3: readers"),
        ("yes", "yes: readers of YAML take it differently; write true or false, or 'yes' in quotes for the word"),
        ("Off", "Off: readers"),
        ("2020-01-01", "2020-01-01: readers of YAML take it differently; write '2020-01-01' in quotes"),
        ("2020-99-99", "2020-99-99: readers"),
        ("=", "=: readers"),
        ("{<<: {a: 1}}", "<<: readers"),
        ("&all {a: 1}", "&all names a value to repeat it; write it out where it belongs"),
        ("*all", "*all repeats a value of another place; write it out"),
        ("!!python/object/apply:os.system ['touch x']", "the tag tag:yaml.org,2002:python/object/apply:os.system: a"),
        ("!!int 3", "the tag tag:yaml.org,2002:int: a value has no tag here"),
        ("!!binary x", "the tag tag:yaml.org,2002:binary"),
        ("! 12", "the tag !: a value"),
        ("[a:b]", "not all readers of YAML take a colon within [] or {} that no space follows"),
        ("{a:}", "not all readers"),
        ("[a:]", "not all readers"),
        ("[?]", "not all readers of YAML take a ? within []; leave it out"),
        ("a\u2028b", '\\u2028: readers of YAML take it differently; write "\\u2028" in quotes'),
        ('"\\ud800"', "half a character"),
        ("{a: 1, a: 2}", "not valid YAML: the key 'a' is given twice"),
        ("{1: a, 1.0: b}", "not valid YAML: the key '1.0' is given twice"),
    ],
)
def test_what_readers_take_differently_is_refused_with_its_line(value: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_yaml(f"# a comment\nkey: {value}\n", "file")
    assert str(error.value).startswith(f"file:2: {message}")


def test_a_file_that_chooses_its_version_is_refused() -> None:
    with pytest.raises(UserError, match=r"^file:1: a line that begins with %: leave it out$"):
        load_yaml("%YAML 1.1\n---\na: 1\n", "file")
    with pytest.raises(UserError, match=r"not valid YAML: but found another document"):
        load_yaml("a: 1\n---\na: 2\n", "file")


@pytest.mark.parametrize(
    "path",
    [*ROOT.glob("*.yaml"), *ROOT.glob("presets/*.yaml"), *ROOT.glob("sweeps/*.yaml")],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_the_files_of_the_project_are_of_the_dialect(path: Path) -> None:
    assert same(read_yaml(path), loads_yaml(path.read_text()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
        (Path.mkdir, "cannot be read: Is a directory"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
        (lambda _: None, "no such file"),
    ],
)
def test_a_file_that_is_none_is_refused_and_never_waited_for(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "file")
    with pytest.raises(UserError, match=message):
        read_file(tmp_path / "file")


@pytest.mark.parametrize(("name", "message"), [("a\0b", "null"), ("a" * 5000, "File name too long")])
def test_a_name_that_no_file_can_have_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_file(Path(name))
