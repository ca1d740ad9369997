"""A fault at each single change that a piece of work makes on the disk, one after the other."""

import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from cocomix.plumbing import checkpoint
from cocomix.plumbing.artifact import Artifact, Work
from tests.faults.inside import Fault, changes_in, disk_full, in_child, killed

OUT = Path("artifacts/thing")
METRICS = Path("metrics/thing.json")


def work() -> None:
    """What stages do: files, a folder, checkpoints, a side file, an artifact in the place of an older one."""
    with Work("thing", OUT, {}, {"k": 2}, {"metrics.json": METRICS}) as work:
        if not work.finished:
            state = checkpoint.load(work.scratch) or {"step": 0, "sum": torch.zeros(3)}
            while state["step"] < 3:
                state = {"step": state["step"] + 1, "sum": state["sum"] + 1}
                checkpoint.save(work.scratch, state["step"], state)
            for name in ("a", "part/b"):
                if not work.has(name):
                    with work.write(name) as pending:
                        pending.path.write_text(name)
            with work.write_folder() as folder:
                (folder / "weights").write_bytes(state["sum"].numpy().tobytes())
            (work.side / "metrics.json").write_text("{}")
            work.finish({"steps": state["step"]})
        work.publish()


def older_work() -> None:
    with Work("thing", OUT, {}, {"k": 1}) as work:
        with work.write("old") as pending:
            pending.path.write_text("old")
        work.finish({})
        work.publish()


def content() -> dict[str, bytes]:
    return {str(each): each.read_bytes() for each in sorted(OUT.rglob("*")) if each.is_file()}


@pytest.mark.parametrize(
    ("happen", "statuses"),
    [(killed, {-signal.SIGKILL}), pytest.param(disk_full, {0, 1}, marks=pytest.mark.slow)],
)
def test_the_same_work_afterwards_ends_with_the_same_bytes(
    folder: Path, happen: Callable[[], None], statuses: set[int]
) -> None:
    older_work()
    shutil.copytree("artifacts", "before")
    changes = changes_in(work, Path())
    whole = content()
    assert whole.keys() == {f"{OUT}/{name}" for name in ("a", "part/b", "weights", "manifest.json")}
    for at in range(1, changes + 1):
        shutil.rmtree("artifacts")
        METRICS.unlink()
        shutil.copytree("before", "artifacts")
        assert in_child(partial(work_with, Fault(Path(), at, happen))) in statuses, f"change {at}"
        if OUT.exists():
            Artifact(OUT).verified()
        work()
        assert content() == whole, f"change {at}"
        assert METRICS.read_text() == "{}", f"change {at}"
    assert changes > 40


def work_with(fault: Fault) -> None:
    fault.install()
    work()
