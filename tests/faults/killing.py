"""Kill the stages of a finished smoke project at random, and see that the same command ends as if nothing had been.

By hand, for as long as one likes: `python -m tests.faults.killing FINISHED --kills 500 --minutes 30 --seed 1`
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML, YAMLError

from tests.stages.project import OUTS, Project, words

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass
class Tally:
    """What was tried."""

    kills: Counter[str] = field(default_factory=Counter)
    """By what was hit, and how."""
    stages: Counter[str] = field(default_factory=Counter)
    torn: Counter[str] = field(default_factory=Counter)
    """Files of DVC's that a kill has cut, which were removed as docs/operations.md says."""
    resumed: int = 0
    """Stages that in the end had the bytes, and the entry in dvc.lock, of an undisturbed run."""

    def __str__(self) -> str:
        return (
            f"{self.kills.total()} kills: {dict(sorted(self.kills.items()))}; torn: {dict(self.torn)}\n"
            f"{self.resumed} stages brought to their end: {dict(sorted(self.stages.items()))}"
        )


def kill_at_random(
    finished: Project, seed: int, kills: int, seconds: float, stages: Sequence[str] = tuple(OUTS)
) -> Tally:
    """Kill until so many kills are made or the time is up; an AssertionError says what did not survive."""
    chance, tally, end = random.Random(seed), Tally(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="killing-") as folder:
        project = finished.copy(Path(folder) / "project")
        while tally.kills.total() < kills and time.monotonic() < end:
            _one_stage(project, finished, chance.choice(stages), chance, tally)
            print(f"{tally.kills.total()} kills", flush=True)
            for each in ("metrics", "plots"):  # they hold times, which the report reads
                shutil.copytree(finished.path / each, project.path / each, dirs_exist_ok=True)
            shutil.copy2(finished.path / "dvc.lock", project.path)
    return tally


def _one_stage(project: Project, finished: Project, stage: str, chance: random.Random, tally: Tally) -> None:
    out = Path("artifacts") / OUTS[stage]
    forget(project, stage)
    for _ in range(chance.randint(3, 8)):
        whom, how = chance.choice(["stage", "dvc", "group"]), chance.choice(SIGNALS)
        if not _start_and_kill(project, stage, whom, how, chance):
            break
        tally.kills[f"{whom} {how.name}"] += 1
        tally.stages[stage] += 1
        found = left_behind(project)
        assert not found, f"{stage}: {whom} {how.name}: {found}"
        tally.torn.update(_remove_torn(project))
        assert locked(project, stage) in (None, locked(finished, stage)), f"{stage}: dvc.lock says what is not so"
    project.dvc("--wait-for-lock", "repro", "--single-item", "--no-run-cache", stage)
    assert content(project.path / out) == content(finished.path / out), f"{stage}: other bytes"
    assert locked(project, stage) == locked(finished, stage)
    tally.resumed += 1


def _start_and_kill(project: Project, stage: str, whom: str, how: signal.Signals, chance: random.Random) -> bool:
    """Run the stage by DVC, and send a signal to it, to DVC, or to both; whether they had not ended before."""
    command = ["python", "-m", "dvc", "--wait-for-lock", "repro", "--single-item", "--no-run-cache", stage]
    log = project.path / "dvc.log"
    with log.open("wb") as printed:
        process = subprocess.Popen(
            command, cwd=project.path, env=project.environment, stdout=printed, stderr=printed, start_new_session=True
        )
    with process:
        work = project.path / "artifacts/.work" / stage
        at_work = chance.random() < 0.8  # else: at any time of the start
        while process.poll() is None and at_work and not list(work.glob("*/files")):
            time.sleep(0.01)
        time.sleep(chance.choice([0.1, 1.0, 3.0]) * chance.random())
        of_stage = [each.pid for each in psutil.Process(process.pid).children()] if process.poll() is None else []
        victims = {"stage": of_stage, "dvc": [process.pid], "group": [*of_stage, process.pid]}[whom]
        for victim in victims:
            try:
                os.kill(victim, how)
            except ProcessLookupError:
                return False
        if whom == "dvc" and how == signal.SIGINT:  # DVC waits for its stage then
            for victim in of_stage:
                os.kill(victim, how)
        status = process.wait(300)  # a busy machine takes a minute to import what a stage needs
    text = log.read_text()
    dvc_alone = whom != "stage" and how == signal.SIGINT and not of_stage  # still importing: it says so at length
    assert "Traceback" not in text or "KeyboardInterrupt" in text or dvc_alone, text
    return bool(victims) and status != 0


def _remove_torn(project: Project) -> list[str]:
    """Remove what DVC writes in place and a kill has cut; the names."""
    names = [name for name in (".dvc/tmp/rwlock", "dvc.lock") if _is_torn(project.path / name)]
    for name in names:
        (project.path / name).unlink()
    return names


def _is_torn(path: Path) -> bool:
    if not path.exists():
        return False
    text = path.read_text()
    try:
        return (path.name == "dvc.lock" and not text.endswith("\n")) or YAML(typ="safe").load(text) is None
    except YAMLError:
        return True


def kill_half_way(project: Project, stage: str) -> Path:
    """Run a stage, without DVC, and kill it as soon as some of its work is there; the folder of that work."""
    home = project.path / "artifacts/.work" / stage
    before = begun(home)
    with project.start(" ".join(words(stage))) as process:
        while not (new := begun(home) - before) and process.poll() is None:
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL, f"{stage}: it ended before it could be killed"
    work = home / new.pop().relative_to(home).parts[0]
    assert not (work / "manifest.json").exists(), f"{stage}: it was finished before it could be killed"
    return work


def begun(home: Path) -> set[Path]:
    """Finished files, of the artifact or of a part of the way there, and checkpoints."""
    patterns = ("files/**/*", "scratch/**/step-*", "scratch/*.safetensors")
    return {each for pattern in patterns for each in home.glob(f"*/{pattern}") if each.is_file()}


def forget(project: Project, stage: str) -> None:
    """As if the stage had never run."""
    shutil.rmtree(project.path / "artifacts" / OUTS[stage])
    shutil.rmtree(project.path / "artifacts/.work" / stage)
    shutil.rmtree(project.path / "artifacts/.measured", ignore_errors=True)
    yaml, path = YAML(), project.path / "dvc.lock"
    lock = yaml.load(path)
    lock["stages"].pop(stage, None)
    yaml.dump(lock, path)


def locked(project: Project, stage: str) -> dict[str, str] | None:
    """The digest that dvc.lock notes for the artifact of a stage; none: nothing is noted."""
    path = project.path / "dvc.lock"
    lock: dict[str, Any] = YAML(typ="safe").load(path) if path.exists() else {"stages": {}}
    entry = lock["stages"].get(stage)
    out = f"artifacts/{OUTS[stage]}"
    return entry and {each["path"]: each["md5"] for each in entry["outs"] if each["path"] == out}


def left_behind(project: Project, patience: float = 300.0) -> list[str]:
    """Command lines of processes that still work in the project after some seconds."""
    end = time.monotonic() + patience
    while (found := _at_work_in(project.path)) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def _at_work_in(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(folder):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:  # it ended, or is another user's
            continue
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in sorted(folder.rglob("*")) if each.is_file()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("finished", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print(kill_at_random(Project(asked.finished.resolve()), asked.seed, asked.kills, asked.minutes * 60))
