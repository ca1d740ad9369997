"""A small project of its own: stages without tensors."""

from pathlib import Path

import pytest
from dvc.repo import Repo

ROOT = Path(__file__).parents[2]

DVC_YAML = """
stages:
  number:
    cmd: exec python number.py
    deps: [number.py]
    params: [sae.seed]
    outs: [number.txt]
    metrics: [metrics/number.json: {cache: false}]
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
    params: [base.seed]
    deps: [each-x.txt]
    outs: [wait.txt]
"""

SCRIPTS = {
    "number.py": """
import json, pathlib, yaml
number = yaml.safe_load(open("params.yaml"))["sae"]["seed"]
print("counting:  50%|#####     | 1/2 [00:01<00:01,  1.00 numbers/s]", flush=True)
if number == 13:
    raise SystemExit("error: params.yaml: sae.seed: 13: must not be 13")
open("number.txt", "w").write(str(number))
pathlib.Path("metrics").mkdir(exist_ok=True)
json.dump({"number": number, "of": {"many": list(range(100)), "text": "x"}}, open("metrics/number.json", "w"))
""",
    "parity.py": 'open("parity.txt", "w").write(str(int(open("number.txt").read()) % 2))',
    "each.py": 'import shutil, sys; shutil.copy("parity.txt", f"each-{sys.argv[1]}.txt")',
    "wait.py": """
import os, time, yaml
from stages.launch import die_with
die_with(os.getppid())
open("pid", "w").write(str(os.getpid()))
time.sleep(yaml.safe_load(open("params.yaml"))["base"]["seed"])
open("wait.txt", "w").write("done")
""",
}


@pytest.fixture
def project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: number -> parity -> each@x, each@y; each@x -> wait."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("SHELL", raising=False)  # then DVC takes /bin/sh, which may fork where others replace themselves
    make_project()
    return folder


def make_project() -> None:
    """Make the project in the working directory."""
    Repo.init(no_scm=True).close()
    Path("dvc.yaml").write_text(DVC_YAML)
    for name, text in SCRIPTS.items():
        Path(name).write_text(text)
    set_params(number=1, wait=0)


def set_params(*, number: int, wait: int = 0) -> None:
    """Write params.yaml: two of the keys that it may have, with other meanings.

    Args:
        number: that the stage of this name writes.
        wait: seconds that the stage of this name takes.
    """
    Path("params.yaml").write_text(f"sae:\n  seed: {number}  # a comment\nbase: {{seed: {wait}}}\n")
