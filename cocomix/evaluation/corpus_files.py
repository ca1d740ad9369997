"""The files of additional evaluation corpora, and the documents in them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cocomix.corpus.files import check_first_documents, files_digest, find_files, read_files
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


def files_of(name: str, params: EvaluationCorpusParams) -> list[Path]:
    """The files of the corpus `name`.

    Raises:
        UserError: when a path matches no file, or a file of an unsupported kind.
    """
    with _named(name):
        return find_files(params.paths)


def check_documents(name: str, params: EvaluationCorpusParams) -> None:
    """Check the first document of each file of the corpus `name`: reading all of them takes as long as the evaluation.

    Raises:
        UserError: when one cannot be read, or has no text field.
    """
    with _named(name):
        check_first_documents(_as_files(params))


def read_batches(name: str, params: EvaluationCorpusParams) -> Iterator[list[Document]]:
    """Documents stripped and not empty, as in the stage `corpus`, up to the first that exceeds `megabytes`.

    Raises:
        UserError: when a file cannot be read.
    """
    left = float("inf") if params.megabytes is None else params.megabytes * 1e6
    batch: list[Document] = []
    size = 0
    with _named(name):
        for document in read_files(_as_files(params)):
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


def _as_files(params: EvaluationCorpusParams) -> FilesParams:
    return FilesParams(paths=params.paths, text_field=params.text_field)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Rename the parameters in errors: the file reader names those of the stage `corpus`, not of this corpus."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("corpus.files", f"evaluate.corpora.{name}")) from None
