"""The whole pipeline, at smoke size."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from dvc.repo import Repo

from cocomix.plumbing.artifact import Artifact
from cocomix.sae.autoencoder import SparseAutoencoder
from cocomix.tokens.windows import Tokens
from tests.stages.project import Project

ALL = {
    *("corpus", "tokenize", "base_tokens", "base", "activations", "sae", "attribution", "distribution", "explain"),
    *("methods", "steer", "report"),
    *(f"{stage}@{method}-0" for stage in ("pretrain", "evaluate") for method in ("ntp", "cocomix")),
}


def ran(output: str) -> set[str]:
    """Stages that `dvc repro` ran, from what it printed, besides `check`, which it always runs."""
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")} - {"check"}


def changed(project: Project) -> set[str]:
    """Stages that something changed for, directly, besides `check`."""
    with chdir(project.path), Repo() as repo:
        return set(repo.status()) - {"check"}


@pytest.fixture(scope="module")
def shared(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy for tests that change a file for a while: DVC reads all files of each copy once."""
    return finished.copy(tmp_path_factory.mktemp("shared") / "project")


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """Give a file its content back."""
    content = path.read_bytes()
    try:
        yield
    finally:
        path.write_bytes(content)


def artifacts(project: Project) -> list[Path]:
    return sorted(
        each.parent for each in (project.path / "artifacts").glob("**/manifest.json") if ".work" not in each.parts
    )


def test_every_artifact_opens_and_verifies(finished: Project) -> None:
    found = artifacts(finished)
    assert [str(each.relative_to(finished.path / "artifacts")) for each in found] == sorted(
        [
            *(
                "activations",
                "atlas",
                "base",
                "base_tokens",
                "concepts",
                "corpus",
                "distribution",
                "evaluations/cocomix-0",
                "evaluations/ntp-0",
                "external",
                "methods",
                "models/cocomix-0",
                "models/ntp-0",
                "report",
                "sae",
                "steering",
                "tokens",
            ),
        ]
    )
    for path in found:
        Artifact(path).verified()


def test_the_report_can_be_read(finished: Project) -> None:
    assert "<html" in (finished.path / "artifacts/report/index.html").read_text()
    assert "CoCoMix" in (finished.path / "artifacts/report/summary.txt").read_text()


def test_a_second_run_runs_nothing(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    assert ran(project.dvc("repro")) == set()
    with chdir(project.path), Repo() as repo:
        assert repo.status() == {"check": ["always changed"]}


@pytest.mark.parametrize(
    ("overrides", "stages"),
    [
        ({"corpus": {"megabytes": 0.1}}, {"corpus"}),
        ({"tokenize": {"context": 16}}, {"tokenize"}),
        ({"base": {"seed": 1}}, {"base"}),
        ({"base": {"revision": "a"}}, {"base_tokens", "base"}),
        ({"activations": {"sites": ["resid_post_1"]}}, {"activations"}),
        ({"sae": {"k": 7}}, {"sae"}),
        ({"attribution": {"sign": "helpful"}}, {"attribution"}),
        ({"distribution": {"draws": 40}}, {"distribution"}),
        ({"explain": {"contexts": 11}}, {"explain"}),
        ({"pretrain": {"cocomix": {"concept_weight": 0.2}}}, {"methods"}),
        ({"pretrain": {"kd": {"kl_weight": 0.2}}}, {"methods"}),
        ({"pretrain": {"match": "flops"}}, {"methods"}),
        ({"pretrain": {"training": {"steps": 61}}}, {"pretrain@ntp-0", "pretrain@cocomix-0"}),
        ({"pretrain": {"methods": ["ntp"]}}, {"methods"}),
        (
            {"pretrain": {"seeds": [0, 1]}},
            {"steer"} | {f"{stage}@{method}-1" for stage in ("pretrain", "evaluate") for method in ("ntp", "cocomix")},
        ),
        ({"evaluate": {"batch_size": 31}}, {"evaluate@ntp-0", "evaluate@cocomix-0"}),
        ({"steer": {"concepts": 3}}, {"steer"}),
        ({"report": {"title": "Other"}}, set()),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_parameter_touches_exactly_its_stages_and_the_report_which_lists_it(
    shared: Project, overrides: dict[str, Any], stages: set[str]
) -> None:
    with kept(shared.path / "params.yaml"):
        shared.change(overrides)
        found = changed(shared)
    assert found == stages | {"report"}


@pytest.mark.parametrize(
    ("path", "stages"),
    [
        ("cocomix/plumbing/progress.py", set()),
        ("stages/stage.py", set()),
        ("params.yaml", set()),
        ("cocomix/models/card.py", set()),
        ("cocomix/training/tensorboard.py", set()),
        ("cocomix/sae/export.py", set()),
        ("cocomix/attribution/agreement.py", set()),
        ("stages/sae.py", {"sae"}),
        ("stages/pretrain.py", {"pretrain@ntp-0", "pretrain@cocomix-0"}),
        ("cocomix/activations/store.py", {"activations", "sae"}),
    ],
)
def test_a_source_file_touches_exactly_its_stages(shared: Project, path: str, stages: set[str]) -> None:
    with kept(shared.path / path):
        with (shared.path / path).open("a") as file:
            file.write("\n# A comment.\n")
        found = changed(shared)
    assert found == stages


def test_a_reworded_docstring_trains_nothing_again_and_reruns_nothing_downstream(
    finished: Project, tmp_path: Path
) -> None:
    project, code, stage = finished.copy(tmp_path / "project"), "cocomix/modeling/kernels.py", "pretrain@cocomix-0"
    path = project.path / code
    path.write_text(path.read_text().replace('"""', '"""Reworded. ', 1))
    said = project.run("sh", "-c", f"python -m dvc repro --single-item {stage} 2>&1")
    assert ran(said) == {stage}
    assert f"{stage}: already computed, publishing it" in said.splitlines()
    with chdir(project.path), Repo() as repo:
        status = repo.status()
    assert stage not in status
    # What is made from the model has no other reason to run than the file itself.
    assert status["evaluate@cocomix-0"] == status["steer"] == [{"changed deps": {code: "modified"}}]


@pytest.mark.slow
def test_new_concepts_rerun_what_learns_from_them_and_only_that(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    project.change({"sae": {"k": 7}})
    again = {"sae", "attribution", "explain", "methods", "pretrain@cocomix-0", "evaluate@cocomix-0", "steer", "report"}
    assert ran(project.dvc("repro")) == again
    assert changed(project) == set()


def test_autoencoders_beside_the_first_are_kept_and_measured_and_leave_it_as_it_is(
    finished: Project, tmp_path: Path
) -> None:
    project = finished.copy(tmp_path / "project")
    project.change({"sae": {"also": {"narrow": {"latents": 64, "k": 4}}}})
    project.stage_here("sae")
    weights = [each / "artifacts/sae/sae.safetensors" for each in (finished.path, project.path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    narrow = SparseAutoencoder.load(project.path / "artifacts/sae/also/narrow")
    assert (narrow.config.latents, narrow.config.k) == (64, 4)
    metrics = json.loads((project.path / "metrics/sae.json").read_bytes())
    assert metrics["l0"] > metrics["also"]["narrow"]["l0"] == pytest.approx(4)


def train_and_evaluate(project: Project, method: str) -> dict[str, Any]:
    """The metrics of `evaluate`, the stages of seed 0 run as DVC would run them."""
    for name, *item in (["methods"], ["pretrain", method, 0], ["evaluate", method, 0]):
        project.stage_here(name, *item)
    metrics: dict[str, Any] = json.loads((project.path / f"metrics/evaluate/{method}-0.json").read_text())
    return metrics


UNIFORM = math.log(512)
"""The loss of a model that has learnt nothing."""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kd", "pause", "mtp"])
def test_the_other_methods_learn_too(finished: Project, tmp_path: Path, method: str) -> None:
    project = finished.copy(tmp_path / "project")
    project.change({"pretrain": {"methods": [method]}})
    metrics = train_and_evaluate(project, method)
    assert metrics["validation"]["loss"] < UNIFORM - 0.5
    assert metrics["concepts"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cocomix", "has_concepts"),
    [
        ({"predicts": "hidden"}, False),
        ({"predicts": "hidden", "mixing": "none", "hidden_loss": "cosine"}, False),
        ({"mixing": "none"}, True),
        ({"mixing": "add"}, True),
        ({"mixing": "interleave_with_state", "stop_gradient": True}, True),
        ({"concept_weight": 0.0, "concept_head": "equations"}, True),
    ],
)
def test_every_ablation_learns(finished: Project, tmp_path: Path, cocomix: dict[str, Any], has_concepts: bool) -> None:
    project = finished.copy(tmp_path / "project")
    project.change({"pretrain": {"cocomix": cocomix}})
    metrics = train_and_evaluate(project, "cocomix")
    assert metrics["validation"]["loss"] < UNIFORM - 0.5
    assert (metrics["concepts"] is not None) == has_concepts


def test_match_sets_the_width_of_the_methods_that_have_no_second_path(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    widths = {}
    for match in ("width", "flops"):
        methods = ["ntp", "kd", "pause", "mtp", "cocomix"]
        project.change({"pretrain": {"match": match, "methods": methods, "kd": {"source": "online"}}})
        project.stage_here("methods")
        found = json.loads((project.path / "artifacts/methods/methods.json").read_text())
        widths[match] = {name: each["shape"]["n_embd"] for name, each in found.items()}
    assert set(widths["width"].values()) == {32}
    assert widths["flops"]["cocomix"] == widths["flops"]["pause"] == 32
    assert widths["flops"]["ntp"] > 32 >= widths["flops"]["kd"]  # distillation also pays for the base model
    assert widths["flops"]["ntp"] > widths["flops"]["mtp"]  # which pays for further blocks and heads


def test_what_the_model_makes_of_each_concept_is_counted_as_its_evaluation_counts_it(
    finished: Project, tmp_path: Path
) -> None:
    project = finished.copy(tmp_path / "project")
    measured = set((project.path / "artifacts/.measured").iterdir())
    windows = Tokens(project.path / "artifacts/tokens").windows("validation")
    project.change({"steer": {"read_windows": len(windows) + 1}})  # all there are, as the evaluation
    project.stage_here("steer")
    # The steering, which does not depend on them, is not measured again.
    new = set((project.path / "artifacts/.measured").iterdir()) - measured
    assert [json.loads(each.read_text())["kind"] for each in new] == ["predicted"]
    read = pq.read_table(project.path / "artifacts/steering/predicted.parquet").to_pydict()
    evaluated = pq.read_table(project.path / "artifacts/evaluations/cocomix-0/concepts.parquet").to_pydict()
    assert set(read["positions"]) == {windows.size}
    assert set(read["model"]) == {"cocomix-0"}
    for name, other in (
        ("concept", "concept"),
        ("predictions", "predicted"),
        ("right", "right"),
        ("labelled", "labelled"),
    ):
        assert read[name] == evaluated[other]
    for concept, predictions in enumerate(read["predictions"]):
        assert bool(predictions) == bool(read["contexts"][concept])


FORMS = {
    "predicted": {"mixing": "none"},
    "added": {"mixing": "add", "concept_weight": 0.5, "kd": {"source": "cached", "kl_weight": 1.0}},
}
"""Of cocomix: one whose weight is cocomix's, and one with its own, which learns from draws too."""


def test_forms_are_made_beside_the_others_and_each_runs_again_only_with_what_it_is(
    finished: Project, tmp_path: Path
) -> None:
    project = finished.copy(tmp_path / "project")
    made = {f"{stage}@{name}-0" for stage in ("pretrain", "evaluate") for name in FORMS}
    project.change({"pretrain": {"methods": ["ntp", "predicted", "added", "cocomix"], "forms": FORMS}})
    assert ran(project.dvc("repro", "methods")) == {"methods"}
    assert changed(project) == made | {"steer", "report"}
    assert ran(project.dvc("repro", "--single-item", "pretrain@added-0")) == {"pretrain@added-0"}
    project.stage_here("pretrain", "predicted", 0)
    for name in FORMS:
        project.stage_here("evaluate", name, 0)
    project.stage_here("steer")
    project.stage_here("report")
    with chdir(project.path), Repo() as repo:
        repo.commit(force=True)
    steered = pq.read_table(project.path / "artifacts/steering/effects.parquet")["sweep"].unique().to_pylist()
    assert steered == ["added_set", "added_scale", "cocomix_set", "cocomix_scale", "base_set"]
    compared = json.loads((project.path / "metrics/compare.json").read_text())["methods"]
    assert list(compared) == ["ntp", "predicted", "added", "cocomix"]
    assert compared["predicted"]["concepts"]["mixing"] is None
    assert compared["predicted"]["supervision"] == compared["cocomix"]["supervision"]
    summary = (project.path / "artifacts/report/summary.txt").read_text()
    assert 'The form "predicted" is CoCoMix with mixing: none.' in summary
    project.change({"pretrain": {"cocomix": {"concept_weight": 0.2}}})
    project.dvc("repro", "methods")
    assert changed(project) == {
        *("pretrain@cocomix-0", "evaluate@cocomix-0", "pretrain@predicted-0", "evaluate@predicted-0"),
        *("steer", "report"),
    }


def test_a_method_that_is_listed_besides_trains_no_other_again(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    project.change({"pretrain": {"methods": ["kd", "cocomix", "ntp"], "forms": FORMS}})
    project.dvc("repro", "methods")
    assert changed(project) == {"pretrain@kd-0", "evaluate@kd-0", "steer", "report"}


def test_without_a_model_that_mixes_concepts_nothing_is_steered(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    project.change({"pretrain": {"methods": ["ntp"]}})
    project.dvc("repro", "methods")
    assert changed(project) == {"steer", "report"}
    project.stage_here("steer")
    project.stage_here("report")
    assert json.loads((project.path / "metrics/steer.json").read_text()).keys() == {"artifact", "plots", "usage"}
    assert pq.read_table(project.path / "artifacts/steering/predicted.parquet").num_rows == 0
    assert "changing them" not in (project.path / "artifacts/report/index.html").read_text()


def test_an_altered_input_is_refused_in_one_line_and_the_remedy_works(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project", linked=False)
    project.dvc("checkout", "--relink")
    shutil.rmtree(project.path / "artifacts/.work/base")
    path = project.path / "artifacts/tokens/train.npy"
    assert path.stat().st_nlink > 1, "the cache should share the file, and so its damage"
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"damage")
    path.chmod(0o444)
    done = project.stage("base")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: artifacts/tokens/train.npy: altered since it was written (its digest differs); "
        "remove artifacts/tokens and run the stage 'tokenize' again\n"
    )
    shutil.rmtree(project.path / "artifacts/tokens")
    project.dvc("repro", "--single-item", "tokenize")
    assert path.read_bytes() == (finished.path / "artifacts/tokens/train.npy").read_bytes()
