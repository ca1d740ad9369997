"""The commands and the programs of docs/steering.md, on a small model with small numbers in their place."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from cocomix.__main__ import main
from tests.steering.conftest import CONCEPTS

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs/steering.md").read_text()
TEXT = re.compile(r'"[A-Z][a-z]* [a-z ]+\.?"')
CONCEPT = re.compile(r"((?:Set|Ablate|Scale)\(|--edit )(\d+)")


def small(typed: str) -> str:
    """The same for a model of 40 concepts and 16 positions, whose words are w0 to w63."""
    typed = TEXT.sub(lambda found: '"' + " ".join(f"w{len(word)}" for word in found[0].split()) + '"', typed)
    typed = re.sub(r"(max_new_tokens=|--tokens )30", r"\g<1>6", typed)
    return CONCEPT.sub(lambda found: f"{found[1]}{int(found[2]) % CONCEPTS}", typed)


def test_the_programs_run_one_after_another(artifacts: Path) -> None:
    names: dict[str, object] = {}
    programs = re.findall(r"```python\n(.*?)```", DOCS, re.S)
    assert len(programs) == 3
    for program in programs:
        exec(small(program), names)


def test_the_commands_print_what_is_shown(artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(ROOT / "params.yaml", ".")
    commands = re.findall(r"^\$ python -m cocomix (.*)$", DOCS, re.M)
    assert [each.split()[0] for each in commands] == ["concepts", "steer", "steer"]
    for command in commands:
        shown = DOCS.partition(command)[2].partition("```")[0]
        main(shlex.split(small(command)))
        printed = capsys.readouterr().out
        for heading in ("token", "gain", "predicted", "labelled", "original", "steered", "base steered"):
            assert (heading in printed) == (heading in shown)
