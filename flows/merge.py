"""Merge two versions of dvc.lock stage by stage: a merge driver for git, for machines that share the trainings.

    git config merge.dvc-lock.driver "python -m flows.merge %O %A %B"

git merges lines, and the entries of two stages have many lines in common, so its own merge would mix them. DVC still
decides what is up to date: a merged entry counts only if parameters, code and inputs are those that it names.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.utils.serialize import dump_yaml, load_yaml

Entries = Mapping[str, Any]
"""The entries of the stages, by name."""


def merged(base: Entries, ours: Entries, theirs: Entries) -> tuple[dict[str, Any], list[str]]:
    """Merge the entries: each stage as the side has it that has changed or removed it.

    Args:
        base: those of the common ancestor.

    Returns:
        The entries, and the names of stages that both sides have changed, each in its way; they are as in `ours`.
    """
    changed = [name for name in {**base, **theirs} if theirs.get(name) != base.get(name)]
    clashes = [name for name in changed if ours.get(name) not in (base.get(name), theirs.get(name))]
    found = dict(ours)
    for name in set(changed) - set(clashes):
        if name in theirs:
            found[name] = theirs[name]
        else:
            found.pop(name, None)
    return dict(sorted(found.items())), clashes


def _entries(file: Path) -> dict[str, Any]:
    return dict(load_yaml(str(file)).get("stages") or {})


def main() -> None:
    """Run the command line."""
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="python -m flows.merge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, what in (("base", "the common ancestor"), ("ours", "our version; the result"), ("theirs", "theirs")):
        parser.add_argument(name, type=Path, help=what)
    given = parser.parse_args()
    try:
        stages, clashes = merged(*map(_entries, (given.base, given.ours, given.theirs)))
    except DvcException as error:
        sys.exit(f"error: dvc.lock: {' '.join(str(error).split())}")
    dump_yaml(str(given.ours), {"schema": "2.0", "stages": stages})
    if clashes:
        sys.exit(f"dvc.lock: both sides have changed {', '.join(clashes)}; ours stay: keep our metrics and plots too")


if __name__ == "__main__":
    main()
