from dataclasses import dataclass
from pathlib import Path

import pytest

from cocomix.plumbing import once as module
from cocomix.plumbing.once import once


@dataclass(frozen=True)
class Length:
    metres: float
    parts: list[float]


class Ruler:
    def __init__(self, metres: float = 0.1) -> None:
        self.metres, self.used = metres, 0

    def __call__(self) -> Length:
        self.used += 1
        return Length(self.metres, [self.metres, 1 / 3])


KEY = {"model": "abc", "data": "def", "stride": None}


def test_a_measurement_is_made_once_for_a_key_and_is_the_same_when_it_is_read(folder: Path) -> None:
    ruler = Ruler()
    first = once("length", KEY, ruler, Length, module.__file__)
    assert first == once("length", KEY, ruler, Length, module.__file__) == Length(0.1, [0.1, 1 / 3])
    assert ruler.used == 1


@pytest.mark.parametrize("name", ["model", "data", "stride"])
def test_another_key_is_another_measurement(folder: Path, name: str) -> None:
    once("length", KEY, Ruler(), Length, module.__file__)
    assert once("length", KEY | {name: "other"}, Ruler(2.0), Length, module.__file__).metres == 2.0


def test_another_kind_is_another_measurement(folder: Path) -> None:
    once("length", KEY, Ruler(), Length, module.__file__)
    assert once("width", KEY, Ruler(2.0), Length, module.__file__).metres == 2.0


def test_changed_code_measures_again_and_a_changed_comment_does_not(folder: Path) -> None:
    code = folder / "code.py"
    code.write_text("unit = 1\n")
    once("length", KEY, Ruler(), Length, code)
    code.write_text("unit = 1  # of length\n")
    assert once("length", KEY, Ruler(2.0), Length, code).metres == 0.1
    code.write_text("unit = 2\n")
    assert once("length", KEY, Ruler(2.0), Length, code).metres == 2.0


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b"[]", b"{}", b'{"result": {"metres": "long"}}'])
def test_a_damaged_file_is_computed_again(folder: Path, damage: bytes) -> None:
    once("length", KEY, Ruler(), Length, module.__file__)
    (file,) = module.MEASURED.iterdir()
    file.write_bytes(damage)
    assert once("length", KEY, Ruler(2.0), Length, module.__file__).metres == 2.0
    assert once("length", KEY, Ruler(3.0), Length, module.__file__).metres == 2.0


def test_a_measurement_that_fails_leaves_nothing(folder: Path) -> None:
    def fail() -> Length:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        once("length", KEY, fail, Length, module.__file__)
    assert not module.MEASURED.exists()
