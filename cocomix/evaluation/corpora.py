"""Additional evaluation corpora: text files, packed into windows like the training corpus."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from cocomix.corpus.files import files_digest, find_files, read_files
from cocomix.corpus.store import Document
from cocomix.evaluation.text import EvaluationText, token_bytes
from cocomix.params import EvaluationCorpusParams, FilesParams
from cocomix.plumbing.errors import UserError
from cocomix.tokens.encoding import ids_of, plain
from cocomix.tokens.windows import Tokens

_BATCH_BYTES = 250_000
"""Bytes encoded at a time."""


def corpus_digest(name: str, params: EvaluationCorpusParams, tokens: Tokens) -> str:
    """Digest of all that `read_corpus` depends on besides its code: the files, the parameters and the tokenizer.

    Raises:
        UserError: when a path matches no file, or a file of an unsupported kind.
    """
    files = digest_of_corpus_files(name, params)
    tokenizer = [tokens.artifact.manifest.files[each].sha256 for each in tokens.artifact.names("tokenizer/")]
    state = [files, params.model_dump(), tokenizer, tokens.context]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def digest_of_corpus_files(name: str, params: EvaluationCorpusParams) -> str:
    """Digest of the names and contents of the files of the corpus `name`.

    Raises:
        UserError: as in `corpus_digest`.
    """
    with _named(name):
        return files_digest(params.paths)


def check_files(name: str, params: EvaluationCorpusParams) -> None:
    """Check that the files of the corpus `name` exist.

    Raises:
        UserError: when a path matches no file, or a file of an unsupported kind.
    """
    with _named(name):
        find_files(params.paths)


def read_corpus(name: str, params: EvaluationCorpusParams, tokens: Tokens) -> EvaluationText:
    """Read the corpus `name` into memory.

    Raises:
        UserError: when a file cannot be read, or the text fills no window.
    """
    tokenizer = tokens.tokenizer()
    encoder, dtype = plain(tokenizer.backend_tokenizer), tokens.windows("validation").dtype
    parts, groups, size = list[NDArray[np.unsignedinteger]](), list[str](), 0
    for batch in _batches(name, params):
        texts = [document.text for document in batch]
        for found in ids_of(encoder, texts, f"a document of evaluate.corpora.{name}"):
            parts.append(np.array([*found, tokens.eos_id], dtype))
        groups += [document.group for document in batch]
        size += sum(len(text.encode()) for text in texts)
    ids = np.concatenate([np.empty(0, dtype), *parts])
    windows = len(ids) // tokens.context
    if not windows:
        within = f" in whole documents up to megabytes ({params.megabytes})" if params.megabytes else ""
        raise UserError(
            f"evaluate.corpora.{name}: has {len(ids)} tokens{within}, too few for one window of "
            f"tokenize.context ({tokens.context})"
        )
    windowed = ids[: windows * tokens.context].reshape(windows, tokens.context)
    ends = np.cumsum([part.size for part in parts])
    return EvaluationText(windowed, ends, *token_bytes(tokenizer, size / len(ids)), groups)


def _batches(name: str, params: EvaluationCorpusParams) -> Iterator[list[Document]]:
    """Documents stripped and not empty, as in the stage `corpus`, up to the first that exceeds `megabytes`."""
    left = float("inf") if params.megabytes is None else params.megabytes * 1e6
    batch: list[Document] = []
    size = 0
    with _named(name):
        for document in read_files(FilesParams(paths=params.paths, text_field=params.text_field)):
            document = document.stripped()
            size += len(document.text.encode())
            if size > left:
                break
            if document.text:
                batch.append(document)
            if size >= _BATCH_BYTES:
                yield batch
                left, batch, size = left - size, [], 0
    yield batch


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Rename the parameters in errors: the file reader names those of the stage `corpus`, not of this corpus."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("corpus.files", f"evaluate.corpora.{name}")) from None
