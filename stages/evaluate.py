"""Stage `evaluate`: evaluate one trained language model: `python -m stages.evaluate METHOD SEED`."""

if __name__ == "__main__":
    from stages.stage import share_work

    share_work()

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from cocomix.attribution.labels import ConceptLabels
from cocomix.corpus.splits import EVALUATED
from cocomix.evaluation import concepts, corpora, downstream, language_model, mixing
from cocomix.evaluation.concepts import ConceptScores, score_concepts
from cocomix.evaluation.corpora import corpus_digest, read_corpus
from cocomix.evaluation.downstream import TaskScore, score_tasks
from cocomix.evaluation.downstream_tasks import task_digest
from cocomix.evaluation.examples import choose_examples
from cocomix.evaluation.language_model import TextScore, score_text
from cocomix.evaluation.mixing import MixingScore, score_mixing
from cocomix.evaluation.tables import write_concepts, write_documents, write_examples, write_tasks, write_writings
from cocomix.evaluation.text import EvaluationText, split_text
from cocomix.evaluation.writing import write_on
from cocomix.modeling import CoCoMixLanguageModel
from cocomix.params import CocomixParams, EvaluateParams, Params
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.device import attention
from cocomix.plumbing.once import once
from cocomix.plumbing.origins import check_origins
from cocomix.plumbing.runtime import runtime
from cocomix.shapes.methods import read_method
from cocomix.tokens.window_data import WindowData, WindowLabels
from cocomix.tokens.windows import Tokens
from stages.matrix import matrix_item
from stages.stage import ARTIFACTS, main, produce, to_json


class TextSource(NamedTuple):
    """A text to evaluate on."""

    digest: str
    """Identifies the text, together with the tokens artifact."""
    read: Callable[[], EvaluationText]


def run(params: Params, method: str, seed: int) -> None:
    """Make artifacts/evaluations/<method>-<seed>; earlier measurements are reused, see `once`."""
    name, section = f"{method}-{seed}", params.evaluate
    tokens, trained = Tokens(ARTIFACTS / "tokens"), Artifact(ARTIFACTS / "models" / name)
    labels, methods = Artifact(ARTIFACTS / "concepts"), Artifact(ARTIFACTS / "methods")
    listed = read_method(methods, method)
    learned = {f"supervision.{method}": listed.supervision}
    if listed.kind == "cocomix":
        check_origins({"tokens": tokens.artifact, "concepts": labels, "methods": methods})
    key = {"model": trained.digest, "tokens": tokens.artifact.digest}
    sources = {split: TextSource(split, partial(split_text, tokens, split)) for split in EVALUATED} | {
        corpus: TextSource(corpus_digest(corpus, chosen, tokens), partial(read_corpus, corpus, chosen, tokens))
        for corpus, chosen in section.corpora.items()
    }
    tasks_dir = None if section.tasks_dir is None else Path(section.tasks_dir)
    tasks = {task: task_digest(task, tasks_dir) for task in section.tasks}

    def compute(work: Work) -> dict[str, Any]:
        model = AutoModelForCausalLM.from_pretrained(
            trained.verified(), dtype=torch.float32, attn_implementation=attention(tokens.context)
        )

        def score(corpus: str, source: TextSource) -> TextScore:
            def measure() -> TextScore:
                kept, text = work.scratch / f"text-{source.digest}", source.read()
                work.confirm_inputs()
                return score_text(model, text, section.batch_size, f"{name}: {corpus}", section.stride, kept)

            what = key | {"text": source.digest, "stride": section.stride}
            return once("text", what, measure, TextScore, language_model.__file__, corpora.__file__)

        def score_task(task: str) -> list[TaskScore]:
            def measure() -> list[TaskScore]:
                limit, batch_size = section.task_limit, section.batch_size
                scores = score_tasks(
                    model,
                    tokens.tokenizer(),
                    [task],
                    tasks_dir=tasks_dir,
                    limit=limit,
                    batch_size=batch_size,
                    name=name,
                    kept=work.scratch / "task",
                )
                work.confirm_inputs()
                return scores

            what = {"model": trained.digest, "task": task, "data": tasks[task], "limit": section.task_limit}
            return once("task", what, measure, list[TaskScore], downstream.__file__)

        scores = {corpus: score(corpus, source) for corpus, source in sources.items()}
        # A task that is listed both by itself and in a group counts once.
        on_tasks = list({each.task: each for task in tasks for each in score_task(task)}.values())
        concept_metrics = None
        if isinstance(model, CoCoMixLanguageModel) and model.config.predicts == "concepts":
            of_windows = ConceptLabels(labels).unpack(tokens, "validation", work.scratch / "labels.npy")
            assert isinstance(listed.parameters, CocomixParams)
            of_positions = WindowLabels(of_windows, offsets=tuple(listed.parameters.label_offsets))
            data = WindowData(tokens.windows("validation"), of_positions)
            concept_metrics = _concepts(model, data, tokens, key | learned, section, name, work)
        if runtime().rank == 0:
            with work.write("documents.parquet") as pending:
                pending.rows = write_documents(
                    pending.path, {corpus: each.documents for corpus, each in scores.items()}
                )
            if tasks:
                with work.write("tasks.parquet") as pending:
                    pending.rows = write_tasks(pending.path, on_tasks)
            with work.write("writings.parquet") as pending:
                pending.rows = write_writings(pending.path, write_on(model, tokens.windows("validation")))
            whole = {corpus: asdict(each.whole) for corpus, each in scores.items()}
            metrics: dict[str, Any] = {
                "method": method,
                "seed": seed,
                **{split: whole[split] for split in EVALUATED},
                "corpora": {corpus: whole[corpus] for corpus in section.corpora},
                "concepts": concept_metrics,
                "tasks": {each.task: _without_documents(each) for each in on_tasks},
            }
            (work.side / "metrics.json").write_bytes(to_json(metrics))
        return {"method": method, "seed": seed}

    inputs: dict[str, Artifact | str] = {f"models/{name}": trained, "tokens": tokens.artifact} | learned
    inputs |= {f"corpora.{corpus}": sources[corpus].digest for corpus in section.corpora}
    inputs |= {f"tasks.{task}": digest for task, digest in tasks.items()}
    used = {"method": method, "seed": seed, **section.model_dump()}
    side = {"metrics.json": Path("metrics/evaluate") / f"{name}.json"}
    produce(f"evaluate@{name}", ARTIFACTS / "evaluations" / name, inputs, used, compute, side)


def _without_documents(score: TaskScore) -> dict[str, Any]:
    content = asdict(replace(score, documents=[]))
    del content["documents"]
    return content


def _concepts(
    model: CoCoMixLanguageModel,
    data: WindowData,
    tokens: Tokens,
    key: Mapping[str, str],
    section: EvaluateParams,
    name: str,
    work: Work,
) -> dict[str, Any]:
    """Write concepts.parquet and examples.parquet; return the metrics."""

    def score_all() -> ConceptScores:
        return score_concepts(model, data, section.batch_size, f"{name}: concepts", work.scratch / "concepts")

    def score_mixed() -> MixingScore:
        windows, batch_size = section.intervention_windows, section.batch_size
        assert data.labels is not None
        # Labels of several positions may be the same concept, which is put first once.
        own = replace(data, labels=replace(data.labels, offsets=data.labels.offsets[:1]))
        return score_mixing(model, own, windows, batch_size, f"{name}: mixing", work.scratch / "mixing")

    scores = once("concepts", key, score_all, ConceptScores, concepts.__file__)
    mixed = None
    if model.config.mixing != "none" and len(data.windows) > 1:
        what = {**key, "windows": section.intervention_windows}
        mixed = asdict(once("mixing", what, score_mixed, MixingScore, mixing.__file__))
    if runtime().rank == 0:
        with work.write("concepts.parquet") as pending:
            pending.rows = write_concepts(pending.path, scores.each)
        with work.write("examples.parquet") as pending:
            pending.rows = write_examples(pending.path, choose_examples(model, data, tokens.texts()))
    return {**asdict(scores.whole), "mixing": mixed}


if __name__ == "__main__":
    main(lambda params: run(params, *matrix_item(sys.argv[1:], params)))
