"""What all stages share: how one starts, how it ends, and how it makes its artifact."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, NoReturn

from cocomix import distributed, interrupt
from cocomix.allocator import keep_freed_memory
from cocomix.artifact import Artifact, Work, write_atomically
from cocomix.checked import read_yaml
from cocomix.errors import UserError
from cocomix.interrupt import Interrupted
from cocomix.params import FILE, Params, load
from cocomix.parent import end_with_parent
from cocomix.preflight import check_place
from cocomix.progress import say
from cocomix.runtime import runtime
from stages.launch import first_to_end, launch

ARTIFACTS = Path("artifacts")

Compute = Callable[[Work], Mapping[str, Any]]


def main(run: Callable[[Params], None], *, shared: bool = False) -> NoReturn:
    """Run a stage as a program, and exit.

    Args:
        run: the stage.
        shared: whether several processes can share the work; `runtime().processes` then says how many, started
            here unless this process is one of them (or of torchrun's) already.

    The exit status is 0, 2 after bad input or a full disk (one line says what), or 128 + the signal that stopped it.
    """
    try:
        runtime()
    except UserError as error:  # here, since what handles errors below asks it too
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        params = load()
        check_place(ARTIFACTS)
        _die_with_dvc()
        if shared and "RANK" not in os.environ and (processes := _processes()) > 1:
            sys.exit(launch(processes))
        _share_cores()
        keep_freed_memory()
        interrupt.install()
        distributed.join()
        run(params)
        _check_parameters(params)
    except Interrupted as stop:
        interrupt.ignore()
        if first_to_end():
            how = f"what is finished is kept in {ARTIFACTS}/.work, and the same command goes on from there"
            print(f"{stop}; {how}", file=sys.stderr)
        _leave(stop.exit_code)
    except Exception as error:
        trouble = str(error) if isinstance(error, UserError) else _machine_trouble(error)
        if runtime().world_size > 1:
            if trouble is None:
                # Collectives break when another process ends. Then whoever started us stops us within this time,
                # and the other one has said why.
                time.sleep(1)
            if interrupt.received() or not first_to_end():
                _leave(1)
        if trouble is None:
            raise
        print(f"error: {trouble}", file=sys.stderr)
        _leave(2)
    _leave(0)


def produce(
    stage: str,
    out: Path,
    inputs: Mapping[str, Artifact | str],
    params: Mapping[str, Any],
    compute: Compute,
    side: Mapping[str, Path] | None = None,
) -> None:
    """Make one artifact, going on from what an earlier process left.

    Args:
        inputs: artifacts, or digests of other inputs, by name.
        params: what the result depends on, as JSON values.
        compute: does the work in the `Work` it gets, and returns the facts for the manifest's `about`.
        side: see `Work`. A file for metrics/ gets the key `usage`: what the machine gave.
    """
    digests = {name: each if isinstance(each, str) else each.digest for name, each in inputs.items()}
    with Work(stage, out, digests, params, side) as work:
        if not work.finished:
            with _timed(work.path / "seconds"):
                about = compute(work)
            peak_memory = distributed.maximum(_peak_memory())
            if runtime().rank == 0:
                _add_usage(
                    work, [name for name, place in (side or {}).items() if "metrics" in place.parts], peak_memory
                )
                work.finish(about)
        else:
            say(f"{stage}: already computed, publishing it")
        if runtime().rank == 0:
            work.publish()


@contextmanager
def _timed(path: Path) -> Iterator[None]:
    """Add the time inside to the seconds in the file; those of a killed process are lost."""
    started = time.monotonic()
    try:
        yield
    finally:
        if runtime().rank == 0:
            before = float(path.read_text()) if path.exists() else 0.0
            write_atomically(path, f"{before + time.monotonic() - started:.3f}".encode())


def _peak_memory() -> int:
    """The most bytes that this process held, or one that it started: a GPU's where it computes on one."""
    unit = 1 if sys.platform == "darwin" else 1024
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    if "torch" not in sys.modules:
        return max(started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    from cocomix.device import peak_memory

    return max(started, peak_memory())


def _add_usage(work: Work, metrics: Sequence[str], peak_memory: int) -> None:
    usage = {
        "seconds": float((work.path / "seconds").read_text()),
        "peak_memory": peak_memory,
        "bytes": sum(each.bytes for each in work.records().values()),
        "processes": runtime().world_size,
    }
    for name in metrics:
        path = work.side / name
        path.write_bytes(to_json(json.loads(path.read_bytes()) | {"usage": usage}))


def to_json(content: object) -> bytes:
    """`content` as a JSON file for people and for DVC."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _leave(status: int) -> NoReturn:
    """End the process. One of several ends at once: see `distributed.join`."""
    if runtime().world_size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _machine_trouble(error: Exception) -> str | None:
    """What to tell the user when the machine, and not the program, is at fault."""
    number, words = _number_of(error), " ".join(str(error).split())
    is_short = re.search(r"\d requested and \d+ written", words)  # NumPy's
    free = shutil.disk_usage(ARTIFACTS if ARTIFACTS.exists() else Path()).free
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or is_short or free < 2**16:
        return f"no space left for {ARTIFACTS} ({words}); make room and run it again: what is finished is kept"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{words}; the project's folder must be writable"
    if type(error).__name__ == "OutOfMemoryError":  # of torch, which is seconds to import
        return f"{words.partition(' GPU ')[0]} Set COCOMIX_MICRO_BATCH, to compute fewer windows at a time"
    return None


def _number_of(error: Exception) -> int | None:
    """The system's number of what went wrong; libraries written in Rust have it in their words only."""
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else getattr(error, "errno", None)


def _processes() -> int:
    processes = runtime().processes
    if processes != "auto":
        return processes
    has_gpu_driver = any(Path(each).exists() for each in ("/dev/nvidiactl", "/dev/kfd"))
    if has_gpu_driver and runtime().device in ("auto", "cuda"):
        import torch

        if torch.cuda.is_available():
            return torch.cuda.device_count()
    return runtime().cores if runtime().device in ("auto", "cpu") else 1


def _share_cores() -> None:
    """Give each process its share of the cores; torch reads the variable when it is first imported."""
    threads = runtime().threads
    if threads == "auto" and "OMP_NUM_THREADS" in os.environ:
        return
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    count = max(1, runtime().cores // local) if threads == "auto" else threads
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)


def stage_of_dvc() -> str | None:
    """The name in dvc.yaml of the stage that DVC runs here; none: DVC runs none.

    To DVC, in another folder than dvc.yaml's, it is `../dvc.yaml:sae`.
    """
    return os.environ.get("DVC_STAGE", "").rpartition(":")[2] or None


def _check_parameters(read: Params) -> None:
    """Fail where params.yaml has changed under this stage: DVC notes its values of now as those of the artifact."""
    if not (stage := stage_of_dvc()) or runtime().rank:
        return
    name, _, item = stage.partition("@")
    known = read_yaml(Path("dvc.yaml"))["stages"][name].get("params", [])
    method, now = item.rpartition("-")[0], load()
    for key in (each.replace("${item.method}", method) for each in known if isinstance(each, str)):
        value = attrgetter(key)
        if value(now) != value(read):
            raise UserError(f"{FILE}: {key} changed while this stage was at work; run it again: nothing is lost")


def _die_with_dvc() -> None:
    """A killed `dvc repro` must not leave its stage running. DVC is the parent: see `exec` in dvc.yaml."""
    if "DVC_STAGE" in os.environ and "RANK" not in os.environ:
        parent = os.getppid()
        if os.getsid(parent) != os.getsid(0):  # adopted: DVC ended before this line
            sys.exit(128 + signal.SIGTERM)
        end_with_parent(parent, signal.SIGTERM)
