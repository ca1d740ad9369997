"""The commands and programs of the docs that need a finished run."""

import re
from contextlib import chdir
from pathlib import Path

import pytest

from tests.stages.conftest import ROOT
from tests.stages.project import Project

PROGRAMS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/concepts.md").read_text(), re.S)
EXPERIMENTS = (ROOT / "docs/operations.md").read_text().partition("## Experiments of DVC")[2].split("```")[1]
COMMANDS = [line.partition("#")[0].split() for line in EXPERIMENTS.strip().splitlines()]


@pytest.mark.slow
def test_the_documented_experiments_run_beside_a_commit(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    project.dvc("config", "--unset", "core.no_scm")
    for command in (
        ["init"],
        ["add", "--all"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--message=run"],
    ):
        project.run("git", *command)
    run, show, dag, plots = (each[1:] for each in COMMANDS)
    said = project.dvc(*run)
    assert re.findall("Running stage '(.*)'", said) == ["check", "report"]
    table = project.dvc(*show)
    assert "report.title" in table
    assert re.search(r"\| workspace +\| - +\| Other", table)
    assert "flowchart TD" in project.dvc(*dag)
    project.dvc(*plots)
    page = (project.path / "dvc_plots/index.html").read_text()
    assert set(re.findall(r'src="https?://([^/"]+)', page)) == {"cdn.jsdelivr.net"}  # as the docs say


def test_the_program_on_labels_reads_what_our_reader_reads(finished: Project) -> None:
    (program,) = (each for each in PROGRAMS if 'rows["scores"]' in each)
    check = """
from cocomix.attribution.labels import ConceptLabels
from cocomix.plumbing.artifact import Artifact
labels = next(ConceptLabels(Artifact(Path("artifacts/concepts"))).read("validation"))
assert (labels.concepts == concepts[:len(labels.concepts)]).all()
assert (labels.scores == scores[:len(labels.scores)]).all()
"""
    with chdir(finished.path):
        exec(program + check, {})


def test_the_last_program_on_concepts_runs_alone(finished: Project, capsys: pytest.CaptureFixture[str]) -> None:
    with chdir(finished.path):
        exec(PROGRAMS[-1], {})
    assert "tensor(" in capsys.readouterr().out
