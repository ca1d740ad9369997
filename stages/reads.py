"""Check that the inputs of a stage do not change while it runs.

DVC records the inputs after a stage has ended, as those that the artifact was made from. The key of the work may also
contain a file's digest from before or after the file was read.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from cocomix.check import external
from cocomix.params import FILE, Params, load
from cocomix.plumbing import sources
from cocomix.plumbing.artifact import MANIFEST, digest_of
from cocomix.plumbing.checked import read_yaml
from cocomix.plumbing.errors import UserError

DAG = Path("dvc.yaml")


class Reads:
    """The inputs of this stage according to dvc.yaml, in their current state.

    The code is fixed by `sources.hold`, and `check` compares it too.

    Args:
        params: the parameters that the stage has read.

    Raises:
        UserError: when an external file has another digest than DVC would record.
    """

    def __init__(self, params: Params) -> None:
        name, self._item = _name_and_item()
        entry = read_yaml(DAG)["stages"].get(name, {}) if DAG.exists() else {}
        self._deps = [Path(self._filled(each)) for each in entry.get("deps", [])]
        self._keys: dict[Path, list[str]] = {FILE: []} | dict(self._keys_of(entry))
        self._files, self._others = self._read_files(params), self._read_others(params)
        if stage_of_dvc():
            self._check_noted()

    @property
    def digest(self) -> str:
        """Digest of all inputs, including the code; equal in all processes of a job."""
        code = [source.digest for _, source in sorted(sources.HELD.items())]
        return hashlib.sha256(repr((self._files, self._others, code)).encode()).hexdigest()

    def check_files(self) -> None:
        """Check the files that are read without a manifest: they may have been read after a change.

        Raises:
            UserError: when one has changed since the start.
        """
        _compare(self._files, self._read_files(load()))

    def check(self) -> None:
        """Check all inputs.

        Raises:
            UserError: when one has changed since the start.
        """
        now = load()
        _compare(self._others, self._read_others(now))
        _compare(self._files, self._read_files(now))
        sources.check()

    def _read_files(self, params: Params) -> dict[str, object]:
        """Digests of other stages' metrics and plots, templates and external files, by name."""
        files = (each for dep in self._deps if not _is_artifact(dep) for each in _files(dep) if each.suffix != ".py")
        found: dict[str, object] = {str(path): digest_of(path) for path in files}
        for key in self._keys.get(external.FILE, []):
            found[f"what {key} ({FILE}) names"] = external.digest_of(key, params)
        return found

    def _read_others(self, params: Params) -> dict[str, object]:
        """Parameters, values of keys in artifacts' files, and manifest digests of artifacts, by name."""
        found: dict[str, object] = {f"{FILE}: {key}": repr(attrgetter(key)(params)) for key in self._keys[FILE]}
        for path, keys in self._keys.items():
            if path != FILE:
                found |= {f"{path}: {key}": _value(path, key) for key in keys}
        manifests = [each for dep in self._deps if _is_artifact(dep) for each in dep.rglob(MANIFEST)]
        return found | {str(each.parent): digest_of(each) for each in sorted(manifests)}

    def _check_noted(self) -> None:
        """Check the digests that the stage `check` has found, since DVC will record those."""
        for key in self._keys.get(external.FILE, []):
            if self._files[f"what {key} ({FILE}) names"] != self._others[f"{external.FILE}: {key}"]:
                raise UserError(f"what {key} ({FILE}) names changed since the stage 'check' ran; run that again")

    def _keys_of(self, entry: Mapping[str, Any]) -> Iterator[tuple[Path, list[str]]]:
        params = entry.get("params", [])
        yield FILE, [self._filled(each) for each in params if isinstance(each, str)]
        for each in params:
            if not isinstance(each, str):
                yield from ((Path(path), list(map(self._filled, keys))) for path, keys in each.items())

    def _filled(self, text: str) -> str:
        method, _, seed = self._item.rpartition("-")
        return text.replace("${item.method}", method).replace("${item.seed}", seed)


def stage_of_dvc() -> str | None:
    """The name in dvc.yaml of the stage that DVC runs; None: not run by DVC.

    If DVC runs in another folder than dvc.yaml's, it names the stage `../dvc.yaml:sae`.
    """
    return os.environ.get("DVC_STAGE", "").rpartition(":")[2] or None


def _name_and_item() -> tuple[str, str]:
    """The name and matrix item of the stage, pretrain and ntp-0 for `pretrain@ntp-0`; from DVC or the command line."""
    if stage := stage_of_dvc():
        name, _, item = stage.partition("@")
        return name, item
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return (module.name.rpartition(".")[2] if module else ""), "-".join(sys.argv[1:])


def _is_artifact(dep: Path) -> bool:
    return dep.parts[0] == external.FILE.parts[0]


def _files(dep: Path) -> list[Path]:
    found = sorted(dep.rglob("*")) if dep.is_dir() else [dep]
    return [each for each in found if each.is_file() and "__pycache__" not in each.parts]


def _value(path: Path, key: str) -> object:
    """The value of a key such as `base.pretrained` in a JSON file; None: it is missing."""
    try:
        value = json.loads(path.read_bytes())
        for each in key.split("."):
            value = value[each]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value


def _compare(before: Mapping[str, object], now: Mapping[str, object]) -> None:
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise UserError(f"{name} changed while this stage was at work; run it again: nothing is lost")
