"""Build the corpus: from a source of documents to the three splits."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from cocomix.corpus.contamination import Contamination
from cocomix.corpus.files import FileRow, document_of, files_digest, find_files, read_rows
from cocomix.corpus.hub import read_hub
from cocomix.corpus.installed import InstalledDocs, read_installed_docs, split_groups, versions
from cocomix.corpus.parts import Marks, Stretch, in_parts, in_shared_parts, kept, stretches
from cocomix.corpus.selection import select
from cocomix.corpus.splits import SPLITS, Split
from cocomix.corpus.store import CorpusWriter, Document, SplitSize, digest_of_text, none_fits
from cocomix.params import CorpusParams
from cocomix.plumbing import distributed
from cocomix.plumbing.artifact import digest_of_json
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.progress import progress
from cocomix.plumbing.runtime import runtime
from cocomix.plumbing.sources import state_of

_BATCH = 1000
"""Documents per part where the documents of packages are looked through again."""


class CorpusSummary(NamedTuple):
    """Sizes of the corpus, and what was dropped."""

    splits: Mapping[Split, SplitSize]
    sources: int
    """Packages, files or datasets read."""
    dropped: Mapping[str, int]
    """Number of dropped items by kind."""
    contaminated: Mapping[str, Contamination] | None
    """Documents that contain a piece of each benchmark; None: they were not looked for."""
    limited: bool
    """Whether a limit (`CorpusParams.limit`) left out the rest of the source."""


def fingerprint(params: CorpusParams) -> str:
    """Identify the source's content, which decides the corpus together with parameters and code."""
    match params.source:
        case "installed-docs":
            return versions()
        case "files":
            return files_digest(params.files.paths)
        case "hub":
            return f"{params.hub.dataset}@{params.hub.revision}"


def build(params: CorpusParams, folder: Path, benchmarks: Path | None = None) -> CorpusSummary | None:
    """Write the chosen documents to `<split>.parquet` in `folder`; all processes must call it.

    Parts that an earlier process has read are kept there, and are not read again, unless one of the files was written
    since. The processes share the parts of files. A source of which only a part may be needed is read by the first
    process alone, with its workers.

    Args:
        benchmarks: the file of the texts to evaluate on (see `write_benchmarks`); None: they are not looked for.

    Returns:
        The summary; None in all processes but the first.

    Raises:
        UserError: when nothing is left, or a split stays empty.
    """
    limit, most = params.limit
    is_shared = params.source == "files" and math.isinf(most) and runtime().world_size > 1
    if runtime().rank and not is_shared:
        return None
    of_source: Mapping[str, int] = {}
    limited = False
    marks = Marks(params.near_duplicates is not None, benchmarks)
    parts = folder / "parts"
    assign: Callable[[int, str], Split] = partial(_by_digest, params.validation_share, params.test_share)
    match params.source:
        case "installed-docs":
            found = read_installed_docs(parts, params.limit)
            of_source = {"repeated paragraphs": found.repeated, "short documents": found.short}
            sources, limited = len(found.groups), found.limited
            batches, assign = _in_batches(found, params)
            paths = in_parts(list, batches, folder / "documents", marks)
        case "files":
            state = _state_of(find_files(params.files.paths))
            parts = folder / f"parts-{distributed.from_first(state) if is_shared else state}"
            lines = stretches(read_rows(params.files), lambda row: len(row.content))
            documents = partial(_documents, params.files.text_field)
            sources = len(find_files(params.files.paths))
            paths = (in_shared_parts if is_shared else in_parts)(documents, lines, parts, marks)
        case "hub":
            done = kept(parts)
            more = stretches(read_hub(params.hub, sum(done)), lambda document: len(document.text))
            sources, paths = 1, in_parts(Stretch.all, chain([None] * len(done), more), parts, marks)
    if runtime().rank:
        return None
    selection = select(paths, params, marks, assign, folder)
    documents_left = sum(len(part.rows) for part in selection.parts)
    with (
        CorpusWriter(folder) as writer,
        progress("corpus: writing", documents_left, "documents") as bar,
    ):
        for part in selection.parts:
            for split, table in part.tables():
                writer.add(split, table)
            bar.advance(len(part.rows))
        sizes = writer.sizes()
    limited = limited or selection.first_beyond is not None
    dropped = {**of_source, **selection.dropped}
    if not documents_left and selection.first_beyond:
        raise none_fits(limit, *selection.first_beyond)
    if not documents_left:
        raise UserError(f"corpus: nothing is left of {params.source}; dropped: {dropped or 'nothing'}")
    for split in SPLITS:
        if not sizes[split].documents:
            more_text = f"raise {limit} ({most / 1e6:g})" if limited else "give more text"
            share = "" if split == "train" else f", or raise corpus.{split}_share"
            raise UserError(f"corpus: no document for the {split} split ({documents_left} in all): {more_text}{share}")
    return CorpusSummary(sizes, sources, dropped, selection.contaminated, limited)


def _state_of(files: list[Path]) -> str:
    """Digest of the sizes and times of files: one may change while it is read, and later get its old content back."""
    return digest_of_json([(os.fspath(path), *state_of(path)[:3]) for path in files])[:16]


def _documents(field: str, rows: Stretch[FileRow]) -> Iterator[Document]:
    return (document_of(row, field) for row in rows.all())


def _by_digest(validation_share: float, test_share: float, digest: int, _group: str) -> Split:
    """The split of a document: a function of its text alone."""
    validation, test = validation_share * 2**64, test_share * 2**64
    return "validation" if digest < validation else "test" if digest < validation + test else "train"


def _in_batches(
    found: InstalledDocs, params: CorpusParams
) -> tuple[Iterator[list[Document]], Callable[[int, str], Split]]:
    """All documents in batches, in the order of their digests, which is a random order; and the split of each."""
    texts = {group: [each.text.encode() for each in documents] for group, documents in found.groups.items()}
    sizes = {group: sum(map(len, each)) for group, each in texts.items()}
    splits = split_groups(sizes, params.validation_share, params.test_share)
    ordered = sorted(
        (digest_of_text(text), document)
        for group, documents in found.groups.items()
        for document, text in zip(documents, texts[group], strict=True)
    )
    documents = [document for _, document in ordered]
    batches = (documents[start : start + _BATCH] for start in range(0, len(documents), _BATCH))
    return batches, lambda _digest, group: splits[group]
