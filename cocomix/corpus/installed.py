"""The documentation of the standard library and of the packages that the pipeline needs, as a corpus.

Other installed packages (tools, extras) are not read, so that they do not change the training data.

This corpus needs no download and is real expository English. Packages repeat their own phrases, so a paragraph is
dropped when it differs from an earlier one in names and numbers only, and a whole package goes to one split.
"""

import ast
import gc
import hashlib
import re
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from itertools import groupby
from pathlib import Path, PurePath
from typing import NamedTuple

from packaging.metadata import parse_email
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cocomix.corpus.parts import in_parts, read_documents
from cocomix.corpus.prose import fold, paragraphs
from cocomix.corpus.splits import Split
from cocomix.corpus.store import Document, none_fits
from cocomix.plumbing.errors import UserError, install
from cocomix.plumbing.progress import Progress, progress

_OURS, _EXTRA = "cocomix", "pipeline"
_MIN_CHARACTERS = 100
"""Shorter documents are dropped: they have too little context to learn from."""
_BATCH = 64
"""Files per part."""
_GENERATED = re.compile(rb"auto(?:matically|-)? ?generated|do not edit|@generated", re.IGNORECASE)
"""Marks, near the top of a file, that it is generated: such files repeat others or hold tables."""
_SKIPPED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "testing", "_vendor", "vendor", "vendored", "third_party"}
)


class DocumentationFile(NamedTuple):
    """A file with documentation: a Python module, or the metadata of a distribution."""

    group: str
    """The top-level package."""
    source: str
    path: Path


class InstalledDocs(NamedTuple):
    """The documents that were found, and what was dropped."""

    groups: dict[str, list[Document]]
    """Documents by top-level package."""
    repeated: int
    """Paragraphs dropped because they differ from an earlier one in names and numbers only."""
    short: int
    """Documents dropped as too short."""
    limited: bool
    """Whether the limit left out further text."""


def versions() -> str:
    """Digest of the versions of Python and of the packages that are read.

    It is computed anew on each call: a stage compares it before and after its work.
    """
    names = [f"{name}=={each.version}" for name, each in needed().items()]
    return hashlib.sha256("\n".join([sys.version, *names]).encode()).hexdigest()


def read_installed_docs(parts: Path, limit: tuple[str, float]) -> InstalledDocs:
    """Read, clean and de-duplicate the documentation on this machine, until the bytes of text that it allows are kept.

    Args:
        parts: the folder that keeps the paragraphs of the files, so that a resumed run does not read them again.
        limit: see `CorpusParams.limit`.

    Raises:
        UserError: when the first text is larger than the limit.
    """
    parameter, left = limit
    origins = find_documentation()
    groups: dict[str, list[Document]] = {}
    seen: set[str] = set()
    repeated = short = 0
    limited = False
    with progress("corpus", len(origins), "files") as bar:
        for (source, group), found in _read(origins, parts, bar):
            kept = []
            for paragraph in found:
                key = fold(paragraph)
                if key in seen:
                    repeated += 1
                else:
                    seen.add(key)
                    kept.append(paragraph)
            text = "\n\n".join(kept)
            size = len(text.encode())
            left -= size
            if left < 0:
                if not groups:
                    raise none_fits(parameter, source, size)
                limited = True
                break
            if len(text) >= _MIN_CHARACTERS:
                groups.setdefault(group, []).append(Document(source, group, text))
            elif text:
                short += 1
    return InstalledDocs(groups, repeated, short, limited)


def split_groups(sizes: Mapping[str, int], validation_share: float, test_share: float) -> dict[str, Split]:
    """Assign whole groups to the splits, so that the shares of bytes are close to the requested ones.

    Groups are ordered by a hash of their names; validation is filled from the front and test from the back, so one
    more package moves hardly any other. A group larger than half of a held-out split goes to train, so that no
    held-out split is a single package.

    Args:
        sizes: bytes by group.
    """
    order = sorted(sizes, key=lambda group: hashlib.sha256(group.encode()).digest())
    total = sum(sizes.values())
    splits: dict[str, Split] = dict.fromkeys(order, "train")
    ends: list[tuple[Split, float, list[str]]] = [
        ("validation", validation_share, order),
        ("test", test_share, order[::-1]),
    ]
    for split, share, groups in ends:
        wanted, taken = share * total, 0
        for group in groups:
            if splits[group] == "train" and sizes[group] <= wanted / 2:
                if taken + sizes[group] / 2 > wanted:
                    break
                splits[group] = split
                taken += sizes[group]
    return splits


def needed() -> dict[str, Distribution]:
    """The installed distributions that the pipeline needs, directly or indirectly, by name, in alphabetical order.

    Raises:
        UserError: when this project is not installed: its metadata lists the requirements.
    """
    found: dict[str, Distribution] = {}
    done: set[tuple[str, str]] = set()
    waiting = [(_OURS, ""), (_OURS, _EXTRA)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in done:
            continue
        done.add((name, extra))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # for another platform, or not used
            continue
        for requirement in map(Requirement, found[name].requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(requirement.name), each) for each in ("", *requirement.extras)]
    if _OURS not in found:
        raise UserError(f"corpus.source: installed-docs needs this project to be installed: {install('pipeline')}")
    return {name: each for name, each in sorted(found.items()) if name != _OURS}


def find_documentation() -> list[DocumentationFile]:
    """All files with documentation, without tests, vendored copies and this project.

    They are ordered by a hash of their names, so that any prefix has files of every large package.
    """
    found = list(_standard_library())
    for each in needed().values():
        found += _files_of(each)
    # A file that two distributions claim is read once. Sorting by name before path makes the choice independent of
    # where packages are installed.
    once = {origin.source: origin for origin in sorted(found)}.values()
    return sorted(once, key=lambda origin: hashlib.sha256(origin.source.encode()).digest())


def _standard_library() -> Iterator[DocumentationFile]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if not _is_skipped(relative):
            yield DocumentationFile("python", f"python/{relative.as_posix()}", path)


def _files_of(distribution: Distribution) -> Iterator[DocumentationFile]:
    modules = [file for file in distribution.files or [] if file.suffix == ".py" and not _is_skipped(file)]
    modules = [file for file in modules if ".." not in file.parts]  # scripts
    tops = Counter(_top(file.parts[0]) for file in modules)
    for file in modules:
        yield DocumentationFile(_top(file.parts[0]), file.as_posix(), Path(str(file.locate())))
    group = max(sorted(tops), key=lambda top: tops[top], default=distribution.name)
    for file in distribution.files or []:
        if file.name == "METADATA" and file.parent.name.endswith(".dist-info") and len(file.parts) == 2:
            yield DocumentationFile(group, f"{distribution.name} (description)", Path(str(file.locate())))


def _top(part: str) -> str:
    return part.removesuffix(".py")


def _is_skipped(path: PurePath) -> bool:
    return not _SKIPPED.isdisjoint(path.parts) or path.name.startswith("test_") or path.name == "conftest.py"


def _read(origins: list[DocumentationFile], parts: Path, bar: Progress) -> Iterator[tuple[tuple[str, str], list[str]]]:
    """Yield source and group of each file that has paragraphs, and its paragraphs."""
    batches = [origins[start : start + _BATCH] for start in range(0, len(origins), _BATCH)]
    for batch, found in zip(batches, in_parts(_paragraphs, batches, parts), strict=True):
        for file, each in groupby(read_documents(found), key=lambda paragraph: paragraph[:2]):
            yield file, [paragraph.text for paragraph in each]
        bar.advance(len(batch))


def _paragraphs(origins: Iterable[DocumentationFile]) -> Iterator[Document]:
    """Yield each paragraph of each file."""
    gc.disable()  # syntax trees have no reference cycles, and searching for them takes a third of the time
    for origin in origins:
        for text in _texts(origin.path):
            for paragraph in paragraphs(text):
                yield Document(origin.source, origin.group, paragraph)


def _texts(path: Path) -> Iterator[str]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # listed, but removed since
        return
    if path.name == "METADATA":
        yield parse_email(content)[0].get("description", "")
    elif (b'"""' in content or b"'''" in content) and not _GENERATED.search(content, 0, 2000):
        try:
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(content)
        except (SyntaxError, ValueError):  # a template, or Python 2
            return
        yield from _documentation(tree)


def _documentation(node: ast.AST) -> Iterator[str]:
    """Yield the documentation below a node, in the order of the source.

    It consists of every string that is a statement (docstrings, also those of attributes), and of multi-line strings
    that are assigned or passed to a function as documentation, as in `add_docstr(f, "...")`.
    """
    match node:
        case ast.Expr(value=ast.Constant(value=str(text))):
            yield text
        case ast.Assign(value=ast.Constant(value=str(text))) if "\n" in text:
            yield text
        case ast.Expr(value=ast.Call(args=arguments)):
            for argument in arguments:
                match argument:
                    case ast.Constant(value=str(text)) if "\n" in text:
                        yield text
    for block in ("body", "handlers", "orelse", "finalbody"):
        for child in getattr(node, block, ()):
            yield from _documentation(child)
