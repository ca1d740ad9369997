"""Tasks of lm-eval, including the paper's, with examples from the hub or from a folder of JSON lines."""

import difflib
import hashlib
import importlib.util
import json
import random
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cocomix.plumbing.errors import UserError, install


class _PaperTask(NamedTuple):
    """One of the paper's tasks."""

    metric: str
    """lm-eval's metric in the paper's tables."""
    definition: str
    """Folder of the task's definition in lm-eval."""
    data: str
    """Folder of the examples in a `tasks_dir`."""


PAPER_TASKS = {
    "lambada_openai": _PaperTask("perplexity", "lambada", "lambada_openai"),
    "wikitext": _PaperTask("word_perplexity", "wikitext", "wikitext2_raw"),
    "hellaswag": _PaperTask("acc_norm", "hellaswag", "hellaswag"),
    "piqa": _PaperTask("acc", "piqa", "piqa"),
    "social_iqa": _PaperTask("acc", "siqa", "siqa"),
    "arc_easy": _PaperTask("acc", "arc", "arc_easy"),
    "winogrande": _PaperTask("acc", "winogrande", "winogrande"),
}
"""The tasks of paper Table 1, by their names in lm-eval."""


def require_lm_eval() -> None:
    """Raise a UserError if lm-eval or accelerate, which it needs, is not installed."""
    missing = [each for each in ("lm_eval", "accelerate") if importlib.util.find_spec(each) is None]
    if missing:
        raise UserError(f"evaluate.tasks needs {' and '.join(missing)}, which is not installed: {install('eval')}")


def load_tasks(name: str, tasks_dir: Path | None) -> dict[str, Any]:
    """lm-eval's task objects by name, zero-shot and with their data.

    Args:
        name: a task, or a group or tag of several tasks.
        tasks_dir: folder of the examples; None: the hub.

    Raises:
        UserError: for an unknown task, or when its data is missing or malformed.
    """
    manager = _tasks_with(name)
    random.seed(0)  # as lm-eval's own entry point does: some tasks shuffle
    np.random.seed(1234)
    file = None if tasks_dir is None else _local_file(name, tasks_dir)
    spec = name if file is None else {"group": "local", "task": [{"task": name} | _from_file(file)]}
    try:
        tasks: dict[str, Any] = manager.load([spec])["tasks"]
    except UserError:
        raise
    except Exception as error:  # from the libraries, or from the task's own code
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        where = f"evaluate.tasks: {name}: no data from the hub" if file is None else f"{file}: not what {name} reads"
        raise UserError(f"{where} ({reason})") from error
    for task in tasks.values():
        task.set_config(key="num_fewshot", value=0)  # few-shot examples from a file would be the evaluated documents
        if prepare := task.get_config("process_docs"):
            task.set_config(key="process_docs", value=cache(prepare))  # it is called at every access to the data
    return tasks


def check_task(task: str, tasks_dir: Path | None) -> None:
    """Check that lm-eval knows the task, and that its examples can be read if they come from a folder.

    Raises:
        UserError: when it does not, or they cannot.
    """
    require_lm_eval()
    if tasks_dir is None:
        _tasks_with(task)
    else:
        _read(_local_file(task, tasks_dir))


def task_digest(task: str, tasks_dir: Path | None) -> str:
    """Digest of lm-eval's version and a task's local examples; examples from the hub count by the version alone.

    Raises:
        UserError: without lm-eval, for an unknown task, or when its file is missing.
    """
    require_lm_eval()
    examples = b"hub" if tasks_dir is None else _local_file(task, tasks_dir).read_bytes()
    return hashlib.sha256(version("lm_eval").encode() + examples).hexdigest()


def data_folder(task: str) -> str:
    """The folder of a task's examples in a `tasks_dir`."""
    return PAPER_TASKS[task].data if task in PAPER_TASKS else task


@cache
def _manager(definition: str | None) -> Any:
    """lm-eval's task manager for one of its folders, or for all, which takes about ten seconds to read."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    if definition is None:
        return TaskManager()
    return TaskManager(include_path=Path(lm_eval.__file__).parent / "tasks" / definition, include_defaults=False)


def _tasks_with(task: str) -> Any:
    """A task manager that knows the task."""
    manager = _manager(PAPER_TASKS[task].definition if task in PAPER_TASKS else None)
    if task not in manager.task_index:
        near = difflib.get_close_matches(task, [*PAPER_TASKS, *manager.all_tasks], n=1)
        remedy = f"did you mean {near[0]!r}?" if near else "`lm_eval ls tasks` lists them"
        raise UserError(f"evaluate.tasks: {task!r}: lm-eval {version('lm_eval')} has no such task; {remedy}")
    return manager


def _local_file(task: str, tasks_dir: Path) -> Path:
    """The file of a task's examples: <folder>/<split>.jsonl, with the split that lm-eval scores."""
    definition = _tasks_with(task).task_index[task].cfg or {}
    split = definition.get("test_split") or definition.get("validation_split")
    if split is None:
        raise UserError(f"evaluate.tasks: {task}: a group, or made by a program; with evaluate.tasks_dir, name tasks")
    file = tasks_dir / data_folder(task) / f"{split}.jsonl"
    if not file.is_file():
        raise UserError(f"{file}: no such file, which holds the examples of {task} (evaluate.tasks_dir: {tasks_dir})")
    return file


def _from_file(file: Path) -> dict[str, Any]:
    """Task settings that replace its examples by those of a file."""
    from datasets import Dataset

    def read(**_: object) -> dict[str, Dataset]:
        return {file.stem: Dataset.from_list(_read(file))}

    nothing = dict.fromkeys(("training_split", "validation_split", "test_split", "fewshot_split", "dataset_kwargs"))
    return nothing | {"custom_dataset": read, "test_split": file.stem}


def _read(file: Path) -> list[dict[str, Any]]:
    rows = []
    with file.open("rb") as lines:  # not str.splitlines, which also splits at U+2028 and the like
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{file}:{number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise UserError(f"{file}:{number}: holds {type(row).__name__}, not an object with the fields of a task")
            rows.append(row)
    if not rows:
        raise UserError(f"{file}: holds no example")
    return rows
