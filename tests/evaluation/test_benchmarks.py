import json
from pathlib import Path
from typing import Any

import pytest

from cocomix.evaluation.benchmarks import benchmark_texts
from cocomix.params import Params
from cocomix.plumbing.checked import merge, parse, read_yaml

ROOT = Path(__file__).parents[2]


def params_of(**evaluate: Any) -> Params:
    content = read_yaml(ROOT / "params.yaml")
    merge(content, {"evaluate": evaluate})
    return parse(Params, content, "params.yaml")


def test_the_texts_of_a_task_are_its_questions_and_all_answers(folder: Path) -> None:
    pytest.importorskip("lm_eval")
    example = {
        "activity_label": "Baking",
        "ctx_a": "She takes a bowl.",
        "ctx_b": "then she",
        "ctx": "She takes a bowl.",
    }
    example |= {"endings": ["mixes the dough well", "sings", "leaves", "runs"], "label": "0"}
    Path("in/hellaswag").mkdir(parents=True)
    Path("in/hellaswag/validation.jsonl").write_text(json.dumps(example) + "\n")
    Path("a.txt").write_text("One text.")
    texts = benchmark_texts(params_of(tasks=["hellaswag"], tasks_dir="in", corpora={"more": {"paths": ["a.txt"]}}))
    assert list(texts) == ["tasks.hellaswag", "corpora.more"]
    assert {"She takes a bowl.", *example["endings"]} <= set(texts["tasks.hellaswag"])
    assert list(texts["corpora.more"]) == ["One text."]
