"""From text to windows of token ids: documents end with EOS and follow each other without padding.

Each row group of the corpus becomes a shard of ids, the unit of resuming and of dividing the work; a file beside it
holds the number of ids of each document. All shards of a split are concatenated and cut into windows; the remainder at
the end that fills no window is dropped.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.lib import format as npy
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cocomix.corpus.splits import Split
from cocomix.plumbing.artifact import write_atomically
from cocomix.plumbing.progress import progress
from cocomix.plumbing.workers import in_order
from cocomix.tokens.encoding import ids_of, plain
from cocomix.tokens.tokenizer import read_texts

_BATCH_CHARACTERS = 250_000
"""Characters encoded at a time: encoding needs a hundred bytes of memory per token."""


class _Shard(NamedTuple):
    text: Path
    row_group: int
    documents: int
    tokenizer: Path
    eos_id: int
    dtype: str
    ids: Path


def encode(
    texts: Mapping[Split, Path], tokenizer: Path, eos_id: int, vocab_size: int, folder: Path
) -> dict[Split, list[Path]]:
    """Encode all documents into one-dimensional `.npy` files of token ids, in the order of the text.

    Args:
        texts: Parquet files with a column `text`.
        tokenizer: tokenizer.json.
        folder: where the shards are written; existing ones are kept.
    """
    dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
    shards: dict[Split, list[_Shard]] = {}
    for split, text in texts.items():
        (folder / split).mkdir(exist_ok=True)
        metadata = pq.ParquetFile(text).metadata
        shards[split] = [
            _Shard(
                text=text,
                row_group=group,
                documents=metadata.row_group(group).num_rows,
                tokenizer=tokenizer,
                eos_id=eos_id,
                dtype=dtype,
                ids=folder / split / f"{group:06d}.npy",
            )
            for group in range(metadata.num_row_groups)
        ]
    everything = list(chain.from_iterable(shards.values()))
    missing = [shard for shard in everything if not shard.ids.exists()]
    total, left = (sum(shard.documents for shard in each) for each in (everything, missing))
    with progress("tokenize", total, "documents", done=total - left) as bar:
        for documents in in_order(_encode_shard, missing):
            bar.advance(documents)
    return {split: [shard.ids for shard in shards[split]] for split in shards}


def count_tokens(shards: Sequence[Path]) -> int:
    """Number of ids in all shards."""
    return sum(ids.size for ids in _load(shards))


def write_windows(shards: Sequence[Path], context: int, path: Path) -> None:
    """Write the ids as one `.npy` array [windows, context], a shard at a time."""
    windows = count_tokens(shards) // context
    left = windows * context
    with path.open("wb") as file:
        for number, ids in enumerate(_load(shards)):
            if number == 0:
                header = {"descr": npy.dtype_to_descr(ids.dtype), "fortran_order": False, "shape": (windows, context)}
                npy.write_array_header_1_0(file, header)
            file.write(ids[:left].tobytes())
            left -= min(left, ids.size)


def document_ends(shards: Sequence[Path]) -> NDArray[np.int64]:
    """End offset of each document, after its EOS, in the ids of all shards: int64 [documents]."""
    return np.cumsum(np.concatenate([np.load(_lengths(shard)) for shard in shards]), dtype=np.int64)


def _lengths(shard: Path) -> Path:
    """The file with the number of ids, EOS included, of each document of a shard."""
    return shard.with_suffix(".lengths.npy")


def _load(shards: Sequence[Path]) -> Iterator[NDArray[np.unsignedinteger]]:
    for path in shards:
        yield np.load(path, mmap_mode="r")


def _encode_shard(shard: _Shard) -> int:
    """Write the shard's ids. Returns the number of its documents."""
    texts = read_texts(pq.ParquetFile(shard.text), shard.row_group)
    tokenizer = _tokenizer(shard.tokenizer)
    parts = [
        np.array([*ids, shard.eos_id], shard.dtype)
        for batch in _batches(texts)
        for ids in ids_of(tokenizer, batch, f"a document of row group {shard.row_group} of {shard.text}")
    ]
    _save(_lengths(shard.ids), np.array([part.size for part in parts]))
    _save(shard.ids, np.concatenate(parts))  # last: a shard whose ids exist is complete
    return shard.documents


def _save(path: Path, array: NDArray[Any]) -> None:
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


@cache
def _tokenizer(path: Path) -> Tokenizer:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes share the cores already
    return plain(Tokenizer.from_file(str(path)))
