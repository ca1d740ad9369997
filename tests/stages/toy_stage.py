"""A stage of a dozen small files, for killing.

python -m toy_stage alone|shared [RANK TROUBLE|worker-killed|group-stopped|lockstep|save N|blind|lose]
"""

import sys

if __name__ == "__main__":  # as stages/__init__.py does
    from stages.early import end_by_signals, end_with_dvc, note_start

    note_start()
    end_by_signals()
    end_with_dvc()

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cocomix.params import Params
from cocomix.plumbing import distributed
from cocomix.plumbing.artifact import Work
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.interrupt import Interrupted
from cocomix.plumbing.progress import progress
from cocomix.plumbing.runtime import runtime
from cocomix.plumbing.workers import in_order
from stages import launch
from stages.stage import main, produce, share_work

FILES = 12
OUT = Path("artifacts/toy")


def run(_params: Params) -> None:
    with Path("pids").open("a") as pids:
        pids.write(f"{os.getpid()}\n")
    if sys.argv[1:2] == ["shared"] and sys.argv[2:3] in (["lockstep"], ["save"]):
        with Work("toy", OUT, {}, {}) as work:
            walk_in_step(work)
    if sys.argv[2:] == ["blind"] and runtime().rank:
        look_at_a_stale_disk()
    produce("toy", OUT, {}, {}, compute, {"metrics.json": Path("metrics/toy.json")})


def compute(work: Work) -> Mapping[str, Any]:
    work.expect(f"{number}.bin" for number in range(FILES))
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
        before = getattr(Path, name)
        setattr(Path, name, lambda path, before=before: "artifacts" not in path.parts and before(path))


def walk_in_step(work: Work) -> None:
    """Count steps in a file a process, until told to stop; each process takes its own time for a step."""
    with progress("toy", None, "steps", lockstep=True) as bar, Path(f"steps-{runtime().rank}").open("w") as steps:
        try:
            while True:
                print(file=steps, flush=True)
                time.sleep(0.001 + 0.01 * runtime().rank)
                bar.advance(1)
        except Interrupted:
            if sys.argv[2] == "save" and runtime().rank == 0:
                save_slowly(work, float(sys.argv[3]))
            raise


def save_slowly(work: Work, seconds: float) -> None:
    """Save a checkpoint of 20 pieces to a disk that takes so long for each."""
    from cocomix.plumbing import checkpoint

    def slow(_file: object) -> None:
        time.sleep(seconds)

    checkpoint.PIECE = 2**16
    checkpoint.os.fsync = slow  # type: ignore[attr-defined]
    Path("saving").touch()
    checkpoint.save(work.scratch, 1, {"content": bytes(20 * 2**16)})


def get_into(trouble: list[str]) -> None:
    match trouble:
        case [rank, "user-error"] if int(rank) == runtime().rank:
            raise UserError("toy.k: 7: must be even")
        case [rank, "killed"] if int(rank) == runtime().rank:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["worker-killed"]:
            list(in_order(kill_itself, [1, 2]))
        case ["group-stopped"]:
            list(in_order(stop_the_group, [1, 2]))


def kill_itself(_item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop_the_group(_item: int) -> None:
    os.killpg(0, signal.SIGTERM)


if __name__ == "__main__":
    launch.GRACE_SECONDS = float(os.environ.get("TOY_GRACE", launch.GRACE_SECONDS))
    if sys.argv[1] == "shared":
        share_work()
    main(run)
