"""Functions that all stages share: start, end, and making an artifact."""

import errno
import gc
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from cocomix.check.preflight import check_place
from cocomix.params import Params, load
from cocomix.plumbing import distributed, interrupt, sources
from cocomix.plumbing.allocator import keep_freed_memory
from cocomix.plumbing.artifact import Artifact, Work, digest_of, write_atomically
from cocomix.plumbing.errors import UserError, WorkerDiedError
from cocomix.plumbing.interrupt import Interrupted
from cocomix.plumbing.origins import check_origins
from cocomix.plumbing.progress import say
from cocomix.plumbing.provenance import provenance
from cocomix.plumbing.runtime import runtime
from stages import CODE
from stages.early import end_now, first_to_end, started
from stages.launch import launch
from stages.reads import Reads

ARTIFACTS = Path("artifacts")
KEPT = f"what is finished is kept in {ARTIFACTS}/.work, and the same command goes on from there"

_reads: Reads | None = None
"""The inputs that this process found at its start; None if a stage is called from another program."""
_shared = False
"""Whether several processes may share the work of this stage."""

Compute = Callable[[Work], Mapping[str, Any]]


def share_work() -> None:
    """Start `runtime().processes` processes of this stage, wait for them, and exit with their status.

    It returns in each of these processes, and where one process works alone. A stage calls it before its imports: the
    launcher needs none of them, and they take seconds.
    """
    global _shared
    _shared = True
    _check_settings()
    if "RANK" in os.environ:
        return
    try:
        params = load()
        check_place(ARTIFACTS)
        processes = _processes(params)
    except Exception as error:
        _end_after(error)
    if processes > 1:
        sys.exit(launch(processes))


def main(run: Callable[[Params], None], *, by_torchrun: bool = False) -> NoReturn:
    """Run a stage as a program, and exit. It is one process, unless the stage has called `share_work`.

    With `by_torchrun`, it may also be one of several processes that torchrun has started, such as one for each machine.
    Worker processes of such a stage use all cores of the machine, so it starts no further processes of this program.

    The exit status is 0, 2 after bad input or a full disk (with a one-line message), 128 + the signal that stopped it,
    or that of a killed process if one of its workers was killed.
    """
    global _shared
    _shared = _shared or by_torchrun
    gc.freeze()  # what was imported is no garbage
    gc.enable()
    _check_settings()
    try:
        params = load()
        check_place(ARTIFACTS)
        _share_cores()
        keep_freed_memory()
        if runtime().world_size > 1:
            interrupt.watch(_leave_at_once)
        reads = _begin(params)
        interrupt.install()
        run(params)
        if runtime().rank == 0:
            reads.check()
    except Interrupted as stop:
        if first_to_end():
            print(f"{stop}; {KEPT}", file=sys.stderr)
        _leave(stop.exit_code)
    except Exception as error:
        _end_after(error)
    _leave(0)


def _check_settings() -> None:
    """End the process with one line if its environment is wrong; the handling of other errors needs the settings."""
    try:
        distributed.check_variables() if _shared else distributed.stand_alone()
        runtime()
    except UserError as error:
        if first_to_end():
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _end_after(error: Exception) -> NoReturn:
    """End the process with one line, or raise the error if it is in the program."""
    trouble = str(error) if isinstance(error, UserError | WorkerDiedError) else _machine_trouble(error)
    if runtime().world_size > 1:
        if trouble is None or isinstance(error, distributed.LostError) or distributed.is_broken_connection(error):
            # A collective fails when another process ends. That process reports the cause, and the launcher stops
            # this one during the sleep.
            time.sleep(1)
        if interrupt.received() or not first_to_end():
            time.sleep(1)  # so that the launcher sees the first failure's exit status first
            _leave(1)
    if trouble is None:
        raise error
    print(f"error: {trouble}", file=sys.stderr)
    _leave(128 + signal.SIGKILL if isinstance(error, WorkerDiedError) else 2)


def produce(
    stage: str,
    out: Path,
    inputs: Mapping[str, Artifact | str],
    params: Mapping[str, Any],
    compute: Compute,
    side: Mapping[str, Path] | None = None,
    side_only: Mapping[str, Any] | None = None,
) -> None:
    """Make one artifact, resuming from the work of an earlier process.

    Args:
        inputs: artifacts, or digests of other inputs, by name: see `check_origins`.
        params: the parameters that the result depends on, as JSON values.
        compute: does the work in the given `Work`, and returns the facts for the manifest's `about`.
        side: see `Work`. A file `metrics.json` gets the keys `artifact`, the artifact's digest, `plots`, the digests of
            the stage's plots by path, if it has any, and `usage`, the resources used.
        side_only: see `Work`.

    Raises:
        UserError: when the inputs do not belong together, or a declared file is missing at the end.
    """
    check_origins(inputs)
    digests = {name: each if isinstance(each, str) else each.digest for name, each in inputs.items()}
    with Work(stage, out, digests, params, side, side_only) as work:
        if _reads:
            work.confirm_inputs = _reads.check_files
        if not work.finished:
            _add(work.path / "startup_seconds", time.monotonic() - started())
            with _timed(work.path / "seconds"):
                about = compute(work)
            work.wait()
            peak_memory = distributed.maximum(_peak_memory())
            if runtime().rank == 0:
                work.confirm_inputs()
                if side and "metrics.json" in side:
                    _complete(side, work, peak_memory, work.digest(about))
                work.finish(about)
        else:
            say(f"{stage}: already computed, publishing it")
        if runtime().rank == 0:
            work.publish()


@contextmanager
def _timed(path: Path) -> Iterator[None]:
    """Add the time spent inside to the seconds in a file; a killed process's time is lost."""
    began = time.monotonic()
    try:
        yield
    finally:
        _add(path, time.monotonic() - began)


def _add(path: Path, seconds: float) -> None:
    """Add to the seconds in a file, from rank 0 only."""
    if runtime().rank == 0:
        before = float(path.read_text()) if path.exists() else 0.0
        write_atomically(path, f"{before + seconds:.3f}".encode())


def _peak_memory() -> int:
    """Peak bytes held by this process or a child; GPU memory if it computes on a GPU."""
    unit = 1 if sys.platform == "darwin" else 1024
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    if "torch" not in sys.modules:
        return max(started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    from cocomix.plumbing.device import peak_memory

    return max(started, peak_memory())


def _complete(side: Mapping[str, Path], work: Work, peak_memory: int, digest: str) -> None:
    """Add to a stage's metrics the keys that all of them have."""
    metrics = work.side / "metrics.json"
    plots = {str(path): digest_of(work.side / name) for name, path in side.items() if path.parts[0] == "plots"}
    usage = {
        "seconds": float((work.path / "seconds").read_text()),
        "startup_seconds": float((work.path / "startup_seconds").read_text()),
        "peak_memory": peak_memory,
        "bytes": sum(each.bytes for each in work.records().values()),
        "processes": runtime().world_size,
        "made": provenance(),
    }
    common = {"artifact": digest, **({"plots": plots} if plots else {}), "usage": usage}
    metrics.write_bytes(to_json(json.loads(metrics.read_bytes()) | common))


def to_json(content: object) -> bytes:
    """Serialise `content` as a readable JSON file."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _leave(status: int) -> NoReturn:
    """End the process.

    One of several must end by `os._exit`, see `distributed.join`. So must one that was stopped: while Python finalizes,
    signals have their default effect again, and an echo would end it with another status.
    """
    if runtime().world_size > 1 or interrupt.received():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _leave_at_once(received: signal.Signals) -> NoReturn:
    """End the process from a thread, while it waits for others."""
    end_now(received, f"before it came to a safe point; {KEPT}")


def _machine_trouble(error: Exception) -> str | None:
    """Error message for trouble with the machine; None: the error is in the program."""
    if distributed.is_broken_connection(error):
        return f"RANK {runtime().rank}: another process has ended, so that this one cannot go on; {KEPT}"
    number, words = _number_of(error), " ".join(str(error).split())
    is_short = re.search(r"\d requested and \d+ written", words)  # NumPy's
    free = shutil.disk_usage(ARTIFACTS if ARTIFACTS.exists() else Path()).free
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or is_short or free < 2**16:
        return f"no space left for {ARTIFACTS} ({words}); make room and run it again: what is finished is kept"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{words}; the project's folder must be writable"
    if isinstance(error, MemoryError) or re.search("can(no|')t allocate memory|std::bad_alloc", words):
        return f"cannot allocate memory ({words}); set COCOMIX_MICRO_BATCH, to compute fewer windows at a time"
    if type(error).__name__ == "OutOfMemoryError":  # by name: importing torch takes seconds
        return f"{words.partition(' GPU ')[0]} Set COCOMIX_MICRO_BATCH, to compute fewer windows at a time"
    return None


def _number_of(error: Exception) -> int | None:
    """The system's error number; libraries written in Rust have it only in their message."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return int(number[1]) if number else getattr(error, "errno", None)


def _processes(params: Params) -> int:
    asked = runtime().processes
    if asked != "auto":
        return asked
    trainings = (params.base.training, params.pretrain.training)
    most = min(params.sae.batch_size, *chain.from_iterable((each.batch_size, each.eval_windows) for each in trainings))
    if (ARTIFACTS / "tokens").exists():
        most = min(most, Artifact(ARTIFACTS / "tokens").rows("validation.npy"))
    return min(_devices(), most)


def _devices() -> int:
    """The GPUs, or without them the cores."""
    has_gpu_driver = any(Path(each).exists() for each in ("/dev/nvidiactl", "/dev/kfd"))
    if has_gpu_driver and runtime().device in ("auto", "cuda"):
        import torch

        if torch.cuda.is_available():
            return torch.cuda.device_count()
    return runtime().cores if runtime().device in ("auto", "cpu") else 1


def _share_cores() -> None:
    """Set each process's threads to its share of the cores; torch reads the variable when it is first imported."""
    threads = runtime().threads
    if threads == "auto" and "OMP_NUM_THREADS" in os.environ:
        return
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    count = max(1, runtime().cores // local) if threads == "auto" else threads
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)


def _begin(params: Params) -> Reads:
    """Record the inputs and join the other processes, which must have found the same inputs."""
    global _reads
    sources.hold(Path(str(sys.modules["__main__"].__file__)), CODE)
    _reads = Reads(params)
    distributed.join()
    if not distributed.agree(int(_reads.digest[:15], 16)):
        raise UserError("the processes of this stage found other code, parameters or inputs each; run it again")
    return _reads
