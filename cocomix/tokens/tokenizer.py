"""The tokenizer: a byte-level BPE trained on the corpus, or a pretrained one."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from cocomix.plumbing.errors import UserError
from cocomix.tokens.spaced import spaced

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_DOCUMENT = "<|endoftext|>"
LONGEST_WORD = 1024
"""Bytes after which a word (letters, digits, signs or spaces in a row) is cut for training, which takes time quadratic
in a word's length: hours for one of 10 MB. Encoding takes n log n, and cuts nothing."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE with the end-of-document token as id 0. The same texts give the same tokenizer.

    It has fewer than `vocab_size` entries when the texts have too few different words.
    """
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.FixedLength(LONGEST_WORD)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = words
    return tokenizer


def load_trained(path: Path) -> "PreTrainedTokenizerFast":
    """Load a trained tokenizer for `transformers`."""
    from transformers import PreTrainedTokenizerFast  # takes seconds to import; the workers do not need it

    return PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token=END_OF_DOCUMENT)


def sample_texts(text: Path, size: float) -> Iterator[str]:
    """Yield about `size` bytes of documents from a Parquet file: whole row groups, evenly spaced, at least one."""
    parquet = pq.ParquetFile(text)
    groups = parquet.metadata.num_row_groups
    total = sum(parquet.metadata.row_group(group).total_byte_size for group in range(groups))
    wanted = groups if size >= total else max(1, round(groups * size / total))
    for group in spaced(groups, wanted).tolist():
        yield from read_texts(parquet, group)


def read_texts(parquet: pq.ParquetFile, row_group: int) -> list[str]:
    """The documents of one row group."""
    texts: list[str] = parquet.read_row_group(row_group, columns=["text"]).column(0).to_pylist()  # type: ignore[assignment]
    return texts


def load_pretrained(name: str, revision: str | None, key: str = "tokenize.pretrained") -> "PreTrainedTokenizerFast":
    """Load the tokenizer of a hub id or folder; of its special tokens, only the end-of-document token is kept.

    Documents are packed with that token alone, so using the model must not prepend another one to a text either.

    Args:
        key: the parameter that holds `name`, for errors.

    Raises:
        UserError: when no tokenizer is found, or it has no fast implementation or no end-of-document token.
    """
    from transformers import PreTrainedTokenizerFast

    from cocomix.pretrained import load_tokenizer  # imports torch

    tokenizer = load_tokenizer(key, name, revision)
    if not tokenizer.is_fast:
        raise UserError(f"{key}: {name!r}: a {type(tokenizer).__name__} is slow; a fast tokenizer is needed")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{key}: {name!r}: has no EOS token, which ends documents")
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.ByteLevel(trim_offsets=False)  # adds nothing
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=tokenizer.eos_token)
