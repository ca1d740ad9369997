"""Evaluation of the paper's seven tasks: our implementation against lm-eval's.

over_gpt2   our time with a CoCoMix model divided by that of lm-eval alone with a plain GPT-2 that needs as many
            floating-point operations per token (same depth and vocabulary, larger width)
same_model  our time divided by that of lm-eval alone, both with that GPT-2

Times include everything: reading the examples, building requests, tokenization, the model, the metrics.
The models have random weights: on a GPU with the shape of the 69M model (paper section 3), on a CPU with the default's
(params.yaml). By default, examples consist of random words and have the tasks' average length in GPT-2's tokens.
For real ones: `--tasks-dir DIR --tokenizer DIR` (docs/evaluation.md).
"""

import argparse
import json
import logging
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks import medians, report, set_up
from cocomix.evaluation.downstream import score_tasks
from cocomix.evaluation.downstream_tasks import PAPER_TASKS, load_tasks
from cocomix.modeling import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.models.accounting import flops_per_token
from cocomix.plumbing.device import attention, device

ON_GPU = device().type == "cuda"
CONTEXT, VOCAB, LATENTS, LAYER = (1024, 50257, 32768, 3) if ON_GPU else (128, 4096, 1024, 2)
SHAPE = {"n_embd": 512, "n_layer": 8, "n_head": 8} if ON_GPU else {"n_embd": 192, "n_layer": 4, "n_head": 6}
BATCH_SIZE = 32


def configuration(vocabulary: int) -> dict[str, Any]:
    return {
        **SHAPE,
        "n_positions": CONTEXT,
        "vocab_size": vocabulary,
        "activation_function": "gelu_pytorch_tanh",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "attn_implementation": attention(CONTEXT),
    }


def cocomix(vocabulary: int) -> CoCoMixForCausalLM:
    fields = {"num_concepts": LATENTS, "concept_k": 32, "concept_layer": LAYER}
    return CoCoMixForCausalLM(CoCoMixConfig(**configuration(vocabulary), **fields)).to(device())


def gpt2_as_costly_as(model: CoCoMixForCausalLM) -> GPT2LMHeadModel:
    """A GPT-2 with the width whose operations per token are nearest to the model's."""
    target = flops_per_token(model.config, CONTEXT)
    shape, heads = configuration(model.config.vocab_size), SHAPE["n_head"]
    widths = range(SHAPE["n_embd"], 3 * SHAPE["n_embd"], heads)
    configs = [GPT2Config(**shape | {"n_embd": width}) for width in widths]
    return GPT2LMHeadModel(min(configs, key=lambda each: abs(flops_per_token(each, CONTEXT) - target))).to(device())


def our_way(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tasks_dir: Path, limit: int) -> None:
    score_tasks(
        model, tokenizer, list(PAPER_TASKS), tasks_dir=tasks_dir, limit=limit, batch_size=BATCH_SIZE, name="ours"
    )


def lm_eval_alone(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tasks_dir: Path, limit: int) -> None:
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=BATCH_SIZE)
    tasks = {name: task for each in PAPER_TASKS for name, task in load_tasks(each, tasks_dir).items()}
    evaluate(lm, {"tasks": tasks}, limit=limit, bootstrap_iters=0)


def words_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each of the words of `made_up`."""
    vocabulary = {"<|endoftext|>": 0} | {f"w{n}": n for n in range(1, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def made_up(folder: Path, limit: int) -> None:
    """Write random examples of all tasks; a page of wikitext has the length of 3 windows."""
    for name, rows in {
        "lambada_openai/test": ({"text": words(86)} for _ in range(limit)),
        "wikitext2_raw/test": ({"page": words(3 * CONTEXT)} for _ in range(max(1, limit // 30))),
        "hellaswag/validation": (
            {
                "activity_label": words(2),
                "ctx_a": words(44),
                "ctx_b": words(2),
                "endings": [words(29) for _ in range(4)],
                "label": "1",
            }
            for _ in range(limit)
        ),
        "piqa/validation": ({"goal": words(9), "sol1": words(24), "sol2": words(24), "label": 0} for _ in range(limit)),
        "siqa/validation": (
            {"context": words(17), "question": words(8), **{f"answer{each}": words(4) for each in "ABC"}, "label": "1"}
            for _ in range(limit)
        ),
        "arc_easy/test": (
            {
                "question": words(23),
                "choices": {"text": [words(5) for _ in range(4)], "label": list("ABCD")},
                "answerKey": "B",
            }
            for _ in range(limit)
        ),
        "winogrande/validation": (
            {"sentence": f"{words(16)} _ {words(5)}", "option1": words(1), "option2": words(1), "answer": "1"}
            for _ in range(limit)
        ),
    }.items():
        file = folder / f"{name}.jsonl"
        file.parent.mkdir()
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def words(mean: int) -> str:
    """Random words; their number is uniform from half to one and a half times `mean`."""
    count = random.randint(max(1, mean // 2), mean + mean // 2)
    return " ".join(f"w{random.randrange(1, VOCAB)}" for _ in range(count))


def ways(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Any]]:
    """The alternatives, by name."""
    if arguments.tasks_dir is None:
        made_up(folder, arguments.limit)
        tokenizer = words_tokenizer()
    else:
        folder = arguments.tasks_dir
        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    ours = cocomix(len(tokenizer))
    plain = gpt2_as_costly_as(ours)
    yield "ours", lambda: our_way(ours, tokenizer, folder, arguments.limit)
    yield "our_gpt2", lambda: our_way(plain, tokenizer, folder, arguments.limit)
    yield "gpt2", lambda: lm_eval_alone(plain, tokenizer, folder, arguments.limit)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=int, default=2000 if ON_GPU else 100)
    parser.add_argument("--tasks-dir", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    arguments, sys.argv[1:] = parser.parse_known_args()
    torch.manual_seed(0)
    random.seed(0)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    set_up()
    with tempfile.TemporaryDirectory() as folder:
        seconds = medians(dict(ways(arguments, Path(folder))), arguments.repeats)
    taken = {name: each.wall if ON_GPU else each.cpu for name, each in seconds.items()}
    report(
        "evaluate",
        {"over_gpt2": taken["ours"] / taken["gpt2"], "same_model": taken["our_gpt2"] / taken["gpt2"]},
    )
