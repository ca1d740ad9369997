"""What the tests of downstream tasks share: examples of the paper's tasks, a tokenizer of bytes, small models."""

import json
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from cocomix.evaluation.downstream_tasks import PAPER_TASKS
from cocomix.modeling import CoCoMixForCausalLM
from tests.modeling.conftest import tiny

CONTEXT = 128
"""Of the models: some examples are longer."""
VOCAB = 257


def examples() -> dict[str, list[dict[str, object]]]:
    """Examples of each task by its file below `tasks_dir`, in the fields of the public data."""
    things = ["a lamp\u2028", "the river", "two brown dogs", "an old bicycle", "some bread", "her sister"]
    verbs = ["moves slowly", "is red", "fell over again and again and again", "sings", "waits for rain", "was sold"]
    numbers = range(6)
    return {
        "lambada_openai/test": [
            {"text": f"{'It was late. ' * (n * 3)}He saw {things[n]} and {things[-n]} and then {things[n]}"}
            for n in numbers
        ],
        "wikitext2_raw/test": [
            {"page": f" = {things[n]} = \n \n {things[n]} , which {verbs[n]} @-@ often , {verbs[-n]} . \n" * (n + 1)}
            for n in numbers
        ],
        "hellaswag/validation": [
            {
                "activity_label": "Waiting",
                "ctx_a": f"We look at {things[n]}. " * (n + 1),
                "ctx_b": "it",
                "endings": [f"{verb}{' [title] often' if n == 2 else ''}" for verb in verbs[:4]],
                "label": str(n % 4),
            }
            for n in numbers
        ],
        "piqa/validation": [
            {
                "goal": f"Keep {things[n]}",
                "sol1": f"say it {verbs[n]}",
                "sol2": f"it {verbs[-n]} " * (1 + n // 2),
                "label": n % 2,
            }
            for n in numbers
        ],
        "siqa/validation": [
            {
                "context": f"{things[n]} {verbs[n]}.",
                "question": "Why?",
                **dict(zip(("answerA", "answerB", "answerC"), verbs[:3], strict=True)),
                "label": str(n % 3 + 1),
            }
            for n in numbers
        ],
        "arc_easy/test": [
            {
                "id": str(n),
                "question": f"What {verbs[n]}?",
                "choices": {"text": things[: 3 + n % 3], "label": ["A", "B", "C", "D", "E"][: 3 + n % 3]},
                "answerKey": "ABC"[n % 3],
            }
            for n in numbers
        ],
        "winogrande/validation": [
            {
                "sentence": f"Near {things[n]} was {things[-n - 1]}, and _ {verbs[n]}.",
                "option1": things[n],
                "option2": things[-n - 1],
                "answer": str(n % 2 + 1),
            }
            for n in numbers
        ],
    }


def write_examples(folder: Path) -> Path:
    for name, rows in examples().items():
        file = folder / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return folder


def write_definitions(folder: Path, tasks_dir: Path) -> Path:
    """The same tasks as lm-eval's user would write them: YAML that includes the stock task and names local files."""
    import lm_eval

    stock = Path(lm_eval.__file__).parent / "tasks"
    files = {"winogrande": "default", "social_iqa": "siqa"}
    folder.mkdir()
    for name, task in PAPER_TASKS.items():
        file = next((tasks_dir / task.data).iterdir())
        definition = {
            "include": str(stock / task.definition / f"{files.get(name, name)}.yaml"),
            "task": f"local_{name}",
            "tag": None,
            "dataset_path": "json",
            "dataset_name": None,
            "training_split": None,
            "validation_split": None,
            "test_split": "test",
            "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(folder / "cache")},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(definition))
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {letter: 1 + n for n, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=CONTEXT, vocab_size=VOCAB, initializer_range=0.1)
    config.bos_token_id = config.eos_token_id = 0
    return GPT2LMHeadModel(config)


def cocomix() -> CoCoMixForCausalLM:
    return tiny(vocab_size=VOCAB, n_positions=CONTEXT)
