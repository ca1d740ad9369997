import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from cocomix.plumbing.errors import UserError
from cocomix.report.tuning import SweepRun
from flows import sweep as module
from flows.copies import FOLDER, copy_for, update
from flows.dag import Stage
from flows.settings import Setting, Task
from flows.sweep import _asked, _result_of, finished_runs, sweep
from flows.tasks import Ended, bring_up_to_date
from tests.flows.conftest import ROOT
from tests.flows.test_ends import start, stopped
from tests.flows.test_pipeline import artifacts, retries, tasks
from tests.flows.test_ui import until

EVALUATE = """
stages:
  evaluate:
    matrix: {method: [ntp], seed: [0]}
    cmd: exec python number.py
    params: [sae.seed]
    outs: [number.txt]
"""
SCRATCH = "artifacts/.work/evaluate/key/scratch"


@pytest.fixture
def run(project: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A sweep named mine, of one model whose loss is `sae.seed`; a seed of 13 fails."""
    (project / "dvc.yaml").write_text(EVALUATE)

    def collect(task: Task, folder: Path, code: str) -> SweepRun:
        loss = float((folder / "number.txt").read_text())
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


@pytest.mark.parametrize(("recorded", "counts"), [("one", True), ("two", False), (None, True)])
def test_a_result_counts_for_the_files_that_it_was_made_of(recorded: str | None, counts: bool) -> None:
    task = Task(Setting("a", {}), "ntp", 0, b"", {"sae": {"k": 1}}, {}, {"corpus.files.paths": "one"})
    result = SweepRun(
        setting="a",
        values={},
        method="ntp",
        seed=0,
        params=task.params,
        outside=recorded and {"corpus.files.paths": recorded},
        code="",
        pretrain={},
        evaluate={},
        curve={},
    )
    assert (_result_of(task, [result]) is result) == counts


def test_a_sweep_is_a_flow_with_a_task_for_each_stage_and_the_comparison_as_an_artifact(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture
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
        ["sae.seed=3", "ntp", "0", "3.0000", "+0.00000"],
        ["sae.seed=4", "ntp", "0", "4.0000", "+1.00000"],
    ]
    assert Path("params.yaml").read_bytes() == before
    assert "[3/3] sae.seed=4: 1 of 3 models are done" in caplog.messages

    again = run("sae.seed=3,4")
    assert again.message == "metrics/sweep/mine.json"
    assert tasks(again) == []
    assert artifacts(again)["sweep-mine"] == artifacts(final)["sweep-mine"]


def test_two_settings_of_the_same_parameters_are_named_and_both_have_results(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    Path("same.yaml").write_text("one: {}\nother: {}\n")
    final = sweep("same.yaml", methods=("ntp",), seeds=(0,), return_state=True)
    assert final.is_completed()
    assert [each.setting for each in finished_runs("same")] == ["one", "other"]
    assert "ntp reads nothing in which one and other differ: equal models" in caplog.messages


def test_models_that_train_at_the_same_time_are_collected_as_they_end(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = EVALUATE.replace("seed: [0]", "seed: [0, 1]").replace("number.txt", '"number-${item.seed}.txt"')
    Path("dvc.yaml").write_text(matrix.replace("number.py", "seed.py ${item.seed}"))
    Path("seed.py").write_text(
        "import os, sys, time\n"
        "while sys.argv[1] == '0' and not os.path.exists('metrics/sweep/mine.json'): time.sleep(0.05)\n"
        "open(f'number-{sys.argv[1]}.txt', 'w').close()\n"
    )
    Path("number.txt").write_text("3")
    monkeypatch.setenv("COCOMIX_TRAININGS", "2")
    final = sweep("mine", ("sae.seed=3",), methods=("ntp",), seeds=(0, 1), return_state=True)
    assert final.is_completed()
    assert [each.seed for each in finished_runs("mine")] == [1, 0]
    assert "ntp     0 1" in artifacts(final)["sweep-mine"]


def edit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the code look edited to a sweep."""
    monkeypatch.setattr(module, "states", dict)
    monkeypatch.setattr(module, "_digest_of_code", lambda: "other")


@pytest.fixture
def beside(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The same with two trainings at a time; seeds 3 and 4 wait for each other, once and only if they can meet."""
    Path("number.py").write_text(
        f"""
import os, pathlib, signal, time, yaml
from cocomix.plumbing.parent import end_with_parent
end_with_parent(os.getppid(), signal.SIGTERM)
number, root = yaml.safe_load(open("params.yaml"))["sae"]["seed"], pathlib.Path({str(Path.cwd())!r})
scratch = pathlib.Path("{SCRATCH}")
scratch.mkdir(parents=True, exist_ok=True)
(root / f"began-{{number}}").write_text(str(pathlib.Path.cwd()))
if number == 13:
    raise SystemExit("error: params.yaml: sae.seed: 13: must not be 13")
while not all((root / f"began-{{each}}").exists() for each in (3, 4)) or (root / "hang").exists():
    time.sleep(0.05)
open("number.txt", "w").write(str(number))
scratch.rmdir()
"""
    )
    monkeypatch.setenv("COCOMIX_TRAININGS", "2")
    return run


def test_settings_train_at_the_same_time_and_leave_the_folder_as_it_was(beside: Callable[..., Any]) -> None:
    before = {each: each.read_bytes() for each in Path().iterdir() if each.is_file()}
    final = beside("sae.seed=3,13,4")
    assert final.message == (
        "1 of 3 failed:\n  sae.seed=13 ntp seed 0: evaluate@ntp-0: params.yaml: sae.seed: 13: must not be 13"
    )
    assert {each.setting: each.validation_loss for each in finished_runs("mine")} == {"sae.seed=3": 3, "sae.seed=4": 4}
    began = {each: Path(f"began-{each}") for each in (3, 4, 13)}
    assert len({each.read_text() for each in began.values()}) == 3
    assert {each: each.read_bytes() for each in Path().iterdir() if each.is_file()} == before | {
        each: each.read_bytes() for each in began.values()
    }
    kept = [each.absolute() for each in FOLDER.iterdir()]  # the failed one has unfinished work
    assert kept == [Path(began[13].read_text())]


def test_settings_that_are_killed_together_go_on_in_their_copies(beside: Callable[..., Any], server: str) -> None:
    Path("hang").touch()
    environment = {"PREFECT_API_URL": server, "PYTHONPATH": str(ROOT)}
    flow = start("flows.sweep mine sae.seed=3,4 --methods ntp --seeds 0", environment)
    until(lambda: all(Path(f"began-{each}").exists() for each in (3, 4)))
    stopped(flow, signal.SIGKILL)
    for each in (Path(Path(f"began-{each}").read_text()) for each in (3, 4)):
        (each / SCRATCH).with_name("checkpoint").touch()
        (each / "number.py").unlink()  # a copy that was not whole
    Path("hang").unlink()
    script = Path("number.py").read_text()
    Path("number.py").write_text(script.replace("while", 'assert scratch.with_name("checkpoint").exists()\nwhile'))
    assert beside("sae.seed=3,4").is_completed()
    assert {each.setting: each.validation_loss for each in finished_runs("mine")} == {"sae.seed=3": 3, "sae.seed=4": 4}
    assert not any(FOLDER.iterdir())


def test_settings_of_equal_parameters_have_a_copy_each(beside: Callable[..., Any]) -> None:
    Path("began-4").touch()
    Path("same.yaml").write_text("one: {sae: {seed: 3}}\nother: {sae: {seed: 3}}\n")
    assert sweep("same.yaml", methods=("ntp",), seeds=(0,), return_state=True).is_completed()
    assert sorted(each.setting for each in finished_runs("same")) == ["one", "other"]


def test_a_path_that_leaves_the_folder_keeps_settings_one_after_another(beside: Callable[..., Any]) -> None:
    Path("began-4").touch()
    (Path("..") / "beside.txt").write_text("text\n" * 100)
    corpora = "evaluate: {corpora: {near: {paths: [../beside.txt]}}}"
    Path("paths.yaml").write_text(f"one: {{sae: {{seed: 3}}, {corpora}}}\nother: {{sae: {{seed: 5}}, {corpora}}}\n")
    assert sweep("paths.yaml", methods=("ntp",), seeds=(0,), return_state=True).is_completed()
    assert Path("began-3").read_text() == Path("began-5").read_text() == str(Path.cwd())


@pytest.mark.parametrize("trainings", [1, 2])
def test_the_last_setting_that_is_left_goes_on_in_its_copy(
    beside: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, trainings: int
) -> None:
    Path("began-4").touch()
    assert beside("sae.seed=3").is_completed()
    folder = copy_for("mine", "sae.seed=4")
    (folder / SCRATCH).mkdir(parents=True)
    monkeypatch.setenv("COCOMIX_TRAININGS", str(trainings))
    assert beside("sae.seed=3,4").is_completed()
    assert Path("began-4").read_text() == str(folder.absolute())


def test_what_a_copy_has_finished_comes_from_the_cache_later(
    beside: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".dvc/config").write_text("[core]\n no_scm = true\n[cache]\n dir = ../store\n")
    with_metrics = EVALUATE.replace("[number.txt]", '[number.txt, "${item.method}.json": {cache: false}]')
    Path("dvc.yaml").write_text(with_metrics)
    with Path("number.py").open("a") as program:
        program.write('open("ntp.json", "w").write(str(number))\n')
    assert beside("sae.seed=3,4").is_completed()
    Path("metrics/sweep/mine.json").unlink()
    monkeypatch.setenv("COCOMIX_TRAININGS", "1")
    assert {each.state_name for each in tasks(beside("sae.seed=3,4"))} == {"Restored"}


def test_copies_are_removed_at_the_end_of_any_sweep_unless_they_hold_unfinished_work(run: Callable[..., Any]) -> None:
    (copy_for("other", "done") / "artifacts").mkdir(parents=True)
    (copy_for("other", "killed") / SCRATCH).mkdir(parents=True)
    assert run("sae.seed=3").is_completed()
    assert [*FOLDER.iterdir()] == [copy_for("other", "killed")]


def test_names_of_settings_may_differ_in_a_space_only(beside: Callable[..., Any]) -> None:
    Path("space.yaml").write_text('"a": {sae: {seed: 3}}\n"a ": {sae: {seed: 4}}\n')
    assert sweep("space.yaml", methods=("ntp",), seeds=(0,), return_state=True).is_completed()
    assert {each.setting: each.validation_loss for each in finished_runs("space")} == {"a": 3, "a ": 4}


def test_edits_of_the_folder_do_not_matter_while_copies_train(
    beside: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(stages: Iterable[Stage], *others: Any) -> Ended:
        chosen = [*stages]
        if any(each.folder != Path() for each in chosen):
            Path("params.yaml").write_text("edited")
            edit_code(monkeypatch)
        return bring_up_to_date(chosen, *others)

    monkeypatch.setattr(module, "bring_up_to_date", edit)
    assert beside("sae.seed=3,4").is_completed()
    assert {each.setting: each.validation_loss for each in finished_runs("mine")} == {"sae.seed=3": 3, "sae.seed=4": 4}
    assert Path("params.yaml").read_text() == "edited"


@pytest.mark.parametrize("edited", ["params.yaml", "the code"])
def test_an_edit_while_a_copy_is_made_ends_the_sweep_before_anything_trains(
    beside: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, edited: str
) -> None:
    def edit(folder: Path, params: bytes) -> None:
        update(folder, params)
        if edited == "the code":
            edit_code(monkeypatch)
        else:
            Path(edited).write_text("edited")

    monkeypatch.setattr(module, "update", edit)
    assert "edited while the sweep was at work; the same command goes on" in beside("sae.seed=3,4").message
    assert not Path("began-3").exists()


def test_an_edit_of_the_code_between_two_settings_ends_the_sweep(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = list[str]()

    def edit(stages: Iterable[Stage], _ended: object) -> Ended:
        begun.extend(each.setting for each in stages)
        edit_code(monkeypatch)
        return Ended({}, {})

    monkeypatch.setattr(module, "bring_up_to_date", edit)
    final = run("sae.seed=3,4,5")
    assert final.message == "the code was edited while the sweep was at work; the same command goes on"
    assert begun == ["sae.seed=3"]


def test_logs_for_tensorboard_outlive_the_copies(beside: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    script = Path("number.py").read_text()
    write = 'logs = pathlib.Path(os.environ["COCOMIX_TENSORBOARD"])\nlogs.mkdir(parents=True)\n(logs / "log").touch()\n'
    Path("number.py").write_text(script + write)
    monkeypatch.setenv("COCOMIX_TENSORBOARD", "logs")
    assert beside("sae.seed=3,4").is_completed()
    assert len([*Path("logs").glob("*/log")]) == 2


def test_a_killed_stage_of_a_sweep_is_tried_again(run: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    Path("kill").touch()
    assert run("sae.seed=3").is_completed()
    assert len(retries(caplog)) == 1


@pytest.mark.parametrize("by", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_sweep_that_is_stopped_between_two_tries_puts_the_parameters_back(
    run: Callable[..., Any], server: str, by: signal.Signals
) -> None:
    Path("number.py").write_text("import os; os.kill(os.getpid(), 9)")
    Path("patient.py").write_text("from flows import sweep, tasks\ntasks.RETRY_SECONDS = (600,)\nsweep.main()")
    before = Path("params.yaml").read_bytes()
    environment = {"PREFECT_API_URL": server, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(ROOT)])}
    process = start("patient mine sae.seed=3 --methods ntp --seeds 0", environment)
    assert process.stdout
    while "once more in" not in process.stdout.readline():
        assert process.poll() is None
    assert Path("params.yaml").read_bytes() != before
    assert stopped(process, by).endswith(f"stopped by {by.name}\n")
    assert Path("params.yaml").read_bytes() == before


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
    def edit(_stages: object, ended: Callable[[str], None]) -> Ended:
        Path("params.yaml").write_text("edited")
        ended("evaluate@ntp-0")
        return Ended({}, {})

    monkeypatch.setattr(module, "bring_up_to_date", edit)
    final = run()
    assert final.message == "1 of 1 failed:\n  ntp seed 0: params.yaml was edited meanwhile: the result does not count"
    assert finished_runs("mine") == []


def test_an_edit_of_the_parameters_between_two_settings_ends_the_sweep(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = list[str]()

    def edit(stages: Iterable[Stage], _ended: object) -> Ended:
        begun.extend(each.setting for each in stages)
        Path("params.yaml").write_text("edited")
        return Ended({}, {})

    monkeypatch.setattr(module, "bring_up_to_date", edit)
    final = run("sae.seed=3,4,5")
    assert final.message == "params.yaml: edited while the sweep was at work; the same command goes on"
    assert begun == ["sae.seed=3"]
    assert Path("params.yaml").read_text() == "edited"


@pytest.mark.parametrize("name", ["", " ", ".", "..", ".yaml", "a/b", "a=b", "a\nb", "\ud800", "-a", "a" * 250, "a "])
def test_what_no_results_can_be_called_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"no name of a sweep"):
        _asked(name, [], [], [])
