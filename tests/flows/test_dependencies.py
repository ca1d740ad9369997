"""The code among the dependencies of dvc.yaml, written by the command."""

import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from cocomix.plumbing import sources
from flows import dependencies
from flows.dependencies import main, with_code
from tests.conftest import write_files

ROOT = Path(__file__).parents[2]

PIPELINE = """\
# The pipeline.
stages:
  # The first.
  one:
    cmd: exec python -m stages.one
    deps:
      - stages/one.py
      - cocomix/deep/inner.py
    params: [one]
    outs: [artifacts/one]

  two:
    cmd: exec python -m stages.two
    deps:
      - stages/two.py
      - cocomix/gone.py
      - cocomix/plumbing
      - artifacts/one
      - stages/two.html.jinja
      - metrics/sweep # may be empty
    params:
      - two # all of it
    outs: [artifacts/two]
"""
WRITTEN = PIPELINE.replace(
    "      - cocomix/gone.py\n      - cocomix/plumbing\n",
    "      - cocomix/deep/__init__.py\n      - cocomix/deep/inner.py\n      - cocomix/wide.py\n",
).replace(
    "      - stages/one.py\n      - cocomix/deep/inner.py\n",
    "      - stages/one.py\n      - cocomix/deep/__init__.py\n      - cocomix/deep/inner.py\n",
)


@pytest.fixture
def tree(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project of two stages, whose dvc.yaml is behind."""
    files = {
        "dvc.yaml": PIPELINE,
        "stages/one.py": "from cocomix.deep import inner\nfrom cocomix.plumbing.progress import say\n",
        "stages/two.py": "def f():\n    import cocomix.wide\n",
        "cocomix/deep/__init__.py": "x = 1\n",
        "cocomix/deep/inner.py": "y = 1\n",
        "cocomix/empty/__init__.py": '"""Nothing here."""\n',
        "cocomix/wide.py": "from .deep.inner import y\nfrom . import empty\n",
        "cocomix/other.py": "z = 1\n",
        "cocomix/plumbing/progress.py": "say = print\n",
    }
    write_files(folder, files)
    for module in (sources, dependencies):
        monkeypatch.setattr(module, "ROOT", folder)
    return folder


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["dependencies", *arguments])
    main()


def stages(text: str) -> dict[str, dict[str, Any]]:
    return YAML(typ="safe").load(text)["stages"]


def test_modules_take_the_place_of_modules_and_folders_and_what_is_written_by_hand_stays(tree: Path) -> None:
    assert with_code(PIPELINE) == WRITTEN


def test_writing_again_changes_nothing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        command(monkeypatch)
        assert (tree / "dvc.yaml").read_text() == WRITTEN
    command(monkeypatch, "--check")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("stages/one.py", "from cocomix import other\n"),
        ("cocomix/deep/inner.py", "def f():\n    import cocomix.other\n"),
    ],
)
def test_the_check_fails_in_one_line_after_an_import_was_added(
    tree: Path, monkeypatch: pytest.MonkeyPatch, path: str, line: str
) -> None:
    command(monkeypatch)
    with (tree / path).open("a") as file:
        file.write(line)
    with pytest.raises(SystemExit, match=r"^error: dvc.yaml does not list [^\n]+$"):
        command(monkeypatch, "--check")
    assert (tree / "dvc.yaml").read_text() == WRITTEN
    command(monkeypatch)
    assert "cocomix/other.py" in stages((tree / "dvc.yaml").read_text())["one"]["deps"]


def test_the_code_in_the_shipped_pipeline_is_written_by_the_command_and_nothing_else_is() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    bare = "".join(line for line in text.splitlines(keepends=True) if not line.strip().startswith("- cocomix/"))
    assert with_code(bare) == text
    for name, stage in stages(text).items():
        code = [each for each in stage["deps"] if each.startswith(("cocomix/", "stages/")) and each.endswith(".py")]
        assert code[0] == f"stages/{name}.py"
        assert all((ROOT / each).is_file() for each in code)
