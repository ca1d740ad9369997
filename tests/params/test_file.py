from pathlib import Path

import pytest

from cocomix.params import Params, load
from cocomix.plumbing.checked import read_yaml
from cocomix.plumbing.errors import UserError
from tests.params.changed import leaves, refusal
from tests.shipped import SHIPPED, paper_form


def test_the_shipped_file_is_valid_and_frozen() -> None:
    params = load(SHIPPED)
    with pytest.raises(ValueError, match="frozen"):
        params.sae.k = 1  # type: ignore[misc]


def test_every_parameter_is_written_in_the_shipped_file() -> None:
    """DVC knows no default of the code: it would change a result, and rerun nothing."""
    shipped = read_yaml(SHIPPED)
    for key in leaves(Params):
        section = shipped
        for name in key[: key.index("named")] if "named" in key else key:
            assert name in section, f"{'.'.join(key)} is not in params.yaml"
            section = section[name]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("evaluate:", "evalute:", "evalute: unknown key; did you mean 'evaluate'?"),
        ("report:", "report: 3\nx:", "x: unknown key; allowed: activations, attribution, base, corpus, distribution, "),
    ],
)
def test_an_unknown_section_is_one_line_with_the_key_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert refusal(tmp_path, old, new).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; it must hold sections of 'key: value'"),
        (b"- 1\n", "holds a list; it must hold sections of 'key: value'"),
        (b"\xff\xfe", "not UTF-8 text (byte 0)"),
        (b"a: [\n", "not valid YAML"),
        (b"1: {}\n", "corpus: missing; it must be given"),
    ],
)
def test_a_file_without_sections_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"params\.yaml: no such file; run from the project's folder"):
        load(tmp_path / "params.yaml")


def test_a_key_given_twice_is_an_error_with_its_line(tmp_path: Path) -> None:
    lines = paper_form().splitlines()
    line = next(number for number, each in enumerate(lines, 1) if each.startswith("  k: 32 ")) + 1
    assert refusal(tmp_path, "  k: 32 ", "  k: 32\n  k: 33 ") == f":{line}: not valid YAML: the key 'k' is given twice"


def test_a_tab_is_an_error_with_its_line(tmp_path: Path) -> None:
    assert ": not valid YAML: found character '\\t'" in refusal(tmp_path, "  k: 32", "\tk: 32")


def test_a_whole_number_and_a_bare_exponent_are_fine_as_float(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    for text, value in {"1": 1.0, "2e-3": 2e-3, "2.e-3": 2e-3, "+2E-3": 2e-3}.items():
        path.write_text(paper_form().replace("learning_rate: 1.0e-3", f"learning_rate: {text}", 1))
        assert load(path).sae.learning_rate == value
