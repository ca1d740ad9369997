"""The files of additional evaluation corpora, and the documents in them."""

from collections.abc import Iterator
from contextlib import contextmanager

from cocomix.corpus.files import files_digest, find_files, read_files
from cocomix.corpus.store import Document
from cocomix.params import EvaluationCorpusParams, FilesParams
from cocomix.plumbing.errors import UserError

_BATCH_BYTES = 250_000
"""Bytes of a batch of documents."""


def digest_of_corpus_files(name: str, params: EvaluationCorpusParams) -> str:
    """Digest of the names and contents of the files of the corpus `name`.

    Raises:
        UserError: when a path matches no file, or a file of an unsupported kind.
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


def read_batches(name: str, params: EvaluationCorpusParams) -> Iterator[list[Document]]:
    """Documents stripped and not empty, as in the stage `corpus`, up to the first that exceeds `megabytes`.

    Raises:
        UserError: when a file cannot be read.
    """
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
