"""A stage of a dozen small files, to kill: `python -m toy_stage alone|shared [RANK TROUBLE|lockstep|blind|lose]`."""

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cocomix import distributed
from cocomix.artifact import Work
from cocomix.errors import UserError
from cocomix.params import Params
from cocomix.progress import progress
from cocomix.runtime import runtime
from stages.stage import main, produce

FILES = 12
OUT = Path("artifacts/toy")


def run(_params: Params) -> None:
    with Path("pids").open("a") as pids:
        pids.write(f"{os.getpid()}\n")
    if sys.argv[1:] == ["shared", "lockstep"]:
        walk_in_step()
    if sys.argv[2:] == ["blind"] and runtime().rank:
        look_at_a_stale_disk()
    produce("toy", OUT, {}, {}, compute, {"metrics.json": Path("metrics/toy.json")})


def compute(work: Work) -> Mapping[str, Any]:
    work.plan(f"{number}.bin" for number in range(FILES))
    mine = range(runtime().rank, FILES, runtime().world_size)
    with progress("toy", len(mine), "files") as bar:
        for number in mine:
            if not work.has(f"{number}.bin"):
                with work.write(f"{number}.bin") as pending:
                    pending.path.write_bytes(number.to_bytes() * 20_000)
                    time.sleep(0.02)
            if number >= 4:
                get_into(sys.argv[2:])
            bar.advance(1)
    if sys.argv[2:] == ["lose"]:
        distributed.barrier()
        if runtime().rank == 0:
            (work.path / "journal.jsonl").write_bytes(b"")
        distributed.barrier()
    (work.side / "metrics.json").write_text("{}")
    return {"files": FILES}


def look_at_a_stale_disk() -> None:
    """As a network file system may, show this process none of what was there before it."""
    for name in ("exists", "is_file"):
        setattr(Path, name, lambda _: False)


def walk_in_step() -> None:
    """Count steps in a file a process, until told to stop; each process takes its own time for a step."""
    with progress("toy", None, "steps", lockstep=True) as bar, Path(f"steps-{runtime().rank}").open("w") as steps:
        while True:
            print(file=steps, flush=True)
            time.sleep(0.001 + 0.01 * runtime().rank)
            bar.advance(1)


def get_into(trouble: list[str]) -> None:
    match trouble:
        case [rank, "user-error"] if int(rank) == runtime().rank:
            raise UserError("toy.k: 7: must be even")
        case [rank, "killed"] if int(rank) == runtime().rank:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(run, shared=sys.argv[1] == "shared")
