"""What a plan says of changes; what it says of a real project: tests/stages/test_plan.py."""

from dataclasses import replace
from pathlib import Path

import pytest
from dvc.repo import Repo

from cocomix.check import external
from cocomix.plumbing.errors import UserError
from flows import dag
from flows import plan as module
from flows.changes import found_outside
from flows.dag import Stage
from flows.plan import Why, plan, reasons, unread
from tests.flows.conftest import ROOT, set_params

PRESETS = sorted({path.stem for path in (ROOT / "presets").glob("*.yaml")} - {"smoke"})  # smoke tries every stage


def stage(name: str, *needs: str, changed: str = "", keys: tuple[str, ...] = ()) -> Stage:
    why = (changed,) if changed else ()
    return Stage(name, needs, bool(why), (), gpu=False, reads_keys_of=frozenset(keys), reasons=why)


def planned(*stages: Stage) -> dict[str, Why]:
    return reasons({each.name: each for each in stages})


def test_what_follows_from_a_change_runs_and_nothing_else() -> None:
    found = planned(stage("a"), stage("b", changed="x: 1 -> 2"), stage("c", "a", "b"), stage("d", "a"))
    assert [found[name].runs for name in "abcd"] == ["no", "yes", "yes", "no"]
    assert found["c"].reasons == ("after b",)


def test_a_stage_that_reads_keys_only_runs_perhaps_and_so_does_what_follows() -> None:
    found = planned(stage("a", changed="x: 1 -> 2"), stage("b", "a", keys=("a",)), stage("c", "b"))
    assert [found[name].runs for name in "abc"] == ["yes", "perhaps", "perhaps"]


def test_what_the_first_stage_will_find_is_known_beforehand() -> None:
    check = replace(stage("check", changed="x: 1 -> 2"), writes=b"{}")
    found = planned(check, stage("a", "check", keys=("check",)), stage("b", "check", changed="what x names changed"))
    assert [found[name].runs for name in ("check", "a", "b")] == ["yes", "no", "yes"]
    assert found["b"].reasons == ("what x names changed",)


def test_what_the_first_stage_found_before_is_compared(folder: Path) -> None:
    digests = {"base.pretrained": "a", "evaluate.tasks": None}
    assert found_outside(digests) == []
    external.FILE.parent.mkdir(parents=True)
    external.FILE.write_bytes(external.to_json(digests))
    assert found_outside(digests) == []
    assert found_outside(digests | {"base.pretrained": "b"}) == ["what base.pretrained names changed"]


def test_a_change_of_its_own_makes_it_certain() -> None:
    found = planned(stage("a", changed="x: 1 -> 2"), stage("b", "a", changed="y: 3 -> 4", keys=("a",)))
    assert found["b"] == Why("yes", ("y: 3 -> 4", "after a"))


def test_changes_are_read_for_parameters_that_are_not_in_the_file(project: Path) -> None:
    set_params(number=2)
    other = Path("params.yaml").read_bytes()
    set_params(number=1)
    before = Path("params.yaml").read_bytes()
    assert dag.read_dag(other)["number"].reasons == ("never run",)
    repro()
    assert dag.read_dag()["number"].reasons == ()
    assert dag.read_dag(other)["number"].reasons == ("sae.seed: 1 -> 2",)
    assert dag.read_dag()["number"].ran_with == {"sae.seed": 1}
    assert Path("params.yaml").read_bytes() == before


def test_missing_results_and_changed_code_are_named(project: Path) -> None:
    repro()
    Path("number.txt").unlink()
    with Path("number.py").open("a") as file:
        file.write("\n# A comment.\n")
    found = dag.read_dag()
    assert set(found["number"].reasons) == {"number.txt is missing", "number.py is modified"}
    assert found["parity"].reasons == ("number.txt is missing",)


def test_an_unknown_preset_is_refused(folder: Path) -> None:
    (folder / "presets").mkdir()
    (folder / "presets/default.yaml").write_bytes((ROOT / "presets/default.yaml").read_bytes())
    with pytest.raises(UserError, match="defalt: no such preset in presets; did you mean 'default'"):
        plan("defalt")


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_samples_the_base_model_for_nobody(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert unread(name) is None


def test_draws_that_no_listed_method_reads_are_named(folder: Path) -> None:
    shipped = (ROOT / "presets/default.yaml").read_text()
    Path("params.yaml").write_text(shipped.replace("methods: [ntp, cocomix, cocomix_kd]", "methods: [ntp, cocomix]"))
    assert "distribution.draws: null makes none" in (unread() or "")
    Path("params.yaml").write_text(shipped)
    assert unread() is None


def repro() -> None:
    with Repo() as repo:
        repo.reproduce()


def test_metrics_in_the_middle_of_a_merge_only_give_no_rate(folder: Path) -> None:
    metrics = Path("metrics/corpus.json")
    metrics.parent.mkdir()
    metrics.write_text("<<<<<<< HEAD\n{}\n=======\n")
    assert module._seconds(metrics) == 0
    assert module._measured_rates({}, (ROOT / "params.yaml").read_bytes()) == {}
