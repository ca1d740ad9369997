"""Downstream tasks, against lm-eval alone on the same examples."""

import importlib.util
import json
import math
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedModel

from cocomix.evaluation import downstream
from cocomix.evaluation.downstream import DocumentScore, TaskScore, score_tasks
from cocomix.evaluation.downstream_tasks import PAPER_TASKS, task_digest
from cocomix.evaluation.tables import write_tasks
from cocomix.models.card import Trained
from cocomix.plumbing.errors import UserError
from cocomix.tokens.windows import TextOrigin
from stages.pretrain import write_model
from tests.evaluation.downstream_project import (
    CONTEXT,
    byte_tokenizer,
    cocomix,
    gpt2,
    write_definitions,
    write_examples,
)

MODELS = {"gpt2": gpt2, "cocomix": cocomix}


@pytest.fixture(scope="module")
def tasks_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_examples(tmp_path_factory.mktemp("tasks"))


def ours(model: PreTrainedModel, tasks_dir: Path, *tasks: str, limit: int | None = None) -> dict[str, TaskScore]:
    chosen = tasks or tuple(PAPER_TASKS)
    scores = score_tasks(
        model, byte_tokenizer(), chosen, tasks_dir=tasks_dir, limit=limit, batch_size=2, name="a model"
    )
    return {score.task: score for score in scores}


@pytest.fixture(scope="module", params=MODELS)
def both(request: pytest.FixtureRequest, tasks_dir: Path) -> tuple[dict[str, TaskScore], dict[str, Any]]:
    """The scores, and what lm-eval makes of the same model and examples by itself."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = MODELS[request.param]()
    definitions = write_definitions(tasks_dir.parent / f"{tasks_dir.name}-{request.param}", tasks_dir)
    lm = HFLM(pretrained=model, tokenizer=byte_tokenizer(), backend="causal", batch_size=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)  # asks pip, which takes seconds
        alone = simple_evaluate(
            model=lm,
            tasks=[f"local_{name}" for name in PAPER_TASKS],
            task_manager=TaskManager(include_path=str(definitions), include_defaults=False),
            bootstrap_iters=200,
        )
    return ours(model, tasks_dir), alone


def test_a_micro_batch_bounds_the_tokens_at_a_time(tasks_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = gpt2(), list[int]()
    model.transformer.wte.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].numel()))
    monkeypatch.setenv("COCOMIX_MICRO_BATCH", "1")
    ours(model, tasks_dir, "wikitext")
    assert max(read) == CONTEXT


def test_the_metrics_are_lm_evals(both: tuple[dict[str, TaskScore], dict[str, Any]]) -> None:
    scores, reference = both
    assert set(scores) == set(PAPER_TASKS)
    for name, score in scores.items():
        theirs = reference["results"][f"local_{name}"]
        values = {
            key.partition(",")[0]: each for key, each in theirs.items() if key.endswith(",none") and "stderr" not in key
        }
        assert {metric: figure.value for metric, figure in score.metrics.items()} == pytest.approx(values, rel=1e-4)
        assert score.metric in score.metrics


def test_standard_errors_of_means_are_lm_evals(both: tuple[dict[str, TaskScore], dict[str, Any]]) -> None:
    scores, reference = both
    for name, score in scores.items():
        for metric in ("acc", "acc_norm"):
            if metric in score.metrics:
                theirs = reference["results"][f"local_{name}"][f"{metric}_stderr,none"]
                assert score.metrics[metric].standard_error == pytest.approx(theirs)


def test_the_likelihood_of_the_right_answer_is_that_of_lm_evals_samples(
    both: tuple[dict[str, TaskScore], dict[str, Any]],
) -> None:
    scores, reference = both
    for name in ("hellaswag", "piqa", "social_iqa", "arc_easy", "winogrande"):
        samples = reference["samples"][f"local_{name}"]
        for document, sample in zip(scores[name].documents, samples, strict=True):
            given = [total for total, _ in sample["filtered_resps"]]
            number = int(sample["doc"]["answer"]) - 1 if name == "winogrande" else int(sample["target"])
            assert document.document == sample["doc_id"]
            assert document.log_likelihood == pytest.approx(given[number], rel=1e-4)
            if name != "hellaswag":
                assert document.margin == pytest.approx(
                    given[number] - max(given[:number] + given[number + 1 :]), rel=1e-3, abs=1e-3
                )
    for name in ("lambada_openai", "wikitext"):
        given = [each["filtered_resps"][0] for each in reference["samples"][f"local_{name}"]]
        likelihoods = [each[0] if isinstance(each, (tuple, list)) else each for each in given]
        assert [each.log_likelihood for each in scores[name].documents] == pytest.approx(likelihoods, rel=1e-4)


def test_the_margin_is_positive_where_the_answer_counts_as_right(
    both: tuple[dict[str, TaskScore], dict[str, Any]],
) -> None:
    scores, _ = both
    for name in ("hellaswag", "piqa", "social_iqa", "arc_easy", "winogrande"):
        assert [each.margin > 0 for each in scores[name].documents] == [bool(e.correct) for e in scores[name].documents]
        assert np.mean([each.correct for each in scores[name].documents]) == pytest.approx(
            scores[name].metrics[PAPER_TASKS[name].metric].value
        )


def test_figures_follow_from_the_documents(both: tuple[dict[str, TaskScore], dict[str, Any]]) -> None:
    scores, _ = both
    for name, metric in (("lambada_openai", "perplexity"), ("wikitext", "word_perplexity")):
        documents = scores[name].documents
        mean = sum(each.log_likelihood for each in documents) / sum(each.weight for each in documents)
        assert scores[name].log_likelihood.value == pytest.approx(mean)
        assert scores[name].metrics[metric].value == pytest.approx(math.exp(-mean))
        assert scores[name].metrics[metric].standard_error == pytest.approx(
            scores[name].log_likelihood.standard_error * math.exp(-mean)
        )
    values = [each.log_likelihood for each in scores["piqa"].documents]
    found = scores["piqa"].log_likelihood
    assert found.value == pytest.approx(np.mean(values))
    assert found.standard_error == pytest.approx(np.std(values, ddof=1) / math.sqrt(6))


def test_what_does_not_fit_the_context_is_counted(tasks_dir: Path) -> None:
    scores = ours(gpt2(), tasks_dir, "lambada_openai", "arc_easy")
    tokens = [len(json.loads(line)["text"]) - 1 for line in (tasks_dir / "lambada_openai/test.jsonl").open()]
    assert scores["lambada_openai"].cut == sum(count > CONTEXT for count in tokens) > 0
    assert scores["arc_easy"].cut == 0


def test_documents_are_rows_of_a_table(tasks_dir: Path, tmp_path: Path) -> None:
    scores = ours(gpt2(), tasks_dir, "piqa", "lambada_openai", limit=3)
    assert write_tasks(tmp_path / "tasks.parquet", list(scores.values())) == 6
    table = pq.read_table(tmp_path / "tasks.parquet")
    assert table.column_names == ["task", *DocumentScore._fields]
    assert table["task"].to_pylist() == ["piqa"] * 3 + ["lambada_openai"] * 3
    assert table["document"].to_pylist() == [0, 1, 2] * 2
    assert table["margin"].null_count == 3


def test_a_limit_takes_the_first_documents(tasks_dir: Path) -> None:
    whole, part = ours(gpt2(), tasks_dir, "piqa"), ours(gpt2(), tasks_dir, "piqa", limit=4)
    expected = [each.log_likelihood for each in whole["piqa"].documents[:4]]
    assert [each.log_likelihood for each in part["piqa"].documents] == pytest.approx(expected, rel=1e-5)


def test_a_task_is_asked_zero_shot_and_what_the_model_writes_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setitem(
        PAPER_TASKS, "gsm8k", PAPER_TASKS["piqa"]._replace(metric="exact_match", definition="gsm8k", data="gsm8k")
    )
    (tmp_path / "gsm8k").mkdir()
    rows = [{"question": f"What is {n} and {n}?", "answer": f"Both. #### {2 * n}"} for n in range(7)]
    (tmp_path / "gsm8k/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts, written = list[str](), list[str]()
    generate = HFLM.generate_until

    def write(lm: HFLM, requests: list[Any], **options: Any) -> list[str]:
        for each in requests:
            prompts.append(each.args[0])
            each.args[1]["max_gen_toks"] = 3
        written.extend(generate(lm, requests, **options))
        return [row["answer"] if n else "#### 1" for n, row in enumerate(rows)]

    monkeypatch.setattr(HFLM, "generate_until", write)
    score = ours(gpt2(), tmp_path, "gsm8k")["gsm8k"]
    assert prompts == [f"Question: {row['question']}\nAnswer:" for row in rows]
    assert list(map(type, written)) == [str] * len(rows)
    assert score.metric == "exact_match"
    assert score.metrics["exact_match"].value == pytest.approx(6 / 7)
    assert [each.correct for each in score.documents] == [0.0] + [1.0] * 6
    assert score.log_likelihood is None


def test_an_empty_answer_is_one_line_that_names_the_task() -> None:
    from lm_eval.api.instance import Instance

    from cocomix.evaluation.downstream_lm import DownstreamLM

    lm = DownstreamLM(gpt2(), byte_tokenizer(), 1)
    lm.task = "a model: piqa"
    requests = [Instance("loglikelihood", {}, ("He saw", answer), n) for n, answer in enumerate((" it", ""))]
    with pytest.raises(UserError, match=r"a model: piqa: an answer is empty: .* after 'He saw'"):
        lm.loglikelihood(requests)


def test_lm_eval_gets_the_model_on_the_device_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    from cocomix.evaluation import downstream_lm

    devices: list[str] = []

    def made(model: PreTrainedModel, *others: Any) -> None:
        devices.append(model.device.type)

    monkeypatch.setattr(downstream, "device", lambda: torch.device("meta"))
    monkeypatch.setattr(downstream_lm, "DownstreamLM", made)
    score_tasks(gpt2(), byte_tokenizer(), [], tasks_dir=None, limit=None, batch_size=1, name="a model")
    assert devices == ["meta"]


def test_local_tasks_need_no_network_and_print_nothing_but_our_progress(
    tasks_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    ours(gpt2(), tasks_dir, "piqa")
    out, err = capfd.readouterr()
    assert out == ""
    assert [line.split(":")[0] for line in err.splitlines()] == ["a model"]
    assert "piqa: 100% 12/12" in err, err


def test_a_missing_file_is_one_line_that_names_it(tasks_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hellaswag/validation\.jsonl: no such file, .* of hellaswag"):
        ours(gpt2(), tmp_path, "hellaswag")


@pytest.mark.parametrize(
    ("line", "complaint"), [("{", r"test\.jsonl:1: not JSON"), ('{"a": 1}', r"test\.jsonl: not what arc_easy reads")]
)
def test_a_file_of_something_else_is_one_line_that_names_it(tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "arc_easy").mkdir()
    (tmp_path / "arc_easy/test.jsonl").write_text(f"{line}\n")
    with pytest.raises(UserError, match=complaint) as raised:
        ours(gpt2(), tmp_path, "arc_easy")
    assert "\n" not in str(raised.value)


def test_the_digest_follows_the_examples(tasks_dir: Path, tmp_path: Path) -> None:
    other = write_examples(tmp_path)
    assert task_digest("piqa", tasks_dir) == task_digest("piqa", other)
    with (other / "piqa/validation.jsonl").open("a") as file:
        file.write("\n")
    assert task_digest("piqa", tasks_dir) != task_digest("piqa", other)


def test_without_lm_eval_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r'install -c constraints\.txt -e "\.\[eval\]"'):
        score_tasks(gpt2(), byte_tokenizer(), ["piqa"], tasks_dir=None, limit=None, batch_size=1, name="a model")


@pytest.mark.slow
def test_any_other_task_of_lm_eval_is_known_and_a_near_name_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'hellaswagg': lm-eval [\d.]+ has no such task; did you mean 'hellaswag'\?"):
        ours(gpt2(), tmp_path, "hellaswagg")
    (tmp_path / "copa").mkdir()
    rows = [
        {"premise": "It rained.", "question": "effect", "choice1": "We got wet.", "choice2": "We ate.", "label": n}
        for n in (0, 1)
    ]
    (tmp_path / "copa/validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score = ours(gpt2(), tmp_path, "copa")["copa"]
    assert score.metric == "acc"
    assert score.metrics["acc"].value == 0.5
    with pytest.raises(UserError, match="mmlu: a group"):
        ours(gpt2(), tmp_path, "mmlu")


WITHOUT_THE_PACKAGE = """
import sys
from importlib.abc import MetaPathFinder


class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "cocomix":
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Blocked())
from lm_eval.__main__ import cli_evaluate

cli_evaluate()
"""


@pytest.mark.slow
def test_a_person_who_has_only_lm_eval_gets_the_same_numbers(tasks_dir: Path, tmp_path: Path) -> None:
    model = cocomix()
    trained = Trained("cocomix-0", "cocomix", TextOrigin("files"), CONTEXT, tokens=1, flops=1.0, validation_loss=1.0)
    write_model(tmp_path / "model", model, byte_tokenizer(), trained)
    definitions = write_definitions(tmp_path / "definitions", tasks_dir)
    command = ["--model", "hf", "--model_args", f"pretrained={tmp_path / 'model'},trust_remote_code=True"]
    command += ["--tasks", "local_piqa,local_lambada_openai,local_wikitext", "--include_path", str(definitions)]
    command += ["--device", "cpu", "--batch_size", "4", "--output_path", str(tmp_path / "out")]
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_THE_PACKAGE, "run", *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "out").glob("**/results*.json")
    theirs = json.loads(file.read_text())["results"]
    scores = ours(model, tasks_dir, "piqa", "lambada_openai", "wikitext")
    for name, score in scores.items():
        for metric, figure in score.metrics.items():
            assert figure.value == pytest.approx(theirs[f"local_{name}"][f"{metric},none"], rel=1e-4)
