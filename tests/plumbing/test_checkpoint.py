import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cocomix.plumbing import checkpoint


def test_the_newest_whole_checkpoint_is_loaded_and_two_are_kept(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) is None
    for step in (5, 10, 15):
        checkpoint.save(tmp_path, step, {"step": step, "weights": torch.full((3,), float(step))})
    assert len(list(tmp_path.iterdir())) == 2
    state = checkpoint.load(tmp_path)
    assert state is not None
    assert state["step"] == 15
    assert state["weights"].tolist() == [15.0] * 3


def test_a_damaged_checkpoint_takes_the_place_of_no_whole_one(tmp_path: Path) -> None:
    for step in (100, 200):
        checkpoint.save(tmp_path, step, {"step": step})
    for step in (150, 175):
        max(tmp_path.iterdir()).write_bytes(b"damaged")
        state = checkpoint.load(tmp_path)
        assert state is not None
        assert state["step"] == 100
        checkpoint.save(tmp_path, step, {"step": step})
    assert [path.name[:14] for path in sorted(tmp_path.iterdir())] == ["step-000000100", "step-000000175"]


@pytest.mark.parametrize("damage", [lambda content: content[:100], lambda content: content[:-9] + b"x" + content[-8:]])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, damage: object, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (5, 10):
        checkpoint.save(tmp_path, step, {"step": step})
    newest = max(tmp_path.iterdir())
    newest.write_bytes(damage(newest.read_bytes()))  # type: ignore[operator]
    state = checkpoint.load(tmp_path)
    assert state is not None
    assert state["step"] == 5
    assert "is damaged; going on from the checkpoint before it" in capsys.readouterr().err


def test_the_same_state_gives_the_same_bytes_and_the_name_is_their_digest(tmp_path: Path) -> None:
    state = {"step": 1, "weights": torch.arange(3_000_000.0), "none": torch.zeros(0)}
    for each in ("one", "two"):
        checkpoint.save(tmp_path / each, 1, state)
    one, two = (next((tmp_path / each).iterdir()) for each in ("one", "two"))
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()
    assert one.stem.endswith(hashlib.sha256(one.read_bytes()).hexdigest()[:16])


def test_what_is_made_of_a_loaded_state_leaves_its_file_as_it_is(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"weights": torch.ones(100_000)})
    for _ in range(2):
        state = checkpoint.load(tmp_path)
        assert state is not None
        assert state["weights"].sum() == 100_000
        state["weights"] += 1


def test_what_a_killed_save_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.aside").write_bytes(bytes(10_000_000))
    checkpoint.save(tmp_path, 1, {"step": 1})
    assert checkpoint.load(tmp_path) == {"step": 1}
    assert len(list(tmp_path.iterdir())) == 1


SAVE = """
import resource, sys, torch
from pathlib import Path
from cocomix.plumbing import checkpoint
state = {f"{each}": torch.ones(4 * 2**20) for each in range(16)}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
checkpoint.save(Path(sys.argv[1]), 1, {"step": 1})
before = peak()
checkpoint.save(Path(sys.argv[1]), 2, state)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss differs")
def test_saving_takes_no_second_copy_in_memory(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SAVE, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=True)
    assert int(done.stdout) < 64 * 2**10  # KiB; the state has 256 MiB
