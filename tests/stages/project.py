"""A copy of the project, to run, change and break."""

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from cocomix.params import load
from cocomix.plumbing.checked import merge

OUTS = {
    "corpus": "corpus",
    "tokenize": "tokens",
    "base_tokens": "base_tokens",
    "base": "base",
    "activations": "activations",
    "sae": "sae",
    "attribution": "concepts",
    "distribution": "distribution",
    "explain": "atlas",
    "methods": "methods",
    "pretrain@ntp-0": "models/ntp-0",
    "pretrain@cocomix-0": "models/cocomix-0",
    "evaluate@ntp-0": "evaluations/ntp-0",
    "evaluate@cocomix-0": "evaluations/cocomix-0",
    "steer": "steering",
    "report": "report",
}
"""The artifact of each stage, by its name for DVC."""


def words(stage: str) -> list[str]:
    """The name and arguments of a stage's program, by its name for DVC: pretrain, ntp and 0 for pretrain@ntp-0."""
    return stage.replace("@", " ").replace("-", " ").split()


@dataclass(frozen=True)
class Project:
    """A copy of the project."""

    path: Path

    def run(self, *command: str) -> str:
        """A command that must succeed; what it printed."""
        done = subprocess.run(command, cwd=self.path, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stage(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A stage, without DVC."""
        command = [sys.executable, "-m", f"stages.{arguments[0]}", *arguments[1:]]
        return subprocess.run(command, cwd=self.path, env=self.environment, capture_output=True, text=True)

    def stage_here(self, name: str, *item: object) -> None:
        """A stage in this process, which need not import again what a stage takes seconds to import."""
        with chdir(self.path):
            importlib.import_module(f"stages.{name}").run(load(), *item)

    def start(self, command: str) -> "subprocess.Popen[bytes]":
        """A stage, without DVC, to be killed."""
        stage, *item = command.split()
        arguments = [sys.executable, "-m", f"stages.{stage}", *item]
        return subprocess.Popen(arguments, cwd=self.path, env=self.environment, stderr=subprocess.DEVNULL)

    def start_dvc(self, *arguments: str) -> "subprocess.Popen[bytes]":
        """DVC, to be killed."""
        return subprocess.Popen(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=self.path,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def dvc(self, *arguments: str) -> str:
        """What DVC printed, which must succeed."""
        return self.run(sys.executable, "-m", "dvc", *arguments)

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: text for name, text in os.environ.items() if not name.startswith("COCOMIX_")}
        return clean | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self.path / ".dvc/site"),
            "COCOMIX_PROCESSES": "1",
            "COCOMIX_THREADS": "1",  # tests run side by side: threads would wait for each other
        }

    def change(self, overrides: Mapping[str, Any]) -> None:
        """Set parameters, given as nested mappings."""
        yaml = YAML()
        params = yaml.load(self.path / "params.yaml")
        merge(params, overrides)
        yaml.dump(params, self.path / "params.yaml")

    def copy(self, target: Path, *, linked: bool = True) -> "Project":
        """A copy to break, whose large files are links if `linked`."""
        copy = _link if linked else shutil.copy2
        shutil.copytree(self.path, target, copy_function=copy)
        return Project(target)


def _link(source: str, target: str) -> None:
    # Linked: what is never written in place. DVC and git write into theirs; a linked lock would be that of all copies.
    if ("/artifacts/" in source or "/.dvc/cache/" in source) and not source.endswith("lock"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)
