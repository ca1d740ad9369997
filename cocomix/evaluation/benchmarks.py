"""The texts that models are evaluated on, by which the stage `corpus` finds contaminated documents."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cocomix.evaluation.corpus_files import read_batches
from cocomix.evaluation.downstream_tasks import load_tasks, require_lm_eval
from cocomix.params import EvaluationCorpusParams, Params


def benchmark_texts(params: Params) -> dict[str, Iterator[str]]:
    """The texts of each task and corpus, as `tasks.NAME` and `corpora.NAME`; they are read when they are iterated over.

    The key `corpus.decontaminate` of external.json covers all of them.

    Raises:
        UserError: when a task needs lm-eval, which is not installed; while iterating, when data cannot be read.
    """
    section = params.evaluate
    if section.tasks:
        require_lm_eval()
    tasks_dir = None if section.tasks_dir is None else Path(section.tasks_dir)
    tasks = {f"tasks.{name}": _of_task(name, tasks_dir) for name in section.tasks}
    return tasks | {f"corpora.{name}": _of_corpus(name, each) for name, each in section.corpora.items()}


def _of_task(name: str, tasks_dir: Path | None) -> Iterator[str]:
    """Yield each text in each example: questions, right and wrong answers, whatever the prompt makes of them."""
    for task in load_tasks(name, tasks_dir).values():
        for example in task.eval_docs:
            yield from _texts_in(example)


def _of_corpus(name: str, params: EvaluationCorpusParams) -> Iterator[str]:
    return (document.text for batch in read_batches(name, params) for document in batch)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts_in(each)
