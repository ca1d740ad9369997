from pathlib import Path

import pytest
import torch

from cocomix import checkpoint


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
