"""The files of cluster/, run with stand-ins for Slurm's commands, and compared with the schema of Kubernetes."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from flows.pipeline import command_line
from tests.flows.conftest import ROOT, set_params
from tests.flows.test_reproduce import ends, wait_for_pid
from tests.flows.test_ui import PATIENCE, until
from tests.stages.conftest import finished
from tests.stages.project import Project

__all__ = ["finished"]

CLUSTER = ROOT / "cluster"
SRUN = """#!/bin/bash
[ "$1 $2" = "--cpus-per-task $SLURM_CPUS_PER_TASK" ] || exit 2
shift 2
for SLURM_PROCID in $(seq 0 $((SLURM_NNODES - 1))); do
  export SLURM_PROCID
  "$@" &
done
wait -n && wait -n
"""
"""Runs a task for each node, all on this machine."""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo localhost; else echo "$@" >> "$SLURM_SUBMIT_DIR/scontrol.log"; fi
"""


def sbatch(folder: Path, script: str, *arguments: str, nodes: int = 1) -> "subprocess.Popen[str]":
    """Start a job here, in a folder, as Slurm does on the job's first machine."""
    commands = folder.parent / "slurm"
    commands.mkdir(exist_ok=True)
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    if not (folder / ".venv").exists():
        (folder / ".venv").symlink_to(sys.prefix)
    slurm = {"JOB_ID": "7", "SUBMIT_DIR": str(folder), "NNODES": str(nodes), "JOB_NODELIST": "n[1-2]"}
    slurm |= {"CPUS_PER_TASK": "3"}
    return subprocess.Popen(
        ["bash", str(CLUSTER / script), *arguments],
        env=os.environ
        | {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
        | {f"SLURM_{name}": value for name, value in slurm.items()},
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def program(folder: Path, commands: str) -> None:
    """Put a shell script in place of Python in a folder's .venv."""
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/bash\n{commands}\n")
    python.chmod(0o755)


def options(script: str) -> Mapping[str, str]:
    """The options of a job file, which end where its commands begin."""
    lines = (CLUSTER / script).read_text().splitlines()
    head = lines[: next(number for number, line in enumerate(lines) if line and line[0] != "#")]
    words = [word for line in head if line.startswith("#SBATCH ") for word in shlex.split(line)[1:]]
    return {name: value for name, _, value in (word.removeprefix("--").partition("=") for word in words)}


def test_the_pipeline_gets_a_signal_in_time_to_save_and_queues_itself_again() -> None:
    given = options("pipeline.sbatch")
    assert given["signal"] == "B:USR1@120"  # B: to the script, not to job steps
    assert "requeue" in given


def test_a_stage_on_several_machines_gets_a_signal_in_time_to_save() -> None:
    assert options("stage.sbatch")["signal"] == "TERM@120"  # to the job steps, so to torchrun


def test_a_stage_gets_the_cores_of_its_job_on_each_machine_and_a_port_of_the_job(folder: Path) -> None:
    program(folder, 'echo "$@"')
    said, _ = sbatch(folder, "stage.sbatch", "pretrain", "cocomix", "0", nodes=2).communicate(timeout=PATIENCE)
    first, second = said.splitlines()
    assert first == second
    assert "--rdzv-endpoint localhost:20007 " in first
    assert first.endswith(" -m stages.pretrain cocomix 0")


@pytest.mark.parametrize("status", [0, 1])
def test_a_flow_that_ends_by_itself_when_its_time_is_up_is_not_queued_again(folder: Path, status: int) -> None:
    program(folder, f"trap 'exit {status}' TERM; touch began; while :; do sleep 0.1; done")
    job = sbatch(folder, "pipeline.sbatch")
    until((folder / "began").exists)
    job.send_signal(signal.SIGUSR1)
    job.communicate(timeout=PATIENCE)
    assert job.returncode == status
    assert not (folder / "scontrol.log").exists()


@pytest.mark.parametrize(
    ("by", "requeued"),
    [(signal.SIGUSR1, "requeue 7\n"), pytest.param(signal.SIGTERM, "", marks=pytest.mark.slow)],
    ids=["time is up", "scancel"],
)
def test_a_job_that_is_stopped_ends_all_and_is_queued_again_only_if_its_time_was_up(
    project: Path, server: str, by: signal.Signals, requeued: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", server)
    set_params(number=1, wait=600)
    job = sbatch(project, "pipeline.sbatch", "wait")
    stage = wait_for_pid()
    job.send_signal(by)
    said, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode == 128 + signal.SIGTERM
    assert said.endswith("stopped by SIGTERM\n")
    assert ends(stage)
    log = project / "scontrol.log"
    assert (log.read_text() if log.exists() else "") == requeued
    set_params(number=1, wait=0)
    again = sbatch(project, "pipeline.sbatch", "wait")
    again.communicate(timeout=PATIENCE)
    assert again.returncode == 0
    assert Path("wait.txt").exists()


@pytest.mark.slow
def test_a_stage_on_two_machines_has_the_result_of_one_machine(
    finished: Project,
    tmp_path: Path,
) -> None:
    project = finished.copy(tmp_path / "project")
    manifest = project.path / "artifacts/activations/manifest.json"
    before = manifest.read_bytes()
    shutil.rmtree(project.path / "artifacts/.work/activations")
    job = sbatch(project.path, "stage.sbatch", "activations", nodes=2)
    said, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, said
    assert manifest.read_bytes() == before
    usage = json.loads((project.path / "metrics/activations.json").read_bytes())["usage"]
    assert usage["processes"] == 2


def test_the_manifests_for_kubernetes_are_valid_and_their_command_is_one_of_the_flow() -> None:
    claim, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    for each in (claim, job):
        kubernetes_validate.validate(each, "1.37", strict=True)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    python, option, program, *arguments = container["command"]
    assert (python, option, program) == (".venv/bin/python", "-m", "flows.pipeline")
    assert command_line(arguments).trainings == container["resources"]["limits"]["nvidia.com/gpu"]
    (setup,) = pod["initContainers"]
    assert (setup["workingDir"], setup["volumeMounts"]) == (container["workingDir"], container["volumeMounts"][:1])
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert volumes["project"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert {each["name"] for each in container["volumeMounts"]} == set(volumes)


def test_the_setup_of_kubernetes_clones_once_and_goes_on_after_a_restart(folder: Path) -> None:
    _, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    (setup,) = job["spec"]["template"]["spec"]["initContainers"]
    source, volume = folder / "source", folder / "volume"
    volume.mkdir()
    git = ["git", "-C", str(source), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "init", "-q", str(source)], check=True)
    (source / "Makefile").write_text(".venv/ready:\n\tmkdir .venv && touch $@\n")
    subprocess.run([*git, "add", "Makefile"], check=True)
    subprocess.run([*git, "commit", "-qm", "All"], check=True)
    environment = os.environ | {"REPOSITORY": str(source), "GIT_CEILING_DIRECTORIES": str(folder)}
    for _ in range(2):
        subprocess.run(setup["command"], cwd=volume, env=environment, check=True)
    assert (volume / ".venv/ready").exists()
