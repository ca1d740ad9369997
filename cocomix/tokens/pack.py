"""From text to windows of token ids: documents end with EOS and follow each other without padding.

Each row group of the corpus becomes a shard of ids, the unit of resuming and of dividing the work; a file beside it
holds the number of ids of each document. All shards of a split are concatenated and cut into windows; the remainder at
the end that fills no window is dropped.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.lib import format as npy
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cocomix.corpus.splits import SPLITS, Split
from cocomix.plumbing import distributed
from cocomix.plumbing.artifact import Artifact, Work, write_atomically
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.progress import progress
from cocomix.plumbing.runtime import runtime
from cocomix.plumbing.workers import in_order
from cocomix.tokens.encoding import ids_of, plain
from cocomix.tokens.tokenizer import read_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BATCH_CHARACTERS = 250_000
"""Characters encoded at a time: encoding needs a hundred bytes of memory per token."""


class Packed(NamedTuple):
    """What `pack_corpus` has written."""

    shards: dict[Split, list[Path]]
    """The files of ids in the work folder: see `encode`."""
    metrics: dict[str, Any]
    """The vocabulary's size, and for each split its tokens, windows, and bytes per token."""
    about: dict[str, Any]
    """For the manifest: see `cocomix.tokens.windows.Tokens`."""


def pack_corpus(
    work: Work, corpus: Artifact, tokenizer: "PreTrainedTokenizerFast", context: int, parameter: str
) -> Packed:
    """Write the tokenizer, and the corpus as windows of its tokens, as `Tokens` reads them.

    The processes share the row groups, and the first one writes the files. All must call it.

    Args:
        parameter: that says `context`, for errors.

    Raises:
        UserError: when the tokenizer cannot encode the corpus, or a split fills no window.
    """
    is_first = runtime().rank == 0
    if is_first:
        with work.write_folder() as folder:
            tokenizer.save_pretrained(folder / "tokenizer")
    distributed.barrier()
    eos_id = tokenizer.eos_token_id
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    metrics: dict[str, Any] = {"vocab_size": vocab_size}
    texts = {split: corpus.file(f"{split}.parquet") for split in SPLITS}
    saved = distributed.see(work.files / "tokenizer/tokenizer.json")
    encoded = encode(texts, saved, eos_id, vocab_size, work.scratch, work.stage)
    for split, shards in encoded.items():
        tokens = count_tokens(shards)
        windows = tokens // context
        if not windows:
            raise UserError(
                f"{work.stage}: the {split} split has {tokens} tokens, too few for one window of "
                f"{parameter} ({context})"
            )
        if is_first:
            _write_split(work, split, texts[split], shards, context)
        bytes_per_token = corpus.about["splits"][split]["bytes"] / tokens
        metrics[split] = {"tokens": tokens, "windows": windows, "bytes_per_token": bytes_per_token}
    about = {
        "context": context,
        "vocab_size": vocab_size,
        "eos_id": eos_id,
        "origin": corpus.about["origin"],
        "bytes_per_token": {split: metrics[split]["bytes_per_token"] for split in SPLITS},
    }
    return Packed(encoded, metrics, about)


def _write_split(work: Work, split: Split, text: Path, shards: Sequence[Path], context: int) -> None:
    if not work.has(f"{split}.npy"):
        with work.write(f"{split}.npy") as pending:
            write_windows(shards, context, pending.path)
            pending.rows = count_tokens(shards) // context
    with work.write(f"{split}.documents.npy") as pending:
        ends = document_ends(shards)
        np.save(pending.path, ends)
        pending.rows = len(ends)
    if split != "train":
        with work.write(f"{split}.groups.parquet") as pending:
            groups = pq.read_table(text, columns=["group"])
            pq.write_table(groups, pending.path, compression="zstd")
            pending.rows = len(groups)


class RowGroup(NamedTuple):
    """A row group of the corpus, and the file that is made of it."""

    text: Path
    number: int
    documents: int
    shard: Path

    def batches(self) -> Iterator[list[str]]:
        """Its documents in order, some at a time."""
        return _batches(read_texts(pq.ParquetFile(self.text), self.number))

    @property
    def described(self) -> str:
        """A document of it, for errors."""
        return f"a document of row group {self.number} of {self.text}"


def in_row_groups(
    texts: Mapping[Split, Path], folder: Path, make: Callable[[RowGroup], object], task: str
) -> dict[Split, list[Path]]:
    """Make a file of each row group, and wait until all exist; those that exist are kept.

    Process r of n takes every n-th row group, with its workers. All must call it.

    Args:
        texts: Parquet files with a column `text`.
        folder: of the files, each in the folder of its split.
        make: writes the file of a row group, which is complete as soon as it exists.
        task: of the progress bar.
    """
    groups: dict[Split, list[RowGroup]] = {}
    for split, text in texts.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        metadata = pq.ParquetFile(text).metadata
        groups[split] = [
            RowGroup(text, number, metadata.row_group(number).num_rows, folder / split / f"{number:06d}.npy")
            for number in range(metadata.num_row_groups)
        ]
    everything = list(chain.from_iterable(groups.values()))
    own = everything[runtime().rank :: runtime().world_size]
    missing = [group for group in own if not group.shard.exists()]
    total, left = (sum(group.documents for group in each) for each in (own, missing))
    with progress(task, total, "documents", done=total - left) as bar:
        for group, _ in zip(missing, in_order(make, missing), strict=True):
            bar.advance(group.documents)
    distributed.barrier()
    for group in everything:
        distributed.see(group.shard)
    return {split: [group.shard for group in groups[split]] for split in groups}


def encode(
    texts: Mapping[Split, Path], tokenizer: Path, eos_id: int, vocab_size: int, folder: Path, task: str
) -> dict[Split, list[Path]]:
    """Encode all documents into one-dimensional `.npy` files of token ids, in the order of the text.

    Args:
        texts: Parquet files with a column `text`.
        tokenizer: tokenizer.json.
        folder: where the shards are written; existing ones are kept.
        task: of the progress bar.
    """
    dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
    return in_row_groups(texts, folder, partial(_encode_group, tokenizer=tokenizer, eos_id=eos_id, dtype=dtype), task)


def count_tokens(shards: Sequence[Path]) -> int:
    """Number of ids in all shards."""
    return sum(ids.size for ids in _load(shards))


def write_windows(shards: Sequence[Path], context: int, path: Path) -> None:
    """Write the ids as one `.npy` array [windows, context], a shard at a time."""
    write_rows(_load(shards), count_tokens(shards) // context, context, path)


def write_rows(parts: Iterable[NDArray[Any]], windows: int, context: int, path: Path) -> None:
    """Write the beginning of some arrays, joined, as one `.npy` array [windows, context]."""
    left = windows * context
    with path.open("wb") as file:
        for number, part in enumerate(parts):
            if number == 0:
                header = {"descr": npy.dtype_to_descr(part.dtype), "fortran_order": False, "shape": (windows, context)}
                npy.write_array_header_1_0(file, header)
            file.write(part[:left].tobytes())
            left -= min(left, part.size)


def document_ends(shards: Sequence[Path]) -> NDArray[np.int64]:
    """End offset of each document, after its EOS, in the ids of all shards: int64 [documents]."""
    return np.cumsum(np.concatenate([np.load(_lengths(shard)) for shard in shards]), dtype=np.int64)


def _lengths(shard: Path) -> Path:
    """The file with the number of ids, EOS included, of each document of a shard."""
    return shard.with_suffix(".lengths.npy")


def _load(shards: Sequence[Path]) -> Iterator[NDArray[np.unsignedinteger]]:
    for path in shards:
        yield np.load(path, mmap_mode="r")


def _encode_group(group: RowGroup, tokenizer: Path, eos_id: int, dtype: str) -> None:
    """Write the ids of a row group, and how many each document has."""
    parts = [
        np.array([*ids, eos_id], dtype)
        for batch in group.batches()
        for ids in ids_of(opened(tokenizer), batch, group.described)
    ]
    save(_lengths(group.shard), np.array([part.size for part in parts]))
    save(group.shard, np.concatenate(parts))  # last: a shard whose ids exist is complete


def save(path: Path, array: NDArray[Any]) -> None:
    """Write a `.npy` file that appears complete or not at all."""
    content = BytesIO()
    np.save(content, array)
    write_atomically(path, content.getvalue())


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def opened(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, read once in each process, for `ids_of` and `spans_of`."""
    return _opened(path.absolute(), path.stat().st_mtime_ns)


@cache
def _opened(path: Path, _changed: int) -> Tokenizer:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes share the cores already
    return plain(Tokenizer.from_file(str(path)))
