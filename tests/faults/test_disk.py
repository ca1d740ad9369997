"""Stages of the finished project on a disk that is full, and in folders that cannot be written to."""

import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from cocomix.plumbing.artifact import write_atomically
from stages.stage import _machine_trouble
from tests.faults.inside import in_child
from tests.faults.killing import content, forget, kill_half_way, locked
from tests.faults.mounting import READ_ONLY, in_namespace
from tests.stages.project import OUTS, Project, words

HALVED = ("base", "activations", "sae", "attribution", "distribution", "pretrain@ntp-0", "pretrain@cocomix-0")
"""Stages that leave finished files, or checkpoints, on their way."""


def repro(stage: str) -> str:
    return f"python -m dvc --wait-for-lock repro --single-item --no-run-cache {stage}"


def error_in(output: str) -> str:
    """The one line that a stage ended with."""
    assert "Traceback" not in output, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    return line


def fill_up(project: Project, finished: Project, stage: str, shares: Sequence[float]) -> None:
    """Make the stage anew where there is room for these shares of what it writes, one after the other; then for all."""
    out = f"artifacts/{OUTS[stage]}"
    written = sum(map(len, content(finished.path / f"artifacts/.work/{stage}").values()))
    forget(project, stage)
    before = (project.path / "dvc.lock").read_bytes()
    done = in_namespace(
        f"""
        mkdir disk
        mount -t tmpfs none disk
        cp -a artifacts/. disk
        mount --move disk artifacts
        used=$(df --output=used --block-size=1 artifacts | tail -n 1)
        for room in {" ".join(str(int(share * written)) for share in shares)}; do
            mount -o remount,size=$((used + room)) artifacts
            if {repro(stage)} 2>&1; then exit 1; fi
            test ! -e {out}
            echo -----
        done
        cp dvc.lock full.lock
        mount -o remount,size=1g artifacts
        {repro(stage)}
        cp -a {out} made
        """,
        project.path,
        project.environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *full, _ = done.stdout.split("-----\n")
    assert len(full) == len(shares)
    for output in full:
        assert output.count("exited with 2") == 1  # as DVC says of the stage
        assert re.match(
            "error: (no space left for artifacts \\(|activations: .* are still to be written)", error_in(output)
        )
    assert (project.path / "full.lock").read_bytes() == before
    assert content(project.path / "made") == content(finished.path / out)
    assert locked(project, stage) == locked(finished, stage)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_with_room_the_stage_ends_as_ever(project: Project, finished: Project) -> None:
    fill_up(project, finished, "tokenize", [0.5])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stage", OUTS)
def test_a_disk_may_be_full_at_any_point_of_a_stage(project: Project, finished: Project, stage: str) -> None:
    fill_up(project, finished, stage, [0, 0.3, 0.8])


def refuse(project: Project, finished: Project, stage: str, folder: str) -> None:
    """Go on with what a killed stage has begun where a folder is read-only; then where it is not."""
    out = f"artifacts/{OUTS[stage]}"
    program = f"python -m stages.{' '.join(words(stage))}"
    forget(project, stage)
    begun = kill_half_way(project, stage) if stage in HALVED else None
    before = content(project.path / folder)
    done = in_namespace(f"{READ_ONLY.format(folder)}\n{program}", project.path, project.environment)
    assert done.returncode == 2
    assert error_in(done.stderr).startswith("error: [Errno 30] Read-only file system: ")
    assert error_in(done.stderr).endswith("; the project's folder must be writable")
    assert content(project.path / folder) == before
    assert not (project.path / out).exists()
    assert not begun or begun.exists()
    output = project.run("sh", "-c", f"{repro(stage)} 2>&1")
    assert ("already computed" in output) == (folder == "metrics")
    assert content(project.path / out) == content(finished.path / out)
    assert locked(project, stage) == locked(finished, stage)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("stage", "folder"),
    [
        *((each, "artifacts") for each in HALVED),
        *((each, "metrics") for each in ("tokenize", "sae", "evaluate@cocomix-0", "report")),
    ],
)
def test_a_read_only_folder_is_one_line_and_nothing_is_lost(
    project: Project, finished: Project, stage: str, folder: str
) -> None:
    refuse(project, finished, stage, folder)


@pytest.mark.parametrize("folder", [".dvc", "artifacts"])
def test_where_dvc_cannot_write_nothing_runs(project: Project, folder: str) -> None:
    shutil.rmtree(project.path / "artifacts/.work/methods")
    project.change({"pretrain": {"match": "flops"}})
    before = content(project.path / "artifacts")
    done = in_namespace(f"{READ_ONLY.format(folder)}\n{repro('methods')} 2>&1", project.path, project.environment)
    assert done.returncode
    assert "Read-only file system" in done.stdout
    assert content(project.path / "artifacts") == before


def write_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(100_000))


def write_table(path: Path) -> None:
    pq.write_table(pa.table({"a": np.random.default_rng(0).random(100_000)}), path)


def write_tensors(path: Path) -> None:
    save_file({"a": torch.zeros(100_000)}, path)


def write_vocabulary(path: Path) -> None:
    Tokenizer(models.WordLevel({f"w{number}": number for number in range(10_000)}, unk_token="w0")).save(str(path))


def write_bytes(path: Path) -> None:
    write_atomically(path, bytes(100_000))


@pytest.mark.parametrize("write", [write_array, write_table, write_tensors, write_vocabulary, write_bytes])
def test_whatever_writes_a_file_its_words_for_a_limit_on_its_size_are_understood(
    folder: Path, write: Callable[[Path], None]
) -> None:
    def refused() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with pytest.raises(Exception) as error:  # noqa: PT011
            write(folder / "file")
        assert str(_machine_trouble(error.value)).startswith("no space left for artifacts (")

    assert in_child(refused) == 0


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_is_one_line(project: Project, finished: Project) -> None:
    forget(project, "tokenize")
    command = ["sh", "-c", "ulimit -f 40; exec python -m stages.tokenize"]  # blocks of 512 bytes
    environment = project.environment | {"PYTHONDONTWRITEBYTECODE": "1"}  # Python before 3.13.1 would leave cut .pyc
    done = subprocess.run(command, cwd=project.path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert error_in(done.stderr).startswith("error: no space left for artifacts (File too large")
    assert project.stage("tokenize").returncode == 0
    assert content(project.path / "artifacts/tokens") == content(finished.path / "artifacts/tokens")
