"""What a stage has read is changed while it works: it says so, and nothing is recorded that is not so."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.exceptions import DvcException
from dvc.repo import Repo
from ruamel.yaml import YAML

from cocomix.check import external
from cocomix.params import load
from cocomix.plumbing.artifact import Work

ROOT = Path(__file__).parents[2]
TOY = ROOT / "tests/stages/toy_reads.py"
DVC_YAML = f"""
stages:
  toy_reads:
    cmd: exec {sys.executable} -m toy_reads
    deps: [toy_reads.py, page.jinja, metrics, artifacts/input]
    params: [sae, artifacts/keys.json: [cocomix.key], artifacts/external/external.json: [base.pretrained]]
    outs: [artifacts/toy_reads]
"""
KINDS = {
    "toy_reads.py=>OUT = =>OUT = OTHER = ": "toy_reads.py",
    "page.jinja=>page=>edge": "page.jinja",
    "metrics/deep/base.json=>base=>edge": "metrics/deep/base.json",
    "model/weights=>w=>W": "what base.pretrained (params.yaml) names",
    "artifacts/keys.json=>1=>2": "artifacts/keys.json: cocomix.key",
    "artifacts/input/manifest.json=>input=>other": "artifacts/input",
    "params.yaml=>latents: 1024=>latents: 1025": "params.yaml: sae",
}
"""What is changed, by what the error names it."""


@pytest.fixture
def project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: the stage `toy_reads`, and what it reads."""
    for name in [each for each in os.environ if each.startswith("COCOMIX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shutil.copy(TOY, folder)
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["base"] |= {"source": "pretrained", "pretrained": "model"}
    yaml.dump(params, folder / "params.yaml")
    for name in ("page.jinja", "metrics/deep/base.json", "model/weights"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    with Work("input", Path("artifacts/input"), {}, {}) as work:
        with work.write("text") as pending:
            pending.path.write_text("text")
        work.finish({})
        work.publish()
    Path("artifacts/keys.json").write_text(json.dumps({"cocomix": {"key": 1}}))
    external.FILE.parent.mkdir()
    external.FILE.write_bytes(external.to_json(external.digests(load())))
    Path("dvc.yaml").write_text(DVC_YAML)
    return folder


def stage(*changes: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "toy_reads", *changes], env=os.environ | environment, capture_output=True, text=True
    )


def said(done: "subprocess.CompletedProcess[str]") -> str:
    """What the stage said last, without a traceback before it."""
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("change", KINDS)
def test_what_changes_while_a_stage_works_is_named_and_nothing_is_lost(project: Path, change: str) -> None:
    path = Path(change.partition("=>")[0])
    before = path.read_bytes()
    done = stage(change)
    assert (done.returncode, done.stdout) == (2, "")
    named = KINDS[change]
    assert said(done) == f"error: {named} changed while this stage was at work; run it again: nothing is lost"
    path.write_bytes(before)
    again = stage()
    assert again.returncode == 0, again.stderr
    # Whether such a file was read before or after its change is not known; all else was what the key says.
    uncertain = str(path) in ("page.jinja", "metrics/deep/base.json", "model/weights")
    assert ("already computed" in again.stderr) == (not uncertain)


def test_comments_and_parameters_of_other_stages_may_change(project: Path) -> None:
    done = stage("toy_reads.py=>OUT = =># Why.\nOUT = ", "params.yaml=>label_runs: 1=>label_runs: 2")
    assert done.returncode == 0, done.stderr


def test_dvc_notes_nothing_of_a_stage_whose_code_changed_and_takes_its_work_when_that_is_undone(project: Path) -> None:
    Repo.init(no_scm=True).close()
    code = Path("toy_reads.py").read_bytes()
    spoilt = DVC_YAML.replace("-m toy_reads", "-m toy_reads 'toy_reads.py=>OUT = =>OUT = OTHER = '")
    Path("dvc.yaml").write_text(spoilt)
    with Repo() as repo, pytest.raises(DvcException):
        repo.reproduce()
    assert not Path("dvc.lock").exists()
    Path("toy_reads.py").write_bytes(code)
    Path("dvc.yaml").write_text(DVC_YAML)
    with Repo() as repo:
        repo.reproduce()
        assert repo.status() == {}
    assert len(list(Path("artifacts/.work/toy_reads").glob("*/manifest.json"))) == 1


def test_what_changed_since_the_first_stage_looked_is_not_noted_as_what_it_found(project: Path) -> None:
    Path("model/weights").write_text("other")
    done = stage(DVC_STAGE="toy_reads")
    assert done.returncode == 2
    message = "what base.pretrained (params.yaml) names changed since the stage 'check' ran; run that again"
    assert said(done) == f"error: {message}"
    assert stage().returncode == 0  # by hand nothing is noted


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


def test_processes_that_started_with_other_code_do_not_work_together(project: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "toy_reads.py").write_text(TOY.read_text() + "\nmore = 1\n")
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    shared |= {"GLOO_SOCKET_IFNAME": "lo", "COCOMIX_DEVICE": "cpu", "PYTHONSAFEPATH": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "toy_reads"],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": f"{where}:{ROOT}"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, where in enumerate((project, other))
    ]
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], told
    assert "error: the processes of this stage found other code, parameters or inputs each; run it again" in told[0]
    assert not Path("artifacts/toy_reads").exists()
