"""Cached measurements, keyed by model, specification, data and code."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from cocomix.plumbing import distributed
from cocomix.plumbing.artifact import digest_of_json, write_atomically
from cocomix.plumbing.runtime import runtime
from cocomix.plumbing.sources import digest_of_sources

MEASURED = Path("artifacts/.measured")

Result = TypeVar("Result")


def once(
    kind: str, key: Mapping[str, Any], compute: Callable[[], Result], result: type[Result], *code: Path | str
) -> Result:
    """Return the result of `compute`, from `artifacts/.measured` if it was computed before.

    All processes of a job must call it, and all get the result of rank 0; the results of the others may differ in
    rounding, or be arbitrary where only rank 0 computes. A damaged file is computed again.

    Args:
        kind: what is measured, for people who read the files.
        key: all that the result depends on, as JSON values, such as the digests of the model and of the data.
        result: the result's type: dataclasses, named tuples, lists and dicts of JSON values.
        code: files of the modules that measure (`__file__`); they and their imports are part of the key.
    """
    identity = {"kind": kind, "key": dict(key), "code": [digest_of_sources(Path(each)) for each in code]}
    path, adapter = MEASURED / f"{digest_of_json(identity)}.json", TypeAdapter(result)
    is_first = runtime().rank == 0
    known = distributed.from_first(_known(path, adapter) if is_first else None)
    if known is None:
        computed = compute()
        if is_first:
            known = json.loads(json.dumps(adapter.dump_python(computed, mode="json")))
            content = identity | {"result": known, "sha256": digest_of_json(known)}
            write_atomically(path, (json.dumps(content) + "\n").encode())
        known = distributed.from_first(known)
    return adapter.validate_python(known)


def _known(path: Path, adapter: TypeAdapter[Result]) -> Any:
    """The result in a file, as JSON; None: the file is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
        adapter.validate_python(content["result"])
        return content["result"] if content["sha256"] == digest_of_json(content["result"]) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
