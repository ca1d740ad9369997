"""A small project of its own: stages without tensors. And a Prefect server."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_LOGGING_TO_API_ENABLED,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    temporary_settings,
)
from prefect.testing.utilities import prefect_test_harness

ROOT = Path(__file__).parents[2]

DVC_YAML = """
stages:
  number:
    cmd: exec python number.py
    deps: [number.py]
    params: [sae.seed]
    outs: [number.txt, metrics/number.json: {cache: false}]
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
import json, os, pathlib, yaml
if os.path.exists("kill"):
    os.unlink("kill")
    os.kill(os.getpid(), 9)
if os.path.exists("full") and int(os.environ.get("COCOMIX_MICRO_BATCH", "1000")) > 4:
    raise SystemExit("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
number = yaml.safe_load(open("params.yaml"))["sae"]["seed"]
print("counting:  50% 1/2 [00:01<00:01,  1.00 numbers/s]", flush=True)
if number == 13:
    raise SystemExit("error: params.yaml: sae.seed: 13: must not be 13")
open("number.txt", "w").write(str(number))
pathlib.Path("metrics").mkdir(exist_ok=True)
json.dump({"number": number, "of": {"many": list(range(100)), "text": "x"}}, open("metrics/number.json", "w"))
""",
    "parity.py": 'open("parity.txt", "w").write(str(int(open("number.txt").read()) % 2))',
    "each.py": 'import shutil, sys; shutil.copy("parity.txt", f"each-{sys.argv[1]}.txt")',
    "wait.py": """
import os, signal, time, yaml
from cocomix.plumbing.parent import end_with_parent
end_with_parent(os.getppid(), signal.SIGTERM)
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
    """Write params.yaml: the shipped one, two of whose keys have other meanings here.

    Args:
        number: that the stage of this name writes (sae.seed).
        wait: seconds that the stage of this name takes (base.seed).
    """
    text = (ROOT / "params.yaml").read_text()
    for section, value in (("sae", number), ("base", wait)):
        text = re.sub(rf"(?ms)(^{section}:.*?^  seed: )\d+", rf"\g<1>{value}", text, count=1)
    Path("params.yaml").write_text(text)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prefect server with a database of its own."""
    settings = {
        PREFECT_HOME: tmp_path_factory.mktemp("prefect"),
        PREFECT_SERVER_ANALYTICS_ENABLED: False,
        PREFECT_LOGGING_TO_API_ENABLED: False,
    }
    with temporary_settings(settings), prefect_test_harness(server_startup_timeout=120):
        yield PREFECT_API_URL.value()
