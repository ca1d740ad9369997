"""Measurements that are made once: of one model, with one specification, on the same data, by the same code."""

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
    """What `compute` returns, from `artifacts/.measured` if it was computed before.

    All processes of a job call it together, and all get what the first one computed; the others' results may differ in
    rounding, or be anything where only the first one computes. A file that is damaged is computed again.

    Args:
        kind: what is measured, for people who look into the files.
        key: all that decides the result: JSON values, such as the digests of the model and of the data.
        result: its type, of dataclasses, named tuples, lists and dicts of JSON values.
        code: the files of the modules that measure (`__file__`): with what they import, they are part of the key.
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
    """The result in a file, as JSON; None: there is none that is whole."""
    try:
        content = json.loads(path.read_bytes())
        adapter.validate_python(content["result"])
        return content["result"] if content["sha256"] == digest_of_json(content["result"]) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
