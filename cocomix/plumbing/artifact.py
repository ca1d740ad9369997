"""Artifacts: directories that are either complete, checked and reproducible, or absent.

An artifact is a directory with a `manifest.json`, which is written last. It names the stage, its parameters, the
digests of its inputs, and the rows, bytes and digest of every file. It holds no time and no host name: the same inputs
give the same bytes. `Artifact` reads one and refuses a missing, short or altered file.

`Work` makes one. A stage works in `artifacts/.work/<stage>/<key>/`. The key covers parameters, input digests and code
(and what only its metrics depend on), so only the same work resumes from what a killed process left:

    files/      finished files, each written under a temporary name, synced, renamed, and entered in journal.jsonl
    side/       small files for other places (metrics, plots), which may hold times
    scratch/    checkpoints; removed when the artifact is published
    manifest.json   written when all files are finished

`publish` links the files into a new directory, or copies small ones, and renames it to the artifact's path. The work
folder stays until other work of the stage succeeds: hard links cost no disk, and a crash before DVC has recorded the
result costs nothing either.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from cocomix.plumbing import distributed, interrupt
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.lock import ROOT, HeldError, Lock
from cocomix.plumbing.progress import say
from cocomix.plumbing.runtime import runtime
from cocomix.plumbing.sources import digest_of_sources

MANIFEST = "manifest.json"
COPIED_BYTES = 1 << 26
"""Artifacts up to this size are published as copies, so that writing into the artifact does not alter the work."""


def _stay_inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("leads out of the artifact")
    return name


FileName = Annotated[str, AfterValidator(_stay_inside)]
"""A path relative to the artifact."""


class FileRecord(BaseModel):
    """The manifest's entry for one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int | None
    """Number of records in the file; None where it has no records."""
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
    """Facts of a manifest; a missing key raises an error that names the file."""

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        super().__init__(facts)
        self._path = path

    def __missing__(self, name: str) -> Any:
        raise UserError(f"{self._path}: says nothing of {name!r}; remove {self._path.parent} and run its stage again")


class Artifact:
    """A published artifact, opened for reading.

    Raises:
        UserError: when the artifact is missing, or one of its files is missing, short or altered (the digest is
            compared when a file is first requested); the message names the file and the stage to run again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if (path / MANIFEST).is_fifo():  # reading it would block
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
        """Facts about the content, written by the stage."""
        return self.manifest.about

    def names(self, prefix: str = "") -> list[str]:
        """Names of the files that begin with `prefix`, shorter ones first, so that 100000 follows 99999."""
        names = [name for name in self.manifest.files if name.startswith(prefix)]
        return sorted(names, key=lambda name: (len(name), name))

    def rows(self, name: str) -> int:
        """Number of records in a file."""
        rows = self.manifest.files[name].rows
        assert rows is not None, name
        return rows

    def file(self, name: str) -> Path:
        """The path of a file, after comparing its content with its digest."""
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
        """The artifact's path, after comparing every file with its digest; for readers that take a folder."""
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
        with suppress(FileNotFoundError):
            if digest_of(self.path / MANIFEST) != self.digest:
                return UserError(f"{self.path} was made anew while it was read; run this again")
        # DVC's cache may share the file by a hard link. It trusts a read-only file and would restore the damage; it
        # checks a writable file and drops a damaged one.
        with suppress(PermissionError):
            (self.path / name).chmod(0o644)
        return UserError(f"{self.path / name}: {what}; {self._remedy}")


@dataclass
class PendingFile:
    """A file that is being written under a temporary path."""

    path: Path
    """Where the writer must write it."""
    rows: int | None = None
    """Number of records; the writer sets it for the manifest."""


class Work:
    """The work folder of one stage, locked by one job at a time (a job may have several processes).

    Args:
        stage: the DVC name, such as `sae` or `pretrain@ntp-0`.
        out: where the artifact is published; its parent holds `.work`.
        inputs: digests by name.
        params: the parameters that the result depends on.
        side: target path of each file in `side/`, by name; `publish` copies them there.
        side_only: what these files depend on and the artifact does not, as JSON values.

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
        side_only: Mapping[str, Any] | None = None,
        root: Path = ROOT,
    ) -> None:
        self.stage, self.out, self._side_targets = stage, out, dict(side or {})
        self.inputs, self._params = dict(inputs), dict(params)
        self._fingerprint = digest_of_json({"stage": stage, "inputs": self.inputs, "params": self._params})
        key = digest_of_json(
            {"fingerprint": self._fingerprint, "code": _digest_of_program(), "side": dict(side_only or {})}
        )[:16]
        self._home = root / stage
        self.path = self._home / key
        self.confirm_inputs: Callable[[], None] = lambda: None
        """Checks that external files are still those in the key: called after reading them, before keeping what depends
        on them, also in `scratch`: the files may get their old content back, and the key would be the same."""
        self._aside = self.path / "writing"
        self.files, self.side, self.scratch = (self.path / each for each in ("files", "side", "scratch"))
        self.finished = False
        """Whether this process or an earlier one computed everything; equal in all processes."""
        self._records: dict[str, FileRecord] = {}
        self._own: dict[str, FileRecord] = {}
        self._expected: set[str] = set()
        self._lock: Lock | None = None

    def __enter__(self) -> Self:
        if runtime().rank == 0:
            self._home.mkdir(parents=True, exist_ok=True)
            self._lock = _hold(self._home / "lock", self.stage)
            shutil.rmtree(self._aside, ignore_errors=True)
            for folder in (self.files, self.side, self.scratch):
                folder.mkdir(parents=True, exist_ok=True)
            self._find()
        # The other processes do not look for themselves: a network file system may show them less than rank 0.
        key, self.finished, self._records = distributed.from_first((self.path.name, self.finished, self._records))
        if key != self.path.name:
            raise UserError(f"{self.stage}: the processes read different inputs, parameters or code; run it again")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock:
            self._lock.close()

    def has(self, name: str) -> bool:
        """Whether a file is finished: by an earlier process, as rank 0 found it, or in this run."""
        return name in self._records

    def records(self) -> dict[str, FileRecord]:
        """The finished files that this process knows of (see `wait`), by name."""
        return dict(self._records)

    def expect(self, names: Iterable[str]) -> None:
        """Declare files of the artifact: `finish` raises an error if one of them is missing."""
        self._expected.update(names)

    def wait(self) -> None:
        """Wait for all processes and collect the records of the files that each has finished."""
        for own in distributed.gathered(self._own):
            self._records |= own
        if runtime().rank == 0:
            for name in self._records:
                distributed.see(self.files / name)

    @contextmanager
    def write(self, name: str) -> Iterator[PendingFile]:
        """Write one file of the artifact: it appears complete and on disk, or not at all."""
        pending = PendingFile(self._aside / str(runtime().rank) / name)
        pending.path.parent.mkdir(parents=True, exist_ok=True)
        yield pending
        self._commit({name: pending})

    @contextmanager
    def write_folder(self) -> Iterator[Path]:
        """Write several files with a library that takes a folder; all appear under their relative paths, or none."""
        folder = self._aside / f"{runtime().rank}-folder"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
        paths = sorted(each for each in folder.rglob("*") if each.is_file())
        self._commit({str(path.relative_to(folder)): PendingFile(path) for path in paths})

    def finish(self, about: Mapping[str, Any]) -> None:
        """Write the manifest, when all files and side files are finished.

        Raises:
            UserError: when a file that was declared or written is missing.
        """
        wanted = sorted(self._expected | self._records.keys())
        missing = [each for each in wanted if not self._is_there(each, self._records.get(each))]
        if missing:
            raise UserError(
                f"{self.stage}: {len(missing)} of its files are missing, the first is {missing[0]}; "
                "run it again: what is finished is kept"
            )
        for name in self._side_targets:
            _sync(self.side / name)
        write_atomically(self.path / MANIFEST, self._manifest(about))
        self.finished = True

    def digest(self, about: Mapping[str, Any]) -> str:
        """The digest that the artifact will have if it is finished with `about`; see `Artifact.digest`."""
        return hashlib.sha256(self._manifest(about)).hexdigest()

    def publish(self) -> None:
        """Move the finished artifact and the side files to their paths; remove other work of the stage."""
        manifest = Manifest.model_validate_json((self.path / MANIFEST).read_bytes())
        staging = self._home / "publishing"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        linked = sum(each.bytes for each in manifest.files.values()) > COPIED_BYTES
        for name in manifest.files:
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            place_file(self.files / name, target, link=linked)
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

    def _manifest(self, about: Mapping[str, Any]) -> bytes:
        manifest = Manifest(
            stage=self.stage,
            fingerprint=self._fingerprint,
            inputs=self.inputs,
            params=self._params,
            about=dict(about),
            files=dict(sorted(self._records.items())),
        )
        text = json.dumps(manifest.model_dump(), indent=1, sort_keys=True, ensure_ascii=False)
        return (text + "\n").encode()

    def _commit(self, pending: Mapping[str, PendingFile]) -> None:
        entry = JournalEntry(files={name: _record(each.path, each.rows) for name, each in pending.items()})
        for name, each in pending.items():
            as_any_new(each.path)
            target = self.files / name
            target.parent.mkdir(parents=True, exist_ok=True)
            each.path.replace(target)
            _sync(target.parent)
        # The leading newline ends a line that a power loss may have truncated. The buffer holds the whole entry, so one
        # write appends it, and entries stay intact when several processes append.
        line = f"\n{entry.model_dump_json()}\n".encode()
        with (self.path / "journal.jsonl").open("ab", buffering=len(line) + 1) as journal:
            journal.write(line)
            journal.flush()
            os.fsync(journal)
        self._own |= entry.files
        self._records |= entry.files

    def _find(self) -> None:
        """Find the files of earlier processes; ignore those that no longer match their records."""
        listed: dict[str, FileRecord] | None = None
        with suppress(FileNotFoundError, ValidationError):
            listed = Manifest.model_validate_json((self.path / MANIFEST).read_bytes()).files
        known = read_journal(self.path / "journal.jsonl") if listed is None else listed
        with ThreadPoolExecutor() as pool:  # hashlib releases the GIL
            intact = pool.map(self._is_intact, known, known.values())
        self._records = {name: known[name] for name, is_intact in zip(known, intact, strict=True) if is_intact}
        sides = all((self.side / name).is_file() for name in self._side_targets)
        self.finished = sides and self._records == listed
        if not self.finished:
            (self.path / MANIFEST).unlink(missing_ok=True)

    def _is_intact(self, name: str, record: FileRecord) -> bool:
        return self._is_there(name, record) and digest_of(self.files / name) == record.sha256

    def _is_there(self, name: str, record: FileRecord | None) -> bool:
        path = self.files / name
        return record is not None and path.is_file() and path.stat().st_size == record.bytes


def read_journal(path: Path) -> dict[str, FileRecord]:
    """The files that a journal lists as finished, by name."""
    records: dict[str, FileRecord] = {}
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with suppress(ValidationError):  # blank or truncated: its files are written again
            records |= JournalEntry.model_validate_json(line).files
    return records


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_any_new(path: Path) -> None:
    """Set a file's mode from the umask: safetensors makes files that only their owner can read."""
    umask = os.umask(0o077)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replace a file by `content`: readers see the old or the new content, also after a power loss.

    A symbolic link, such as of params.yaml to one of several files, stays: the file that it names is replaced.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.aside")
    aside.write_bytes(content)
    _sync(aside)
    rename(aside, path)


def rename(aside: Path, path: Path) -> None:
    """Move a file that is synced to disk to its path, and sync the folder."""
    aside.replace(path)
    _sync(path.parent)


def _digest_of_program() -> str:
    program = getattr(sys.modules["__main__"], "__file__", None)
    return digest_of_sources(Path(program)) if program else "interactive"


def _record(path: Path, rows: int | None) -> FileRecord:
    _sync(path)
    return FileRecord(rows=rows, bytes=path.stat().st_size, sha256=digest_of(path))


def digest_of_json(content: object) -> str:
    """Digest of JSON values; the order of keys makes no difference."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place_file(source: Path, target: Path, *, link: bool) -> None:
    """Make `target` a hard link to a file, or a copy of it, also where a hard link is not possible."""
    if link:
        try:
            target.hardlink_to(source)
        except OSError:  # a file system without hard links, or two of them
            link = False
    if not link:
        shutil.copyfile(source, target)
        _sync(target)


def _hold(path: Path, stage: str) -> Lock:
    """Acquire the lock of a stage; wait for a holder that is stopping, which releases it after saving its work."""
    has_said = False
    while True:
        try:
            return Lock(path)
        except HeldError as held:
            if not held.is_stopping:
                raise UserError(
                    f"{stage}: process {held.holder} is already at work on this stage; wait for it"
                ) from None
            if not has_said:
                say(f"{stage}: waiting for process {held.holder}, which was stopped and saves its work")
                has_said = True
        interrupt.check()
        time.sleep(0.1)
