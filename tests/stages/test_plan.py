"""Plans of a real project, against what its stages wrote."""

import json
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from cocomix.params import load
from cocomix.params.sites import Site
from cocomix.plumbing.gpus import GPUS
from cocomix.report.tuning import decisive_outside
from cocomix.sae.autoencoder import SaeConfig, SparseAutoencoder
from cocomix.sae.formats import save_for
from cocomix.shapes.planning.corpus import measured_corpus
from cocomix.shapes.planning.stages import stage_needs
from flows.plan import START, Gpus, Planned, main, plan
from tests.stages.project import OUTS, Project
from tests.stages.test_pipeline import changed


def planned(project: Project, preset: str | None = None, gpus: int = 1) -> dict[str, Planned]:
    with chdir(project.path):
        return {each.stage: each for each in plan(preset, Gpus("H100", GPUS["H100"], gpus))}


def metrics(project: Project, name: str) -> dict[str, Any]:
    return json.loads((project.path / f"metrics/{name}.json").read_bytes())


def written(project: Project, stage: str) -> int:
    """Bytes of what the stage made."""
    manifest = project.path / "artifacts" / OUTS[stage] / "manifest.json"
    files: Mapping[str, Any] = json.loads(manifest.read_bytes())["files"]
    return sum(each["bytes"] for each in files.values())


def test_operations_are_those_that_the_stages_counted_and_disk_is_what_they_wrote(finished: Project) -> None:
    text = measured_corpus(metrics(finished, "corpus"), metrics(finished, "tokenize"))
    found = stage_needs(load(finished.path / "params.yaml"), text)
    for name in ("base", "pretrain/ntp-0", "pretrain/cocomix-0"):
        assert found[name.replace("/", "@")].flops == metrics(finished, name)["flops"]
    sizes = {name: written(finished, name) for name in found if name != "report"}  # a page's size follows its words
    for name in (each for each, size in sizes.items() if size > 50_000):
        assert found[name].disk == pytest.approx(sizes[name], rel=0.2), name
    assert sum(found[name].disk for name in sizes) == pytest.approx(sum(sizes.values()), rel=0.2)


def test_memory_is_within_half_of_what_the_stages_took(finished: Project) -> None:
    text = measured_corpus(metrics(finished, "corpus"), metrics(finished, "tokenize"))
    params = load(finished.path / "params.yaml")
    for name, need in stage_needs(params, text).items():
        training = params.base.training if name == "base" else params.pretrain.training
        planned_memory = need.memory + training.batch_size * need.window_memory
        file = {"report": "compare"}.get(name, name.replace("@", "/"))
        took = metrics(finished, file)["usage"]["peak_memory"]
        assert took / 1.5 < planned_memory < 1.5 * took, name


def test_nothing_is_planned_where_nothing_changed(finished: Project) -> None:
    assert {each.runs for each in planned(finished).values()} == {"no"}


def test_a_changed_parameter_is_named_with_what_follows_from_it(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    project.change({"sae": {"k": 7}})
    found = planned(project)
    assert found["sae"].why == ("sae.k: 8 -> 7",)
    assert found["attribution"].why == ("after sae",)
    # Next-token prediction reads one key of what attribution writes, which will be the same.
    assert found["pretrain@ntp-0"].runs == "perhaps"
    untouched = {name for name, each in found.items() if each.runs == "no"}
    assert untouched == {"corpus", "tokenize", "base_tokens", "base", "activations", "distribution"}
    assert found["check"].why == ("sae.k: 8 -> 7",)  # it reads all parameters


def test_missing_results_changed_code_and_new_stages_are_named(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    project.change({"pretrain": {"seeds": [0, 1]}})
    (project.path / "metrics/explain.json").unlink()
    with (project.path / "stages/sae.py").open("a") as file:
        file.write("\n# A comment.\n")
    found = planned(project)
    assert found["sae"].why == ("stages/sae.py is modified",)
    assert "metrics/explain.json is missing" in found["explain"].why
    assert found["pretrain@ntp-1"].why == ("never run",)


def test_a_preset_is_planned_without_touching_anything(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    before = {path: (project.path / path).read_bytes() for path in ("params.yaml", "dvc.lock")}
    found = planned(project, "weak-to-strong")
    assert found["pretrain@kd-0"].why == ("never run",)
    assert "base.model.d_model: 32 -> 64" in found["base"].why
    assert {path: (project.path / path).read_bytes() for path in before} == before


def test_gpus_share_the_windows_of_each_stage_and_the_memory_of_a_sharded_model(
    finished: Project, tmp_path: Path
) -> None:
    project = finished.copy(tmp_path / "project")
    one, eight, many = (planned(project, "paper-1.38b", gpus) for gpus in (1, 8, 1024))
    batch_size = 1024  # presets/paper-1.38b.yaml

    def computing(stage: Planned) -> float:
        return stage.gpu_seconds - START - stage.writing_seconds

    for name in ("attribution", "evaluate@ntp-0"):
        assert computing(one[name]) == pytest.approx(8 * computing(eight[name]))
    training = "pretrain@cocomix-0"
    assert computing(one[training]) == pytest.approx(batch_size * computing(many[training]))
    assert one[training].writing_seconds == many[training].writing_seconds > 0
    assert eight["corpus"].gpu_seconds == one["corpus"].gpu_seconds  # no work for a GPU
    whole, sharded = eight[training].gpu_windows, eight[training].sharded_windows
    assert whole is not None
    assert sharded is None or sharded > whole
    assert many[training].gpu_windows is None  # one window each


def test_the_command_prints_a_table_or_json(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = finished.copy(tmp_path / "project")
    project.change({"report": {"title": "Other"}})
    monkeypatch.chdir(project.path)

    def here(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["plan", "--gpu", "a100", *options])
        main()
        return capsys.readouterr().out

    printed = project.run("python", "-m", "flows.plan", "--gpu", "a100")
    stages = json.loads(here("--json"))["stages"]
    assert "check, report: report.title: " in printed
    assert "one a100" in printed
    assert "16 a100 at 30% of the peak" in here("--gpus", "16")
    assert re.search(r"\n\d+ s of either are for checkpoints and DVC's hashes", printed)
    assert f"2 of {len(stages)} stages would run" in printed
    assert [each["stage"] for each in stages if each["runs"] == "yes"] == ["check", "report"]


OUTSIDE: dict[str, tuple[dict[str, Any], str, set[str]]] = {
    "corpus.files.paths": ({}, "texts/more.txt", {"corpus"}),
    "tokenize.pretrained": ({"tokenize": {"source": "pretrained", "pretrained": "in"}}, "in/a.json", {"tokenize"}),
    "base.pretrained": ({"base": {"source": "pretrained", "pretrained": "in"}}, "in/deep/a", {"base_tokens", "base"}),
    "sae.published.path": (
        {"sae": {"source": "published", "normalize": "none", "published": {"path": "in", "format": "sparsify"}}},
        "in/a",
        {"sae"},
    ),
    "explain.model.name": ({"explain": {"labeller": "model", "model": {"name": "in"}}}, "in/a", {"explain"}),
    "evaluate.corpora": (
        {"evaluate": {"corpora": {"more": {"paths": ["in/*.txt"]}}}},
        "in/a.txt",
        {"evaluate@ntp-0", "evaluate@cocomix-0"},
    ),
    "evaluate.tasks": (
        {"evaluate": {"tasks": ["wikitext"], "tasks_dir": "in"}},
        "in/wikitext2_raw/test.jsonl",
        {"evaluate@ntp-0", "evaluate@cocomix-0"},
    ),
}
"""Parameters that name a file or folder, a file there, and the stages that read it."""


def make_outside(project: Project, key: str) -> None:
    """What the stage `check` needs to find in the folder `in` before it accepts it as the value of the parameter."""
    folder = project.path / "in"
    match key:
        case "tokenize.pretrained":
            shutil.copytree(project.path / "artifacts/tokens/tokenizer", folder)
        case "base.pretrained" | "explain.model.name":
            shutil.copytree(project.path / "artifacts/base", folder)
        case "sae.published.path":
            params = load(project.path / "params.yaml")
            shape = {"d_model": params.base.model.d_model, "latents": params.sae.latents, "k": params.sae.k}
            site = Site.parse(params.activations.sites[0])
            save_for(SparseAutoencoder(SaeConfig(**shape, normalize="none", layer=site.layer)), folder, "sparsify")


@pytest.mark.slow
@pytest.mark.parametrize("key", OUTSIDE)
def test_what_a_parameter_names_runs_its_stages_again_when_it_changes_as_planned(
    finished: Project, tmp_path: Path, key: str
) -> None:
    changes, name, stages = OUTSIDE[key]
    stages = stages | ({"report"} if decisive_outside({key: None}) else set())  # it reads the results of sweeps
    project = finished.copy(tmp_path / "project")
    make_outside(project, key)
    path = project.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"page": "one"}\n')
    project.change(changes)
    project.dvc("repro", "check")
    before = changed(project)
    path.write_text('{"page": "two"}\n')
    found = planned(project)
    assert {each for each, plan in found.items() if f"what {key} names changed" in plan.why} == {"check"} | stages
    project.dvc("repro", "check")
    assert changed(project) == before | stages
    with chdir(project.path), Repo() as repo:
        status = repo.status()
    for each in stages:
        assert any(
            entry.get("changed deps", {}).get("artifacts/external/external.json", {}).get(key)
            for entry in status[each]
            if isinstance(entry, dict)
        )


def test_a_changed_text_is_planned_and_undone_is_not(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    path = project.path / "texts/more.txt"
    path.write_text("more")
    found = planned(project)
    assert [name for name, each in found.items() if each.why == ("what corpus.files.paths names changed",)] == [
        "check",
        "corpus",
    ]
    assert found["tokenize"].why == ("after corpus",)
    path.unlink()
    assert {each.runs for each in planned(project).values()} == {"no"}
