"""What a stage reads must be the same when it ends as when it began.

DVC notes what lies there after the stage has ended as what the artifact was made from. The key of the work, too, may
name a file by a digest from before or after it was read.
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
    """What dvc.yaml says that this stage reads, as it is now.

    The code is held by `sources.hold`, and compared with it.

    Args:
        params: as the stage has read them.

    Raises:
        UserError: when a file outside is another one than DVC would note.
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
        """Of all, code included: the same in all processes of a job."""
        code = [source.digest for _, source in sorted(sources.HELD.items())]
        return hashlib.sha256(repr((self._files, self._others, code)).encode()).hexdigest()

    def check_files(self) -> None:
        """Check the files that are read without an artifact's manifest: they may have been read after the change.

        Raises:
            UserError: when one is another than at the start.
        """
        _compare(self._files, self._read_files(load()))

    def check(self) -> None:
        """Check everything.

        Raises:
            UserError: when something is not as it was at the start.
        """
        now = load()
        _compare(self._others, self._read_others(now))
        _compare(self._files, self._read_files(now))
        sources.check()

    def _read_files(self, params: Params) -> dict[str, object]:
        """Figures of other stages, templates and what is outside the project: digests by what they are of."""
        files = (each for dep in self._deps if not _is_artifact(dep) for each in _files(dep) if each.suffix != ".py")
        found: dict[str, object] = {str(path): digest_of(path) for path in files}
        for key in self._keys.get(external.FILE, []):
            found[f"what {key} ({FILE}) names"] = external.digest_of(key, params)
        return found

    def _read_others(self, params: Params) -> dict[str, object]:
        """Parameters, keys of artifacts' files, and artifacts, by their manifests."""
        found: dict[str, object] = {f"{FILE}: {key}": repr(attrgetter(key)(params)) for key in self._keys[FILE]}
        for path, keys in self._keys.items():
            if path != FILE:
                found |= {f"{path}: {key}": _value(path, key) for key in keys}
        manifests = [each for dep in self._deps if _is_artifact(dep) for each in dep.rglob(MANIFEST)]
        return found | {str(each.parent): digest_of(each) for each in sorted(manifests)}

    def _check_noted(self) -> None:
        """DVC will note the digest that the stage `check` has found."""
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
    """The name in dvc.yaml of the stage that DVC runs here; none: DVC runs none.

    To DVC, in another folder than dvc.yaml's, it is `../dvc.yaml:sae`.
    """
    return os.environ.get("DVC_STAGE", "").rpartition(":")[2] or None


def _name_and_item() -> tuple[str, str]:
    """Of `pretrain@ntp-0`: pretrain and ntp-0. DVC says it, else the command line."""
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
    """A key of a JSON file, such as `base.pretrained`; none: it is not there."""
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
