"""Metrics of runs that never happened, in the layout of the stages, with a known answer."""

import csv
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cocomix.params import FILE

TOKENS = [1000 * step for step in range(1, 11)]
FLOPS_PER_TOKEN = {"ntp": 1e7, "kd": 1.2e7, "pause": 1.4e7, "cocomix": 1.5e7}


def write_params(methods: Sequence[str], seeds: Sequence[int], shipped: Path) -> None:
    """The shipped parameters with other methods and seeds."""
    text = re.sub(r"(?m)^  methods: .*$", f"  methods: [{', '.join(methods)}]", shipped.read_text())
    FILE.write_text(re.sub(r"(?m)^  seeds: .*$", f"  seeds: {list(seeds)}", text))


def write_pipeline() -> None:
    """Metrics of the stages before pretrain."""
    split = {"documents": 71, "bytes": 115868, "tokens": 30030, "windows": 234, "bytes_per_token": 3.858}
    splits = dict.fromkeys(("train", "validation", "test"), split)
    _write("corpus", splits | {"sources": 226, "dropped": {}})
    _write("tokenize", splits | {"vocab_size": 4096})
    _write("base", {"parameters": 1330, "tokens": 10000, "flops": 2.3e10, "seconds": 1, "validation_loss": 4.49})
    _write("activations", {"train_tokens": 15000, "validation_tokens": 655, "d_model": 128})
    sae = {"fvu": 0.041, "fvu_raw": 0.02, "l0": 31.9, "dead_share": 0.002, "loss_recovered": 0.983}
    _write("sae", sae | {"loss_base": 4.49, "loss_spliced": 4.53, "loss_zeroed": 6.9})
    labels = {"positions": 29795, "full_share": 0.998, "label_entropy": 8.7, "distinct_concepts": 1011}
    _write("attribution", labels | {"most_frequent": 3, "most_frequent_share": 0.031})


def write_run(method: str, seed: int, losses: Sequence[float]) -> None:
    """One model, whose validation loss is `losses` after 1000, 2000, ... 10000 tokens."""
    cost = FLOPS_PER_TOKEN[method]
    _write(
        f"pretrain/{method}-{seed}",
        {
            "method": method,
            "seed": seed,
            "d_model": {"ntp": 208, "kd": 208}.get(method, 192),
            "parameters": {"stored": 2_590_000, "active": 2_090_000},
            "tokens": TOKENS[-1],
            "flops": TOKENS[-1] * cost,
            "flops_per_token": cost,
            "seconds": 332.0,
            "validation_loss": losses[-1],
        },
    )
    concepts = {"cross_entropy": 5.2, "recall_at_k": 0.51, "recall_at_labels": 0.22, "never_predicted": 0.12}
    score = {"loss": losses[-1], "perplexity": math.exp(losses[-1]), "bits_per_byte": losses[-1] / math.log(2) / 3.8}
    _write(
        f"evaluate/{method}-{seed}",
        {"validation": score, "test": score, "concepts": concepts if method == "cocomix" else None},
    )
    path = Path("plots/pretrain") / f"{method}-{seed}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "tokens", "flops", "seconds", "train_loss", "validation_loss", "auxiliary_loss"])
        for tokens, loss in zip(TOKENS, losses, strict=True):
            writer.writerow([tokens // 100, tokens, tokens * cost, tokens / 30, loss, loss, ""])


def falling(start: float, end: float) -> list[float]:
    """A straight learning curve."""
    steps = len(TOKENS) - 1
    return [start + (end - start) * step / steps for step in range(steps + 1)]


def _write(name: str, content: dict[str, Any]) -> None:
    path = Path("metrics") / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
