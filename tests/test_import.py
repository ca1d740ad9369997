import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CORE = [
    "cocomix.plumbing.artifact",
    "cocomix.corpus",
    "cocomix.tokens",
    "cocomix.activations",
    "cocomix.sae",
    "cocomix.attribution",
    "cocomix.distribution.build",
    "cocomix.modeling",
    "cocomix.training",
    "cocomix.evaluation",
    "cocomix.steering.autoencoder",
    "cocomix.steering.reading",
    "stages.stage",
]


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_library_needs_none_of_the_pipelines_packages() -> None:
    blocked = "dvc", "prefect", "datasets", "zstandard", "jinja2", "matplotlib", "ruamel"
    run(f"import sys; sys.modules |= dict.fromkeys({blocked!r}); import {', '.join(CORE)}")


HEAVY = "torch", "transformers"
LAUNCHED = """
import runpy, sys
from stages import stage
stage.launch = lambda processes: 70 + processes
for name in sys.argv[1:]:
    try:
        runpy.run_module(f"stages.{name}", run_name="__main__")
    except SystemExit as end:
        assert end.code == 73, (name, end.code)
"""
"""Runs stages whose launcher would start 3 processes."""
SHARED = "base", "activations", "sae", "attribution", "distribution", "explain", "pretrain", "evaluate", "steer"


def blocked(*names: str) -> str:
    """Code that makes the import of each of these an error."""
    return f"import sys; sys.modules |= dict.fromkeys({names!r})\n"


def test_the_contracts_are_light() -> None:
    run(blocked(*HEAVY, "numpy", "pyarrow") + "import stages.stage")


def test_a_stage_without_tensors_imports_neither_torch_nor_transformers() -> None:
    run(blocked(*HEAVY) + "import stages.check, stages.corpus, stages.tokenize, stages.methods, stages.report")


def test_the_launcher_of_several_processes_imports_nothing_that_they_need() -> None:
    code = blocked(*HEAVY, "numpy", "pyarrow") + LAUNCHED
    environment = os.environ | {"COCOMIX_PROCESSES": "3"}
    subprocess.run([sys.executable, "-c", code, *SHARED], check=True, cwd=ROOT, env=environment)


def test_every_stage_that_shares_work_is_launched_before_its_imports() -> None:
    callers = [path.stem for path in (ROOT / "stages").glob("*.py") if "    share_work()" in path.read_text()]
    assert sorted(callers) == sorted(SHARED)


@pytest.mark.parametrize("arguments", [["concepts", "--help"], ["steer", "text", "--edit", "1=2", "--tokens", "one"]])
def test_a_command_line_is_read_before_anything_heavy_is_imported(arguments: list[str]) -> None:
    code = blocked(*HEAVY, "numpy", "pyarrow") + f"from cocomix.__main__ import main; main({arguments!r})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "usage: python -m cocomix" in ended.stdout + ended.stderr


@pytest.mark.parametrize("arguments", [["concepts", "text"], ["steer", "text", "--edit", "1=2"], ["explore"]])
def test_a_command_says_what_it_loads_before_anything_heavy_is_imported(arguments: list[str]) -> None:
    code = (
        blocked(*HEAVY, "numpy", "pyarrow") + f"from cocomix.__main__ import main; main({[*arguments, '--model', 'm']})"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stderr.startswith("loading m ...\n")
    assert ended.stdout.startswith("http://127.0.0.1:") == (arguments == ["explore"])


def test_the_exported_page_is_made_without_models() -> None:
    run(blocked(*HEAVY) + "import cocomix.explore.export")
