import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import stages.evaluate
from cocomix.attribution.labels import Labels, write_labels
from cocomix.evaluation.downstream import DocumentScore, MetricValue, TaskScore
from cocomix.evaluation.language_model import TextScore
from cocomix.modeling import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.params import EvaluateParams, EvaluationCorpusParams, Params
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.interrupt import Interrupted
from cocomix.shapes.methods import METHODS, supervision
from tests.conftest import CONTEXT, VOCAB
from tests.shipped import paper_params

SHIPPED = Path(__file__).parents[2] / "params.yaml"
CONCEPTS = 16
SHAPE = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT, "vocab_size": VOCAB}
SHAPE |= {"bos_token_id": 0, "eos_token_id": 0}


@pytest.fixture
def trained(tokens_folder: Path) -> None:
    """Labels, and untrained models of several methods."""
    with Work("attribution", Path("artifacts/concepts"), {}, {}) as work:
        labels = np.random.default_rng(0).integers(0, CONCEPTS, (24, CONTEXT, 1)).astype(np.uint16)
        with work.write("validation-00000.parquet") as pending:
            write_labels(pending.path, Labels(labels, np.ones(labels.shape, np.float16)))
            pending.rows = len(labels)
        work.finish({"concepts": CONCEPTS, "k_attr": 1, "context": CONTEXT})
        work.publish()
    with Work("methods", Path("artifacts/methods"), {}, {}) as work:
        pretrain = paper_params().pretrain
        entries = {
            name: {
                "kind": name,
                "parameters": section.model_dump(mode="json"),
                "shape": SHAPE,
                "supervision": supervision(section, Path("artifacts")),
            }
            for name, section in pretrain.listed.items()
        }
        with work.write(METHODS) as pending:
            pending.path.write_text(json.dumps(entries))
        work.finish({})
        work.publish()
    torch.manual_seed(0)
    fields = {"num_concepts": CONCEPTS, "concept_layer": 1, "concept_k": 4}
    models = {
        "ntp-0": GPT2LMHeadModel(GPT2Config(**SHAPE)),
        "cocomix-0": CoCoMixForCausalLM(CoCoMixConfig(**SHAPE, **fields)),
        "cocomix-1": CoCoMixForCausalLM(CoCoMixConfig(**SHAPE, **fields, mixing="none")),
    }
    for name, model in models.items():
        with Work(f"pretrain@{name}", Path("artifacts/models") / name, {}, {}) as work:
            with work.write_folder() as folder:
                model.save_pretrained(folder)
            work.finish({})
            work.publish()


def params(**changes: Any) -> Params:
    section = EvaluateParams(batch_size=8, intervention_windows=6).model_copy(update=changes)
    return paper_params().model_copy(update={"evaluate": section})


@pytest.fixture
def more() -> dict[str, EvaluationCorpusParams]:
    Path("more.txt").write_text("w1 w2 w3 " * 40)
    return {"more": EvaluationCorpusParams(paths=["more.txt"])}


def test_the_metrics_are_the_sums_of_the_documents(trained: None, more: dict[str, EvaluationCorpusParams]) -> None:
    stages.evaluate.run(params(corpora=more), "ntp", 0)
    metrics = json.loads(Path("metrics/evaluate/ntp-0.json").read_text())
    table = pq.read_table(Artifact(Path("artifacts/evaluations/ntp-0")).file("documents.parquet"))
    for corpus, whole in {**{each: metrics[each] for each in ("validation", "test")}, **metrics["corpora"]}.items():
        rows = table.filter(pc.equal(table["corpus"], corpus))
        loss, tokens, size = (sum(rows[each].to_pylist()) for each in ("loss", "tokens", "bytes"))
        assert whole["loss"] == pytest.approx(loss / tokens)
        assert whole["perplexity"] == pytest.approx(np.exp(whole["loss"]))
        assert whole["bits_per_byte"] == pytest.approx(loss / np.log(2) / size)
    assert set(table["corpus"].to_pylist()) == {"validation", "test", "more"}
    assert metrics["concepts"] is None
    assert metrics["tasks"] == {}


def test_concepts_are_measured_where_they_are_predicted(trained: None) -> None:
    for seed, mixes in ((0, True), (1, False)):
        stages.evaluate.run(params(), "cocomix", seed)
        concepts = json.loads(Path(f"metrics/evaluate/cocomix-{seed}.json").read_text())["concepts"]
        table = pq.read_table(Artifact(Path(f"artifacts/evaluations/cocomix-{seed}")).file("concepts.parquet"))
        assert table["concept"].to_pylist() == list(range(CONCEPTS))
        assert sum(table["labelled"].to_pylist()) == 24 * CONTEXT
        assert sum(table["predicted"].to_pylist()) == 24 * CONTEXT * 4
        assert sum(table["right"].to_pylist()) / (24 * CONTEXT) == pytest.approx(concepts["recall_at_k"])
        assert (concepts["mixing"] is not None) is mixes
        assert (concepts["ignored"] is not None) is mixes


def test_what_mixing_does_is_not_measured_on_a_single_window(trained: None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, first = stages.evaluate.WindowData, stages.evaluate.WindowLabels
    monkeypatch.setattr(
        stages.evaluate, "WindowData", lambda windows, labels: whole(windows[:1], first(labels.concepts[:1]))
    )
    stages.evaluate.run(params(), "cocomix", 0)
    assert json.loads(Path("metrics/evaluate/cocomix-0.json").read_text())["concepts"]["mixing"] is None


def test_a_model_is_measured_on_what_is_new_only(
    trained: None, more: dict[str, EvaluationCorpusParams], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    score_text, score_concepts = stages.evaluate.score_text, stages.evaluate.score_concepts

    def recorded(*arguments: Any) -> TextScore:
        measured.append(arguments[3])
        return score_text(*arguments)

    def recorded_concepts(*arguments: Any) -> Any:
        measured.append(arguments[3])
        return score_concepts(*arguments)

    monkeypatch.setattr(stages.evaluate, "score_text", recorded)
    monkeypatch.setattr(stages.evaluate, "score_concepts", recorded_concepts)
    stages.evaluate.run(params(), "cocomix", 0)
    assert measured == ["cocomix-0: validation", "cocomix-0: test", "cocomix-0: concepts"]
    before = Path("artifacts/evaluations/cocomix-0/concepts.parquet").read_bytes()
    measured.clear()
    stages.evaluate.run(params(corpora=more), "cocomix", 0)
    assert measured == ["cocomix-0: more"]
    assert Path("artifacts/evaluations/cocomix-0/concepts.parquet").read_bytes() == before
    measured.clear()
    stages.evaluate.run(params(corpora=more, stride=4), "cocomix", 0)
    assert measured == ["cocomix-0: validation", "cocomix-0: test", "cocomix-0: more"]


def test_the_saved_sums_of_one_corpus_are_not_those_of_another_that_takes_its_place(
    trained: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_text, corpora, losses = stages.evaluate.score_text, {}, {}
    for name, text in {"a": "w1 w2 w3 ", "b": "w4 w5 w6 "}.items():
        Path(f"{name}.txt").write_text(text * 40)
        corpora[name] = EvaluationCorpusParams(paths=[f"{name}.txt"])

    def stopped_after_b(*arguments: Any) -> TextScore:
        score = score_text(*arguments)
        losses[arguments[3].removeprefix("ntp-0: ")] = score.whole.loss
        if "b" in losses:
            raise Interrupted(signal.SIGTERM)
        return score

    with monkeypatch.context() as patch:
        patch.setattr(stages.evaluate, "score_text", stopped_after_b)
        with pytest.raises(Interrupted):
            stages.evaluate.run(params(corpora=corpora), "ntp", 0)
    stages.evaluate.run(params(corpora={"b": corpora["b"], "a": corpora["a"]}), "ntp", 0)
    found = json.loads(Path("metrics/evaluate/ntp-0.json").read_text())["corpora"]
    assert {name: found[name]["loss"] for name in "ab"} == {name: losses[name] for name in "ab"}


@pytest.mark.slow
def test_two_processes_measure_what_one_does(trained: None, folder: Path) -> None:
    shutil.copy2(SHIPPED, folder)
    found = []
    for processes in ("1", "2"):
        for each in ("artifacts/.measured", "artifacts/.work", "artifacts/evaluations"):
            shutil.rmtree(each, ignore_errors=True)
        settings = {"COCOMIX_PROCESSES": processes, "COCOMIX_THREADS": "1", "PYTHONPATH": str(SHIPPED.parent)}
        subprocess.run([sys.executable, "-m", "stages.evaluate", "cocomix", "0"], env=os.environ | settings, check=True)
        metrics = json.loads(Path("metrics/evaluate/cocomix-0.json").read_text())
        table = pq.read_table("artifacts/evaluations/cocomix-0/documents.parquet").to_pydict()
        found.append((metrics, table))
    (metrics, documents), (others, other_documents) = found
    for split in ("validation", "test"):
        assert others[split] == pytest.approx(metrics[split])
    assert others["concepts"].pop("mixing")["fed_others"] == pytest.approx(
        metrics["concepts"].pop("mixing")["fed_others"]
    )
    assert others["concepts"] == pytest.approx(metrics["concepts"])
    assert other_documents.pop("loss") == pytest.approx(documents.pop("loss"))
    assert other_documents == documents


def test_a_task_is_scored_once_for_a_model_and_its_examples(trained: None, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[str] = []
    score_tasks = stages.evaluate.score_tasks

    def recorded(*arguments: Any, **more: Any) -> list[TaskScore]:
        scored.extend(arguments[2])
        return score_tasks(*arguments, **more)

    def evaluate(**changes: Any) -> dict[str, Any]:
        scored.clear()
        stages.evaluate.run(params(tasks=["arc_easy"], tasks_dir="tasks", **changes), "ntp", 0)
        return json.loads(Path("metrics/evaluate/ntp-0.json").read_text())["tasks"]["arc_easy"]

    choices = {"text": ["w4", "w5 w6"], "label": ["A", "B"]}
    rows = [{"question": f"w{n} w3", "choices": choices, "answerKey": "AB"[n % 2]} for n in range(4)]
    file = Path("tasks/arc_easy/test.jsonl")
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(stages.evaluate, "score_tasks", recorded)
    first = evaluate()
    assert scored == ["arc_easy"]
    table = pq.read_table(Artifact(Path("artifacts/evaluations/ntp-0")).file("tasks.parquet"))
    assert np.mean(table["correct"].to_numpy()) == first["metrics"]["acc"]["value"]
    assert np.mean(table["log_likelihood"].to_numpy()) == pytest.approx(first["log_likelihood"]["value"])
    assert evaluate(stride=4) == first
    assert scored == []
    evaluate(task_limit=3)
    assert scored == ["arc_easy"]
    file.write_text(file.read_text().replace("w3", "w7"))
    assert evaluate() != first
    assert scored == ["arc_easy"]


def test_a_task_that_is_named_by_itself_and_in_a_group_counts_once(
    trained: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(_model: object, _tokenizer: object, wanted: list[str], **_: object) -> list[TaskScore]:
        tasks = ["arc_easy", "arc_challenge"] if wanted == ["ai2_arc"] else wanted
        documents = [DocumentScore(each, 1.0, -1.0, None, 1.0) for each in range(3)]
        return [TaskScore(task, "acc", {"acc": MetricValue(1.0, 0.0)}, None, None, 0, documents) for task in tasks]

    monkeypatch.setattr(stages.evaluate, "task_digest", lambda *_: "")
    monkeypatch.setattr(stages.evaluate, "score_tasks", score)
    stages.evaluate.run(params(tasks=["arc_easy", "ai2_arc"]), "ntp", 0)
    table = pq.read_table(Artifact(Path("artifacts/evaluations/ntp-0")).file("tasks.parquet"))
    assert table["task"].to_pylist() == ["arc_easy"] * 3 + ["arc_challenge"] * 3
