import pytest

from cocomix.plumbing.progress import progress
from flows.publish import _PROGRESS


def test_the_lines_of_cocomix_progress_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train", 4, "steps") as bar:
        bar.advance(3, loss=2.5)
    (line,) = capsys.readouterr().err.splitlines()
    found = _PROGRESS.fullmatch(line)
    assert found
    assert (found["task"], found["percent"]) == ("train", "75")
    assert "3/4" in found["counts"]
    assert "loss=2.5" in found["counts"]
