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
from tests.flows.test_ui import PATIENCE
from tests.stages.conftest import finished
from tests.stages.project import Project

__all__ = ["finished"]

CLUSTER = ROOT / "cluster"
SRUN = """#!/bin/bash
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
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert volumes["project"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert {each["name"] for each in container["volumeMounts"]} == set(volumes)
