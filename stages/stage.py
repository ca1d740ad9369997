"""What all stages share: how one starts, how it ends, and how it makes its artifact."""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from cocomix import interrupt
from cocomix.artifact import Artifact, Work
from cocomix.errors import UserError
from cocomix.interrupt import Interrupted
from cocomix.params import Params, load
from cocomix.progress import say
from cocomix.runtime import runtime

ARTIFACTS = Path("artifacts")

Compute = Callable[[Work], Mapping[str, Any]]


def main(run: Callable[[Params], None], *, shared: bool = False) -> NoReturn:
    """Run a stage as a program, and exit.

    Args:
        run: the stage.
        shared: whether several processes can share the work; `runtime().processes` then says how many, started
            by torchrun unless this process is one of torchrun's already.

    The exit status is 0, 2 after bad input (one line says what), or 128 + the signal that stopped it.
    """
    try:
        params = load()
        _die_with_dvc()
        if shared and "RANK" not in os.environ and _processes() > 1:
            _torchrun(_processes())
        _share_cores()
        interrupt.install()
        run(params)
        status = 0
    except UserError as error:
        say(f"error: {error}")
        status = 2
    except Interrupted as stop:
        say(f"{stop}; what is finished is kept in {ARTIFACTS}/.work, and the same command goes on from there")
        status = stop.exit_code
    sys.exit(status)


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
        side: see `Work`.
    """
    digests = {name: each if isinstance(each, str) else each.digest for name, each in inputs.items()}
    with Work(stage, out, digests, params, side) as work:
        if not work.finished:
            about = compute(work)
            if runtime().world_size > 1:
                from torch import distributed

                distributed.barrier()
            if runtime().rank == 0:
                work.finish(about)
        else:
            say(f"{stage}: already computed, publishing it")
        if runtime().rank == 0:
            work.publish()


def to_json(content: object) -> bytes:
    """`content` as a JSON file for people and for DVC."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _processes() -> int:
    processes = runtime().processes
    if processes != "auto":
        return processes
    if runtime().device in ("auto", "cuda"):
        import torch

        if torch.cuda.is_available():
            return torch.cuda.device_count()
    return runtime().cores if runtime().device in ("auto", "cpu") else 1


def _torchrun(processes: int) -> NoReturn:
    """Become torchrun, which starts this program `processes` times and passes signals and the exit status on."""
    import logging

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    spec = sys.modules["__main__"].__spec__
    assert spec is not None, "stages are run as modules: python -m stages.NAME"
    arguments = ["--standalone", f"--nproc-per-node={processes}", "-m", spec.name, *sys.argv[1:]]
    try:
        run(parse_args(arguments))
    except ChildFailedError as error:
        status = next(iter(error.failures.values())).exitcode
        sys.exit(status if status >= 0 else 128 - status)
    sys.exit(0)


def _share_cores() -> None:
    """Give each process its share of the cores; torch reads the variable when it is first imported."""
    threads = runtime().threads
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    count = max(1, runtime().cores // local) if threads == "auto" else threads
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)


def _die_with_dvc() -> None:
    """Ask the kernel for SIGTERM when the parent dies: a killed `dvc repro` must not leave its stage running."""
    if sys.platform == "linux" and ("DVC_STAGE" in os.environ or "RANK" in os.environ):
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
