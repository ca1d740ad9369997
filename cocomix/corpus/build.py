"""Build the corpus: from a source of documents to the three splits."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from cocomix.corpus.files import FileRow, document_of, files_digest, find_files, read_rows
from cocomix.corpus.hub import read_hub
from cocomix.corpus.installed import InstalledDocs, read_installed_docs, split_groups, versions
from cocomix.corpus.parts import Stretch, in_parts, kept, stretches
from cocomix.corpus.splits import SPLITS, Split
from cocomix.corpus.store import CorpusWriter, Document, SplitSize, digest_of_text, none_fits
from cocomix.params import CorpusParams
from cocomix.plumbing.errors import UserError


class CorpusSummary(NamedTuple):
    """Sizes of the corpus, and what was dropped."""

    splits: Mapping[Split, SplitSize]
    sources: int
    """Packages, files or datasets read."""
    dropped: Mapping[str, int]
    """Number of dropped items by kind."""
    limited: bool
    """Whether corpus.megabytes left out the rest of the source."""


class AssignedDocument(NamedTuple):
    """A document with its split, its digest, and the number of bytes of its text."""

    split: Split
    digest: bytes
    document: Document
    size: int


def fingerprint(params: CorpusParams) -> str:
    """Identify the source's content, which decides the corpus together with parameters and code."""
    match params.source:
        case "installed-docs":
            return versions()
        case "files":
            return files_digest(params.files.paths)
        case "hub":
            return f"{params.hub.dataset}@{params.hub.revision}"


def build(params: CorpusParams, folder: Path) -> CorpusSummary:
    """Write the de-duplicated documents to `<split>.parquet` in `folder`.

    Parts that an earlier process has read are kept there, and are not read again.

    Raises:
        UserError: when nothing is left, or a split stays empty.
    """
    dropped: Counter[str] = Counter()
    limited = False
    limit, most = params.limit
    parts = folder / "parts"
    match params.source:
        case "installed-docs":
            found = read_installed_docs(parts, most)
            sources, assigned = len(found.groups), _assigned_by_package(found, params, dropped)
            limited = found.limited
        case "files":
            rows = stretches(read_rows(params.files), lambda row: len(row.content))
            documents = in_parts(partial(_documents, params.files.text_field), rows, parts)
            sources, assigned = len(find_files(params.files.paths)), _assigned_by_digest(documents, params, dropped)
        case "hub":
            done = kept(parts)
            more = stretches(read_hub(params.hub, sum(done)), lambda document: len(document.text))
            documents = in_parts(Stretch.all, chain([None] * len(done), more), parts)
            sources, assigned = 1, _assigned_by_digest(documents, params, dropped)
    first_beyond: AssignedDocument | None = None
    left = most
    with CorpusWriter(folder) as writer:
        for each in assigned:
            left -= each.size
            if left < 0:
                first_beyond = each
                break
            writer.add(*each)
        sizes = writer.sizes()
    limited = limited or first_beyond is not None
    total = sum(size.documents for size in sizes.values())
    if not total and first_beyond:
        raise none_fits(first_beyond.document.source, first_beyond.size)
    if not total:
        raise UserError(f"corpus: nothing is left of {params.source}; dropped: {dict(dropped) or 'nothing'}")
    for split in SPLITS:
        if not sizes[split].documents:
            more_text = f"raise {limit} ({most / 1e6:g})" if limited else "give more text"
            share = "" if split == "train" else f", or raise corpus.{split}_share"
            raise UserError(f"corpus: no document for the {split} split ({total} in all): {more_text}{share}")
    return CorpusSummary(sizes, sources, dropped, limited)


def _documents(field: str, rows: Stretch[FileRow]) -> Iterator[Document]:
    return (document_of(row, field) for row in rows.all())


def _assigned_by_digest(
    parts: Iterable[list[Document]], params: CorpusParams, dropped: Counter[str]
) -> Iterator[AssignedDocument]:
    """Yield every document that is neither empty nor repeated; its split is a function of its text alone.

    Repeats are found by 8-byte digests. The probability that any two of N documents collide is N^2 / 2^65: 2e-6 for
    eight million. A digest takes 80 to 110 bytes of memory.
    """
    seen = set[bytes]()
    validation, test = params.validation_share * 2**64, params.test_share * 2**64
    for document in chain.from_iterable(parts):
        text = document.text.encode()
        if not text:
            dropped["empty documents"] += 1
            continue
        digest = digest_of_text(text)
        if digest in seen:
            dropped["repeated documents"] += 1
            continue
        seen.add(digest)
        number = int.from_bytes(digest, "big")
        split: Split = "validation" if number < validation else "test" if number < validation + test else "train"
        yield AssignedDocument(split, digest, document, len(text))


def _assigned_by_package(
    found: InstalledDocs, params: CorpusParams, dropped: Counter[str]
) -> Iterator[AssignedDocument]:
    """Yield all documents in the order of their digests, which is a random order."""
    dropped.update({"repeated paragraphs": found.repeated, "short documents": found.short})
    texts = {group: [each.text.encode() for each in documents] for group, documents in found.groups.items()}
    sizes = {group: sum(map(len, each)) for group, each in texts.items()}
    splits = split_groups(sizes, params.validation_share, params.test_share)
    assigned = [
        AssignedDocument(splits[group], digest_of_text(text), document, len(text))
        for group, documents in found.groups.items()
        for document, text in zip(documents, texts[group], strict=True)
    ]
    return iter(sorted(assigned, key=lambda each: each.digest))
