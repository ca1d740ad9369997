"""Near-duplicates by MinHash: documents with nearly the same runs of five words (Broder 1997).

The similarity of two documents is the Jaccard similarity of their sets of runs. A document's signature holds the
smallest hash of its runs under each of 128 hash functions, so the share of equal values estimates the similarity, with
a standard error of at most 0.045. Pairs are looked for in bands of a few values (locality-sensitive hashing).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cocomix.corpus.runs import combined, run_hashes
from cocomix.plumbing.progress import progress

VALUES = 128
"""Values of a signature; each takes 4 bytes."""
_WORDS = 5
"""Words of a run, as in FineWeb (arXiv 2406.17557)."""
_SEED = 1
_FOUND = 0.99
"""Least probability that a pair of exactly the wanted similarity shares a band."""
_BATCH = 1 << 12


def signatures(documents: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint32]:
    """The signatures of some documents: uint32 [documents, VALUES].

    Args:
        documents: the hashes of the words of each: see `word_hashes`.
    """
    from rensa import RMinHash  # an optional dependency

    found = [np.empty((0, VALUES), np.uint32)]
    for start in range(0, len(documents), _BATCH):
        runs = [run_hashes(words, min(_WORDS, len(words))) for words in documents[start : start + _BATCH]]
        offsets = np.cumsum([0, *map(len, runs)], dtype=np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(runs), offsets, VALUES, _SEED)
        found.append(np.array(matrix.to_rows(), np.uint32))
    return np.concatenate(found)


def repeats(
    signatures: NDArray[np.uint32], digests: NDArray[np.uint64], least: float, folder: Path
) -> NDArray[np.bool_]:
    """Which documents to drop, so that of each cluster of near-duplicates one is kept: bool [documents].

    The kept one has the smallest digest. So the order of the documents makes no difference. A document takes 60 bytes
    of memory, and 8 bytes of disk for each band.

    Args:
        signatures: uint32 [documents, VALUES], memory-mapped.
        digests: uint64 [documents], all different.
        least: similarity from which two documents are near-duplicates.
        folder: of the bands' hashes, while they are used.
    """
    parents = np.arange(len(digests))  # a tree for each cluster; its root has the smallest digest
    keys = _band_keys(signatures, rows_of_band(least), folder / "bands.npy")
    with progress("corpus: near-duplicates", len(keys), "bands") as bar:
        for band in keys:
            members, centres = _in_one_bucket(band, digests)
            apart = parents[members] != parents[centres]
            members, centres = members[apart], centres[apart]
            for start in range(0, len(members), _BATCH):
                some, other = members[start : start + _BATCH], centres[start : start + _BATCH]
                alike = (signatures[some] == signatures[other]).mean(axis=1) >= least
                for pair in zip(some[alike].tolist(), other[alike].tolist(), strict=True):
                    _join(parents, digests, *pair)
            bar.advance(1)
    (folder / "bands.npy").unlink()
    return parents != np.arange(len(parents))


def rows_of_band(least: float) -> int:
    """Values of a band: as many as still find a pair of that similarity with the probability `_FOUND`."""
    wanted = (rows for rows in range(VALUES, 0, -1) if 1 - (1 - least**rows) ** (VALUES // rows) >= _FOUND)
    return next(wanted, 1)


def _band_keys(signatures: NDArray[np.uint32], rows: int, path: Path) -> NDArray[np.uint64]:
    """The hash of each band of each signature, memory-mapped: uint64 [bands, documents]."""
    count = VALUES // rows
    keys: NDArray[np.uint64] = np.lib.format.open_memmap(path, "w+", np.uint64, shape=(count, len(signatures)))
    for start in range(0, len(signatures), _BATCH):
        some = signatures[start : start + _BATCH, : count * rows].astype(np.uint64).reshape(-1, count, rows)
        keys[:, start : start + _BATCH] = combined(some).T
    return keys


def _in_one_bucket(
    keys: NDArray[np.uint64], digests: NDArray[np.uint64]
) -> tuple[NDArray[np.signedinteger], NDArray[np.signedinteger]]:
    """The documents that share a key with another one, and of each the document with that key to compare it with.

    That is the one with the smallest digest: comparing all with each other would take quadratic time.
    """
    order = np.lexsort((digests, keys))
    ordered = keys[order]
    is_first = np.append(True, ordered[1:] != ordered[:-1])
    firsts = np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))
    return order[~is_first], order[firsts[~is_first]]


def _join(parents: NDArray[np.signedinteger], digests: NDArray[np.uint64], some: int, other: int) -> None:
    some, other = _root(parents, some), _root(parents, other)
    if digests[some] < digests[other]:
        some, other = other, some
    parents[some] = other


def _root(parents: NDArray[np.signedinteger], document: int) -> int:
    while (parent := int(parents[document])) != document:
        parents[document] = parents[parent]
        document = parent
    return document
