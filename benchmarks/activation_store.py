"""The activation store: its reading speed, and the cost of writing it compared with the forward pass.

read_mtokens_per_core_s   10^6 vectors of 768 dimensions per CPU second, in random order, as float32 batches
write_mtokens_per_core_s  the same for writing
read                      speed of reading, as a multiple of the cached format of SAELens 6.54 (windows as rows of an
                          Arrow dataset, with its calls of the `datasets` library), shuffled by its rule over as many
                          rows as ours; CPU seconds
read_wall                 the same in wall-clock seconds: ours reads ahead in a thread, which CPU seconds do not show
read_over_unmixed         `read`, but SAELens's rows are in the order of the text
write                     speed of writing a file, as a multiple of the same format
write_at_most             upper bound of `write`: the vectors' bytes alone, written to a plain file
size                      bytes divided by SAELens's, which have no document and position
write_default             `write`, each with its default dtype: SAELens's in float32 (above in fp16, like ours)
size_default              `size` with the default dtypes
stage_over_forward        seconds of the stage divided by those of the forward pass alone through the blocks below the
                          layer (not the whole model: the stage computes no more), at the default's shape
stage_over_forward_cpu    the same in CPU seconds, including the writer thread's
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Array2D, Dataset, Features, Sequence, Value, disable_progress_bars, load_from_disk
from numpy.typing import NDArray
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from benchmarks import medians, report, set_up
from cocomix.activations.collect import collect
from cocomix.activations.store import MIXED_GROUPS, Activations, ActivationStore, write_activations
from cocomix.base.hooks import residual_at
from cocomix.base.loading import micro_batch, prepared
from cocomix.params import ActivationsParams
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.device import attention, autocast
from cocomix.tokens.windows import Tokens

ROWS, WIDE, FILES, BATCH = 65_536, 768, 4, 2048
SAELENS, SAELENS_DEFAULT, SAELENS_WINDOWS = Path("saelens"), Path("saelens_default"), 32
CONTEXT, VOCAB, WINDOWS = 128, 4096, 4096
PARAMS = ActivationsParams(
    sites=["resid_post_2"],
    tokens=CONTEXT * WINDOWS,
    validation_tokens=1,
    shard_tokens=65_536,
    row_group_tokens=4096,
)


def read_and_write() -> dict[str, float]:
    """Millions of vectors per CPU second, and multiples of SAELens's speed."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((ROWS, WIDE), dtype=np.float32).astype(np.float16)
    token = generator.zipf(1.2, ROWS).clip(max=50_256).astype(np.uint32)
    document = (np.arange(ROWS) // 700).astype(np.uint32)
    position = (np.arange(ROWS) % CONTEXT).astype(np.uint32)
    activations = Activations(x, token, document, position)
    with Work("activations", Path("artifacts/activations"), {}, {}) as work:
        for number in range(FILES):
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
    artifact = Artifact(Path("artifacts/activations"))
    store = ActivationStore(artifact)

    def read() -> None:
        for _ in store.batches("train", BATCH, seed=0):
            pass

    full = x.astype(np.float32)
    seconds = medians(
        {
            "write": lambda: write_activations(Path("written"), activations, PARAMS.row_group_tokens),
            "saelens_write": lambda: _saelens_write(SAELENS, x, token),
            "saelens_write_default": lambda: _saelens_write(SAELENS_DEFAULT, full, token),
            "plain_write": lambda: x.tofile("plain"),
            "read": read,
            "saelens_read": lambda: list(map(len, _saelens_batches())),
            "saelens_read_mixed": lambda: list(map(len, _mixed(_saelens_batches()))),
        },
        5,
    )
    rows = FILES * ROWS
    size = artifact.manifest.files["resid_post_1/train-00000.parquet"].bytes
    return {
        "read_mtokens_per_core_s": rows / seconds["read"].cpu / 1e6,
        "write_mtokens_per_core_s": ROWS / seconds["write"].cpu / 1e6,
        "read": FILES * seconds["saelens_read_mixed"].cpu / seconds["read"].cpu,
        "read_wall": FILES * seconds["saelens_read_mixed"].wall / seconds["read"].wall,
        "read_over_unmixed": FILES * seconds["saelens_read"].cpu / seconds["read"].cpu,
        "write": seconds["saelens_write"].cpu / seconds["write"].cpu,
        "write_at_most": seconds["saelens_write"].cpu / seconds["plain_write"].cpu,
        "size": size / _bytes(SAELENS),
        "write_default": seconds["saelens_write_default"].cpu / seconds["write"].cpu,
        "size_default": size / _bytes(SAELENS_DEFAULT),
    }


def _bytes(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def _saelens_write(folder: Path, x: NDArray[Any], token: NDArray[np.uint32]) -> None:
    """Write windows as rows, like `sae_lens.CacheActivationsRunner`."""
    columns = {"x": Array2D((CONTEXT, WIDE), str(x.dtype)), "token_ids": Sequence(Value("int32"), length=CONTEXT)}
    windows = torch.from_numpy(x).view(-1, CONTEXT, WIDE)
    ids = torch.from_numpy(token.astype(np.int32)).view(-1, CONTEXT)
    dataset = Dataset.from_dict({"x": windows, "token_ids": ids}, features=Features(columns))
    dataset.save_to_disk(str(folder), num_shards=1)


def _saelens_batches() -> Iterator[Tensor]:
    """Rows in disk order, as `sae_lens.ActivationsStore` reads them: [windows * context, d_model]."""
    dataset = load_from_disk(str(SAELENS))
    dataset.set_format("torch", columns=["x", "token_ids"], dtype=torch.float32)
    for at in range(0, len(dataset), SAELENS_WINDOWS):
        yield dataset[at : at + SAELENS_WINDOWS]["x"].reshape(-1, WIDE)


def _mixed(loaded: Iterator[Tensor]) -> Iterator[Tensor]:
    """Training batches, by the rule of SAELens's mixing buffer: when it is full, shuffle all of it and serve half."""
    full = MIXED_GROUPS * PARAMS.row_group_tokens
    buffer = torch.empty(0, WIDE)
    for rows in loaded:
        buffer = torch.cat([buffer, rows])
        if len(buffer) >= full:
            buffer = buffer[torch.randperm(len(buffer))]
            served = max(1, (len(buffer) - full // 2) // BATCH) * BATCH
            yield from torch.split(buffer[:served], BATCH)
            buffer = buffer[served:]
    yield from torch.split(buffer, BATCH)


def stage_over_forward() -> dict[str, float]:
    """Cost of the stage, as a multiple of the forward pass alone."""
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
                pending.rows = windows
                np.save(pending.path, ids)
            with work.write(f"{split}.documents.npy") as pending:
                ends = np.arange(CONTEXT // 2, ids.size + CONTEXT, CONTEXT)
                pending.rows = len(ends)
                np.save(pending.path, ends)
        work.finish({"context": CONTEXT, "vocab_size": VOCAB, "eos_id": 0, "origin": {"source": "files"}})
        work.publish()
    return Tokens(Path("artifacts/tokens"))


def _model() -> PreTrainedModel:
    config = GPT2Config(
        n_embd=128, n_layer=4, n_head=4, n_positions=CONTEXT, vocab_size=VOCAB, attn_implementation=attention(CONTEXT)
    )
    return prepared(GPT2LMHeadModel(config))


if __name__ == "__main__":
    set_up()
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        ratios = read_and_write() | stage_over_forward()
    report("activation_store", ratios)
