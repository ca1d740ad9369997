"""A small project of its own: three stages, no tensor."""

from pathlib import Path

import pytest
from dvc.repo import Repo

ROOT = Path(__file__).parents[2]

DVC_YAML = """
stages:
  number:
    cmd: exec python number.py
    deps: [number.py]
    params: [number]
    outs: [number.txt]
  parity:
    cmd: exec python parity.py
    deps: [number.txt]
    outs: [parity.txt]
  each:
    matrix: {name: [x, y]}
    cmd: exec python each.py ${item.name}
    deps: [parity.txt]
    outs: ["each-${item.name}.txt"]
  wait:
    cmd: exec python wait.py
    params: [wait]
    deps: [each-x.txt]
    outs: [wait.txt]
"""

SCRIPTS = {
    "number.py": """
import yaml
number = yaml.safe_load(open("params.yaml"))["number"]
print("half way", flush=True)
if number < 0:
    raise SystemExit("error: params.yaml: number: -1: must not be negative")
open("number.txt", "w").write(str(number))
""",
    "parity.py": 'open("parity.txt", "w").write(str(int(open("number.txt").read()) % 2))',
    "each.py": 'import shutil, sys; shutil.copy("parity.txt", f"each-{sys.argv[1]}.txt")',
    "wait.py": """
import os, time, yaml
from stages.launch import die_with
die_with(os.getppid())
open("pid", "w").write(str(os.getpid()))
time.sleep(yaml.safe_load(open("params.yaml"))["wait"])
open("wait.txt", "w").write("done")
""",
}


@pytest.fixture
def project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: number -> parity -> each@x, each@y; each@x -> wait."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("SHELL", raising=False)  # then DVC takes /bin/sh, which may fork where others replace themselves
    Repo.init(no_scm=True).close()
    Path("dvc.yaml").write_text(DVC_YAML)
    for name, text in SCRIPTS.items():
        Path(name).write_text(text)
    set_params(number=1, wait=0)
    return folder


def set_params(*, number: int, wait: float = 0) -> None:
    """Write params.yaml."""
    Path("params.yaml").write_text(f"number: {number}\nwait: {wait}\n")
