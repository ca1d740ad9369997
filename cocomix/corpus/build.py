"""From a source of documents to the three splits."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from cocomix.corpus.files import files_digest, find_files, read_files
from cocomix.corpus.hub import read_hub
from cocomix.corpus.installed import InstalledDocs, read_installed_docs, split_groups, versions
from cocomix.corpus.seen import Seen
from cocomix.corpus.store import CorpusWriter, Document, SplitSize, digest_of_text
from cocomix.errors import UserError
from cocomix.params import CorpusParams
from cocomix.splits import SPLITS, Split


class Summary(NamedTuple):
    """What became of the source."""

    splits: Mapping[Split, SplitSize]
    sources: int
    """Packages, files or datasets read."""
    dropped: Mapping[str, int]
    """How many of what was left out."""


class Dealt(NamedTuple):
    """A document with its digest and its split."""

    split: Split
    digest: bytes
    document: Document


def fingerprint(params: CorpusParams) -> str:
    """What the content of the source depends on, besides parameters and code."""
    match params.source:
        case "installed-docs":
            return versions()
        case "files":
            return files_digest(params.files.paths)
        case "hub":
            return f"{params.hub.dataset}@{params.hub.revision}"


def build(params: CorpusParams, folder: Path) -> Summary:
    """Write `<split>.parquet` into `folder`, without duplicates.

    Raises:
        UserError: when nothing is left, or a split stays empty.
    """
    dropped: Counter[str] = Counter()
    limit = float("inf") if params.megabytes is None else params.megabytes * 1e6
    match params.source:
        case "installed-docs":
            found = read_installed_docs(limit)
            sources, dealt = len(found.groups), _deal_packages(found, params, dropped)
        case "files":
            sources, dealt = len(find_files(params.files.paths)), _deal(read_files(params.files), params, dropped)
        case "hub":
            sources, dealt = 1, _deal(read_hub(params.hub), params, dropped)
    with CorpusWriter(folder) as writer:
        for split, digest, document in dealt:
            limit -= len(document.text.encode())
            if limit < 0:
                break
            writer.add(split, digest, document)
        sizes = writer.sizes()
    total = sum(size.documents for size in sizes.values())
    if not total:
        raise UserError(f"corpus: nothing is left of {params.source}; dropped: {dict(dropped) or 'nothing'}")
    for split in SPLITS:
        if not sizes[split].documents:
            share = "" if split == "train" else f", or raise corpus.{split}_share"
            raise UserError(f"corpus: no document for the {split} split ({total} in all): give more text{share}")
    return Summary(sizes, sources, dropped)


def _deal(documents: Iterable[Document], params: CorpusParams, dropped: Counter[str]) -> Iterator[Dealt]:
    """Every document that is not empty and was not there before; its split follows from its text alone."""
    seen = Seen()
    validation, test = params.validation_share * 2**64, params.test_share * 2**64
    for source, group, text in documents:
        document = Document(source, group, text.strip())
        if not document.text:
            dropped["empty documents"] += 1
            continue
        try:
            digest = digest_of_text(document.text)
        except UnicodeEncodeError as error:
            raise UserError(f"{source}: half a surrogate pair at character {error.start + 1}: not Unicode") from None
        if not seen.add(digest):
            dropped["repeated documents"] += 1
            continue
        number = int.from_bytes(digest, "big")
        split: Split = "validation" if number < validation else "test" if number < validation + test else "train"
        yield Dealt(split, digest, document)


def _deal_packages(found: InstalledDocs, params: CorpusParams, dropped: Counter[str]) -> Iterator[Dealt]:
    """All documents in the order of their digests, which is as good as shuffled."""
    dropped.update({"repeated paragraphs": found.repeated, "short documents": found.short})
    sizes = {group: sum(len(each.text.encode()) for each in documents) for group, documents in found.groups.items()}
    splits = split_groups(sizes, params.validation_share, params.test_share)
    dealt = [
        Dealt(splits[group], digest_of_text(document.text), document)
        for group, documents in found.groups.items()
        for document in documents
    ]
    return iter(sorted(dealt, key=lambda each: each.digest))
