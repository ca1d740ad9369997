"""Stages started from anywhere, in folders of any name, with whatever streams and language there are."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cocomix.check.preflight import check_place
from cocomix.plumbing.errors import UserError
from stages.reads import stage_of_dvc

ROOT = Path(__file__).parents[2]
DVC_YAML = """
stages:
  toy:
    cmd: exec python -m stages.toy
    params: [sae.seed]
    outs: [artifacts/toy]
  report:
    cmd: exec python -m stages.report
    deps: [artifacts/toy]
    outs: [artifacts/report]
"""
TOY = """
from stages.stage import ARTIFACTS, main, produce

def run(params):
    def compute(work):
        for name in ("index.html", "summary.txt"):
            with work.write(name) as pending:
                pending.path.write_text(name)
                pending.rows = 1
        print("\\u00e9 made")
        return {}
    produce("NAME", ARTIFACTS / "NAME", {}, {"seed": params.sae.seed}, compute)

if __name__ == "__main__":
    main(run)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of two small stages, in a folder whose name means something to shells, make, globs and addresses."""
    path = tmp_path / "my proj [1] $x'\u00e9#%20"
    (path / "stages").mkdir(parents=True)
    (path / "docs").mkdir()
    shared = [f"stages/{each}.py" for each in ("__init__", "early", "launch", "reads", "stage")]
    for name in ("Makefile", "params.yaml", *shared):
        shutil.copy(ROOT / name, path / name)
    shutil.copytree(ROOT / "flows", path / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    (path / "dvc.yaml").write_text(DVC_YAML)
    for name in ("toy", "report"):
        (path / f"stages/{name}.py").write_text(TOY.replace("NAME", name))
    (path / ".venv").symlink_to(sys.prefix)
    subprocess.run(["git", "init", "-q", path], check=True)
    run(path, "dvc", "init", "-q")
    return path


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": paths, "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(folder)} | environment,
        capture_output=True,
        text=True,
    )


def set_seed(project: Path, seed: int) -> None:
    path = project / "params.yaml"
    path.write_text(re.sub("(?m)^  seed: [0-9]+", f"  seed: {seed}", path.read_text()))


@pytest.mark.slow
def test_the_report_is_made_in_a_folder_of_any_name_and_from_another_folder(project: Path) -> None:
    made = run(project, "make", "-o", ".venv/ready", "report", BROWSER="false")
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[-1] == str(project / "artifacts/report/index.html")
    for seed, folder, command in (
        (1, "docs", ("repro", "-P")),
        (2, "docs", ("repro", "../dvc.yaml:toy")),
        (3, ".", ("--cd", "docs", "repro", "../dvc.yaml:toy")),
    ):
        set_seed(project, seed)
        done = run(project / folder, "dvc", *command)
        assert done.returncode == 0, done.stderr
        assert "Running stage" in done.stdout


@pytest.mark.parametrize(
    ("stage", "name"), [("sae", "sae"), ("../dvc.yaml:pretrain@ntp-0", "pretrain@ntp-0"), ("a@b/dvc.yaml:x", "x")]
)
def test_a_stage_knows_its_name_from_wherever_dvc_was_started(
    monkeypatch: pytest.MonkeyPatch, stage: str, name: str
) -> None:
    monkeypatch.setenv("DVC_STAGE", stage)
    assert stage_of_dvc() == name


def test_a_stage_works_without_streams_and_with_an_encoding_that_lacks_what_it_prints(project: Path) -> None:
    silent = run(project, "sh", "-c", "exec python -m stages.toy <&- >&- 2>&-")
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, "", "")
    assert (project / "artifacts/toy/summary.txt").read_text() == "summary.txt"
    shutil.rmtree(project / "artifacts")
    plain = run(project, "python", "-m", "stages.toy", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert (plain.returncode, plain.stdout, plain.stderr) == (0, "\\xe9 made\n", "")


def test_artifacts_behind_a_link_or_a_file_in_their_place_are_refused_at_the_start(project: Path) -> None:
    artifacts = project / "artifacts"
    for make in (lambda: artifacts.symlink_to(project / "docs"), artifacts.touch):
        make()
        refused = run(project, "python", "-m", "stages.toy")
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: artifacts: must be a folder, not a link or a file; ")
        assert refused.stderr.count("\n") == 1
        artifacts.unlink()


@pytest.mark.parametrize("name", ["toy", ".work", ".work/toy", "models/ntp-0"])
def test_a_folder_of_artifacts_behind_a_link_is_refused_at_the_start(tmp_path: Path, name: str) -> None:
    link = tmp_path / "artifacts" / name
    link.parent.mkdir(parents=True)
    (tmp_path / "linked").touch()
    (link.parent / "file").symlink_to(tmp_path / "linked")  # as those that DVC makes with cache.type: symlink
    check_place(tmp_path / "artifacts")
    link.symlink_to(tmp_path)
    with pytest.raises(UserError, match=f"{link}: must be a folder, not a link"):
        check_place(tmp_path / "artifacts")


def test_without_git_make_says_so_in_one_line(project: Path) -> None:
    shutil.rmtree(project / ".git")
    refused = run(project, "make", "-o", ".venv/ready", "run")
    assert refused.stderr.startswith("error: no git repository here, which DVC needs: git init makes one\n")


@pytest.mark.parametrize("program", ["stages/corpus.py", "stages/tokenize.py", "flows/plan.py"])
def test_a_program_that_is_started_by_its_path_says_how_to_start_it(program: str) -> None:
    refused = run(ROOT, "python", program)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: start a ")
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("module", ["stages.sae", "flows.preset smoke", "flows.pipeline", "flows.verify"])
def test_a_program_in_another_folder_says_where_to_start_it_and_leaves_nothing(tmp_path: Path, module: str) -> None:
    refused = run(tmp_path, "python", "-m", *module.split(), PYTHONPATH=str(ROOT))
    assert refused.stderr == "error: params.yaml: no such file; run from the project's folder\n"
    assert list(tmp_path.iterdir()) == []
