"""Artifacts: directories that are complete, checked and reproducible, or not there at all.

An artifact is a directory with a `manifest.json`, which is written last and names the stage, its parameters, the
digests of its inputs, and the rows, bytes and digest of every file. No time and no host name: the same inputs give
the same bytes. `Artifact` reads one and refuses a missing, short or altered file.

`Work` makes one. A stage works in `artifacts/.work/<stage>/<key>/`, where the key covers parameters, input digests
and code, so that what a killed process left is found again by the same work and never by other work:

    files/      finished files, each written aside, synced, renamed, and entered in journal.jsonl
    side/       small files for other places (metrics, plots), which may hold times
    scratch/    checkpoints; dropped when the artifact is published
    manifest.json   written when all is there

`publish` links the files into a new directory and renames it onto the artifact's place. The work folder stays
until other work of the stage succeeds: hard links cost no disk, and a crash before DVC has noted the result costs
nothing either.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from cocomix import distributed
from cocomix.errors import UserError
from cocomix.runtime import runtime
from cocomix.sources import digest_of_sources

MANIFEST = "manifest.json"


def _stay_inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("leads out of the artifact")
    return name


FileName = Annotated[str, AfterValidator(_stay_inside)]
"""A path relative to the artifact."""


class FileRecord(BaseModel):
    """What the manifest says of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int | None
    """Records in the file, where that means something."""
    bytes: int
    sha256: str


class JournalEntry(BaseModel):
    """A line of journal.jsonl: files that were finished together, by name."""

    files: dict[FileName, FileRecord]


class Manifest(BaseModel):
    """The content of manifest.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    fingerprint: str
    """Digest of stage, parameters and inputs."""
    inputs: dict[str, str]
    """Digest of the manifest of each input artifact (or of another input) by name."""
    params: dict[str, Any]
    """The parameters that the stage used."""
    about: dict[str, Any]
    """Facts that readers of the artifact need, such as shapes."""
    files: dict[FileName, FileRecord]


class _Facts(dict[str, Any]):
    """Facts of a manifest, in which a missing one is an error that names the file."""

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        super().__init__(facts)
        self._path = path

    def __missing__(self, name: str) -> Any:
        raise UserError(f"{self._path}: says nothing of {name!r}; remove {self._path.parent} and run its stage again")


class Artifact:
    """A published artifact, opened for reading.

    Raises:
        UserError: when it is missing, or a file of it is missing, short, or altered (the digest is compared when
            a file is first asked for); the message names the file and the stage to run again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if (path / MANIFEST).is_fifo():  # which would be waited for
                raise OSError
            content = (path / MANIFEST).read_bytes()
            self.manifest = Manifest.model_validate_json(content)
        except FileNotFoundError:
            raise UserError(f"{path}: not there or incomplete (no {MANIFEST}); run the stage that makes it") from None
        except (ValidationError, OSError):
            raise UserError(f"{path / MANIFEST}: damaged; remove {path} and run the stage that makes it") from None
        says = {name: _Facts(path / MANIFEST, getattr(self.manifest, name)) for name in ("about", "inputs")}
        self.manifest = self.manifest.model_copy(update=says)
        self.digest = hashlib.sha256(content).hexdigest()
        self._verified: set[str] = set()
        for name, record in self.manifest.files.items():
            self._check_size(name, record)

    @property
    def about(self) -> dict[str, Any]:
        """Facts about the content, as the stage wrote them."""
        return self.manifest.about

    def names(self, prefix: str = "") -> list[str]:
        """Names of the files that begin with `prefix`, shorter ones first: file 100000 comes after 99999."""
        names = [name for name in self.manifest.files if name.startswith(prefix)]
        return sorted(names, key=lambda name: (len(name), name))

    def rows(self, name: str) -> int:
        """Records in a file."""
        rows = self.manifest.files[name].rows
        assert rows is not None, name
        return rows

    def file(self, name: str) -> Path:
        """The path of a file whose content has been compared with its digest."""
        if name not in self.manifest.files:
            raise UserError(f"{self.path / name}: no such file in this artifact; {self._remedy}")
        if name not in self._verified:
            record = self.manifest.files[name]
            self._check_size(name, record)
            if digest_of(self.path / name) != record.sha256:
                raise self._damage(name, "altered since it was written (its digest differs)")
            self._verified.add(name)
        return self.path / name

    def verified(self) -> Path:
        """The artifact's path, with every file compared with its digest: for readers that take a folder."""
        for name in self.manifest.files:
            self.file(name)
        return self.path

    @property
    def _remedy(self) -> str:
        return f"remove {self.path} and run the stage {self.manifest.stage!r} again"

    def _check_size(self, name: str, record: FileRecord) -> None:
        try:
            size = (self.path / name).stat().st_size
        except FileNotFoundError:
            raise UserError(f"{self.path / name}: missing; {self._remedy}") from None
        if size != record.bytes:
            raise self._damage(name, f"has {size} bytes, not {record.bytes}")

    def _damage(self, name: str, what: str) -> UserError:
        # DVC's cache may share the file by a hard link, and it trusts what is read-only: it would bring the damage
        # back. What is writable it checks, and drops.
        with suppress(PermissionError):
            (self.path / name).chmod(0o644)
        return UserError(f"{self.path / name}: {what}; {self._remedy}")


@dataclass
class PendingFile:
    """A file that is being written aside."""

    path: Path
    """Where to write it."""
    rows: int | None = None
    """Set by the writer, for the manifest."""


class Work:
    """The work folder of one stage, held by one job at a time (whose processes may be several).

    Args:
        stage: the DVC name, such as `sae` or `pretrain@ntp-0`.
        out: where the artifact is published; its parent holds `.work`.
        inputs: digests by name.
        params: the parameters that the result depends on.
        side: names in `side/` and where `publish` copies them to.

    Raises:
        UserError: when another job holds the stage.
    """

    def __init__(
        self,
        stage: str,
        out: Path,
        inputs: Mapping[str, str],
        params: Mapping[str, Any],
        side: Mapping[str, Path] | None = None,
        root: Path = Path("artifacts/.work"),
    ) -> None:
        self.stage, self.out, self._side_targets = stage, out, dict(side or {})
        self.inputs, self._params = dict(inputs), dict(params)
        self._fingerprint = _digest_of_json({"stage": stage, "inputs": self.inputs, "params": self._params})
        key = _digest_of_json({"fingerprint": self._fingerprint, "code": _digest_of_program()})[:16]
        self._home = root / stage
        self.path = self._home / key
        self._aside = self.path / "writing"
        self.files, self.side, self.scratch = (self.path / each for each in ("files", "side", "scratch"))
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        if runtime().rank == 0:
            self._home.mkdir(parents=True, exist_ok=True)
            self._lock = _hold(self._home / "lock", self.stage)
            shutil.rmtree(self._aside, ignore_errors=True)
            for folder in (self.files, self.side, self.scratch):
                folder.mkdir(parents=True, exist_ok=True)
            if not self._is_finish_intact():
                (self.path / MANIFEST).unlink(missing_ok=True)
        distributed.barrier()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock:
            self._lock.close()

    @property
    def finished(self) -> bool:
        """Whether everything was computed, by this process or an earlier one."""
        return (self.path / MANIFEST).exists()

    def has(self, name: str) -> bool:
        """Whether an earlier process finished this file, and its content is still what it wrote."""
        record = self.records().get(name)
        return record is not None and self._is_intact(name, record)

    def records(self) -> dict[str, FileRecord]:
        """What has been finished so far, by any process of the job: by name."""
        path = self.path / "journal.jsonl"
        records: dict[str, FileRecord] = {}
        for line in path.read_bytes().splitlines() if path.exists() else []:
            with suppress(ValidationError):  # blank, or torn: the files it spoke of are written again
                records |= JournalEntry.model_validate_json(line).files
        return records

    @contextmanager
    def write(self, name: str) -> Iterator[PendingFile]:
        """Write one file of the artifact: it appears whole, on the disk, or not at all."""
        pending = PendingFile(self._aside / str(runtime().rank) / name)
        pending.path.parent.mkdir(parents=True, exist_ok=True)
        yield pending
        self._commit({name: pending})

    @contextmanager
    def write_folder(self) -> Iterator[Path]:
        """Write several files, by a library that takes a folder: each appears under its path in it, all or none."""
        folder = self._aside / f"{runtime().rank}-folder"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
        paths = sorted(each for each in folder.rglob("*") if each.is_file())
        self._commit({str(path.relative_to(folder)): PendingFile(path) for path in paths})

    def finish(self, about: Mapping[str, Any]) -> None:
        """Say that everything is there, side files included: write the manifest."""
        for name in self._side_targets:
            _sync(self.side / name)
        manifest = Manifest(
            stage=self.stage,
            fingerprint=self._fingerprint,
            inputs=self.inputs,
            params=self._params,
            about=dict(about),
            files=dict(sorted(self.records().items())),
        )
        text = json.dumps(manifest.model_dump(), indent=1, sort_keys=True, ensure_ascii=False)
        write_atomically(self.path / MANIFEST, (text + "\n").encode())

    def publish(self) -> None:
        """Put the finished artifact, and the side files, in their places; forget other work of the stage."""
        manifest = Manifest.model_validate_json((self.path / MANIFEST).read_bytes())
        staging = self._home / "publishing"
        shutil.rmtree(staging, ignore_errors=True)
        for name in manifest.files:
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(self.files / name, target)
        shutil.copyfile(self.path / MANIFEST, staging / MANIFEST)
        for folder in (staging, *(each for each in staging.rglob("*") if each.is_dir())):
            _sync(folder)
        for name, place in self._side_targets.items():
            write_atomically(place, (self.side / name).read_bytes())
        old = self._home / "replaced"
        shutil.rmtree(old, ignore_errors=True)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        if self.out.exists():
            self.out.rename(old)
        staging.rename(self.out)
        _sync(self.out.parent)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(self.scratch, ignore_errors=True)
        for other in self._home.iterdir():
            if other.is_dir() and other != self.path:
                shutil.rmtree(other)

    def _commit(self, pending: Mapping[str, PendingFile]) -> None:
        entry = JournalEntry(files={name: _record(each.path, each.rows) for name, each in pending.items()})
        for name, each in pending.items():
            as_any_new(each.path)
            target = self.files / name
            target.parent.mkdir(parents=True, exist_ok=True)
            each.path.replace(target)
            _sync(target.parent)
        # The leading newline ends a line that a loss of power may have torn. The buffer holds all of it, so that it
        # goes out in one write, which is whole also when several processes append.
        line = f"\n{entry.model_dump_json()}\n".encode()
        with (self.path / "journal.jsonl").open("ab", buffering=len(line) + 1) as journal:
            journal.write(line)
            journal.flush()
            os.fsync(journal)

    def _is_finish_intact(self) -> bool:
        try:
            files = Manifest.model_validate_json((self.path / MANIFEST).read_bytes()).files
        except (FileNotFoundError, ValidationError):
            return False
        sides = all((self.side / name).is_file() for name in self._side_targets)
        return sides and all(self._is_intact(*each) for each in files.items())

    def _is_intact(self, name: str, record: FileRecord) -> bool:
        path = self.files / name
        return path.is_file() and path.stat().st_size == record.bytes and digest_of(path) == record.sha256


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests_of(path: Path) -> dict[str, str]:
    """SHA-256 of the files in a folder, or of one file, by name."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {each.name: digest_of(each) for each in files if each.is_file()}


def as_any_new(path: Path) -> None:
    """Give a file the mode that the umask gives: what safetensors writes is for its owner's eyes alone."""
    umask = os.umask(0o077)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replace a file by `content`: readers, also after a loss of power, see the old or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.aside")
    aside.write_bytes(content)
    _sync(aside)
    aside.replace(path)
    _sync(path.parent)


def _digest_of_program() -> str:
    program = getattr(sys.modules["__main__"], "__file__", None)
    return digest_of_sources(Path(program)) if program else "interactive"


def _record(path: Path, rows: int | None) -> FileRecord:
    _sync(path)
    return FileRecord(rows=rows, bytes=path.stat().st_size, sha256=digest_of(path))


def _digest_of_json(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
        _sync(target)


def _hold(path: Path, stage: str) -> IO[str]:
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise UserError(
            f"{stage}: process {file.read().strip()} is already at work on this stage; wait for it"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
