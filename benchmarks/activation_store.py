"""The activation store: how fast it is read, and what writing it costs beside the forward pass.

read_mtokens_per_core_s   10^6 vectors of 768 dimensions a CPU second, in random order, as float32 batches
write_mtokens_per_core_s  the same, written
stage_over_forward        seconds of the stage over those of the bare forward pass through the blocks below
                          the layer (not the whole model: the stage computes no more), at the default's shape
stage_over_forward_cpu    the same in CPU seconds, the writer thread's included
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from benchmarks import medians, report, set_up
from cocomix.activations.collect import collect
from cocomix.activations.store import Activations, ActivationStore, write_activations
from cocomix.artifact import Artifact, Work
from cocomix.base import micro_batch, prepared, residual_at
from cocomix.device import attention, autocast
from cocomix.params import ActivationsParams
from cocomix.tokens.windows import Tokens

ROWS, WIDE = 65_536, 768
CONTEXT, VOCAB, WINDOWS = 128, 4096, 4096
PARAMS = ActivationsParams(
    sites=["resid_post_2"],
    tokens=CONTEXT * WINDOWS,
    validation_tokens=1,
    shard_tokens=65_536,
    row_group_tokens=4096,
)


def read_and_write() -> dict[str, float]:
    """Millions of vectors a CPU second."""
    x = np.random.default_rng(0).standard_normal((ROWS, WIDE), dtype=np.float32).astype(np.float16)
    origin = np.zeros(ROWS, np.uint32)
    activations = Activations(x, origin, origin, origin)
    with Work("activations", Path("artifacts/activations"), {}, {}) as work:
        for number in range(4):
            with work.write(f"resid_post_1/train-{number:05d}.parquet") as pending:
                write_activations(pending.path, activations, PARAMS.row_group_tokens)
                pending.rows = ROWS
        work.finish(
            {
                "d_model": WIDE,
                "sites": ["resid_post_1"],
                "dtype": "fp16",
                "row_group_tokens": PARAMS.row_group_tokens,
                "mixed_shards": None,
            }
        )
        work.publish()
    store = ActivationStore(Artifact(Path("artifacts/activations")))

    def read() -> None:
        for _ in store.batches("train", 2048, seed=0):
            pass

    seconds = medians(
        {"read": read, "write": lambda: write_activations(Path("written"), activations, PARAMS.row_group_tokens)}, 7
    )
    return {
        "read_mtokens_per_core_s": store.rows("train") / seconds["read"].cpu / 1e6,
        "write_mtokens_per_core_s": ROWS / seconds["write"].cpu / 1e6,
    }


def stage_over_forward() -> dict[str, float]:
    """What the stage costs, as a multiple of the bare forward pass."""
    tokens, model = _tokens(), _model()
    run = 0

    def stage() -> None:
        nonlocal run
        run += 1
        with Work("activations", Path("artifacts/stored"), {}, {"run": run}) as work:
            work.finish(collect(work, model, tokens, PARAMS))
            work.publish()

    def forward() -> None:
        windows = tokens.windows("train")
        for at in range(0, WINDOWS, micro_batch(CONTEXT)):
            ids = torch.from_numpy(windows[at : at + micro_batch(CONTEXT)].astype(np.int64))
            with torch.inference_mode(), autocast():
                residual_at(model, ids, 2)

    seconds = medians({"stage": stage, "forward": forward}, 5)
    return {
        "stage_over_forward": seconds["stage"].wall / seconds["forward"].wall,
        "stage_over_forward_cpu": seconds["stage"].cpu / seconds["forward"].cpu,
    }


def _tokens() -> Tokens:
    with Work("tokenize", Path("artifacts/tokens"), {}, {}) as work:
        for split, windows in {"train": WINDOWS, "validation": 1}.items():
            ids = np.random.default_rng(0).integers(1, VOCAB, size=(windows, CONTEXT)).astype(np.uint16)
            with work.write(f"{split}.npy") as pending:
                np.save(pending.path, ids)
            with work.write(f"{split}.documents.npy") as pending:
                np.save(pending.path, ids[:, 0].astype(np.uint32))
        work.finish({"context": CONTEXT, "vocab_size": VOCAB, "eos_id": 0})
        work.publish()
    return Tokens(Path("artifacts/tokens"))


def _model() -> PreTrainedModel:
    config = GPT2Config(
        n_embd=128, n_layer=4, n_head=4, n_positions=CONTEXT, vocab_size=VOCAB, attn_implementation=attention(CONTEXT)
    )
    return prepared(GPT2LMHeadModel(config))


if __name__ == "__main__":
    set_up()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        ratios = read_and_write() | stage_over_forward()
    report("activation_store", ratios)
