import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cocomix.plumbing.errors import UserError
from cocomix.report.tuning import SweepRun
from flows import sweep as module
from flows.settings import Task
from flows.sweep import _asked, finished_runs, sweep
from flows.tasks import Ended
from tests.flows.test_pipeline import artifacts, tasks

EVALUATE = """
stages:
  evaluate:
    matrix: {method: [ntp], seed: [0]}
    cmd: exec python number.py
    params: [sae.seed]
    outs: [number.txt]
"""


@pytest.fixture
def run(project: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A sweep named mine, of one model whose loss is `sae.seed`; a seed of 13 fails."""
    (project / "dvc.yaml").write_text(EVALUATE)

    def collect(task: Task, code: str) -> SweepRun:
        loss = float(Path("number.txt").read_text())
        return SweepRun(
            setting=task.setting.name,
            values={},
            method="ntp",
            seed=task.seed,
            params=task.params,
            code=code,
            pretrain={"seconds": 1, "parameters": {"stored": 1, "active": 1}, "tokens": 1, "flops": 1},
            evaluate={"validation": {"loss": loss}},
            curve={"tokens": [1, 2], "flops": [1, 2], "seconds": [1, 2], "loss": [loss, loss]},
        )

    monkeypatch.setattr(module, "_collect", collect)
    return lambda *grid: sweep("mine", grid, methods=("ntp",), seeds=(0,), return_state=True)


def test_a_sweep_is_a_flow_with_a_task_for_each_stage_and_the_comparison_as_an_artifact(
    run: Callable[..., Any],
) -> None:
    before = Path("params.yaml").read_bytes()
    final = run("sae.seed=3,13,4")
    assert final.message == (
        "1 of 3 failed:\n  sae.seed=13 ntp seed 0: evaluate@ntp-0: params.yaml: sae.seed: 13: must not be 13"
    )
    assert {each.name: each.state_name for each in tasks(final)} == {
        "evaluate@ntp-0 sae.seed=3": "Completed",
        "evaluate@ntp-0 sae.seed=13": "Failed",
        "evaluate@ntp-0 sae.seed=4": "Completed",
    }
    rows = [line.split()[:5] for line in artifacts(final)["sweep-mine"].splitlines()]
    assert [each for each in rows if "ntp" in each] == [
        ["sae.seed=3", "ntp", "0", "3.0000", "+0.0000"],
        ["sae.seed=4", "ntp", "0", "4.0000", "+1.0000"],
    ]
    assert Path("params.yaml").read_bytes() == before

    again = run("sae.seed=3,4")
    assert again.message == "metrics/sweep/mine.json"
    assert tasks(again) == []
    assert artifacts(again)["sweep-mine"] == artifacts(final)["sweep-mine"]


def test_a_killed_stage_of_a_sweep_is_tried_again(run: Callable[..., Any]) -> None:
    Path("kill").touch()
    final = run("sae.seed=3")
    assert final.is_completed()
    assert [each.run_count for each in tasks(final)] == [2]


def test_a_sweep_waits_for_another_one_of_the_folder(run: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    holder = "import time\nfrom flows.workspace import kept\nwith kept(): print(flush=True); time.sleep(2)"
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        assert run("sae.seed=3").is_completed()
        assert process.poll() == 0
    said = f"another run is at work in this folder (process {process.pid}: python -c {' '.join(holder.split())})"
    assert f"{said}: waiting for it to end" in caplog.messages


def test_a_wrong_setting_fails_the_flow_in_one_line_before_anything_runs(run: Callable[..., Any]) -> None:
    final = run("sae.sed=1")
    assert final.message.endswith("sae.sed: unknown key; did you mean 'seed'?")
    assert tasks(final) == []


@pytest.mark.parametrize("name", ["/etc/hosts.yaml", "../beside.yaml", "sweeps/../../beside.yml", "linked.yaml"])
def test_a_file_outside_the_folder_is_not_read(folder: Path, name: str) -> None:
    Path("linked.yaml").symlink_to(folder.parent / "beside.yaml")
    (folder.parent / "beside.yaml").write_text("secret: value")
    with pytest.raises(UserError, match=f"^{re.escape(name)}: must lie in this folder$"):
        module._asked(name, (), (), ())


@pytest.mark.parametrize("name", ["../../beside", "/etc/hosts", "a=b", "two\nlines", "nul\0.yaml"])
def test_what_is_no_name_is_refused_in_one_line(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="no name of a sweep"):
        module._asked(name, (), (), ())


def test_a_result_of_parameters_that_a_person_edited_meanwhile_does_not_count(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(_nodes: object, _suffix: str, ended: Callable[[str], None]) -> Ended:
        Path("params.yaml").write_text("edited")
        ended("evaluate@ntp-0")
        return Ended({}, {})

    monkeypatch.setattr(module, "bring_up_to_date", edit)
    final = run()
    assert final.message == "1 of 1 failed:\n  ntp seed 0: params.yaml was edited meanwhile: the result does not count"
    assert finished_runs("mine") == []


@pytest.mark.parametrize("name", ["", " ", ".", "..", ".yaml", "a/b", "a=b", "a\nb", "\ud800", "-a", "a" * 250, "a "])
def test_what_no_results_can_be_called_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"no name of a sweep"):
        _asked(name, [], [], [])
