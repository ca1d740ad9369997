"""Work in parts: what was finished before a stop is not done again, and the result has the same bytes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cocomix.plumbing import distributed, parts
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.parts import Summing, in_parts
from cocomix.plumbing.runtime import runtime

BATCHES = [range(start, start + 3) for start in range(0, 30, 3)]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SECONDS", -1.0)


def summed(kept: Path | None, upto: int = len(BATCHES), batches: list[range] = BATCHES) -> tuple[np.ndarray, list[int]]:
    """Some sums whose last place depends on their order, and the numbers of the batches that were added now."""
    sums, added = np.zeros(2), []
    for batch in Summing(kept, batches, sums):
        if len(added) == upto:
            break
        sums += np.sin(batch.start) / 3, 1e9 * np.cos(batch.start)
        added.append(batches.index(batch))
    return sums, added


@pytest.mark.parametrize("upto", [0, 1, 5, 9])
def test_sums_go_on_from_the_last_batch_to_the_same_bits(folder: Path, upto: int) -> None:
    whole, _ = summed(None)
    summed(folder / "sums", upto)
    again, added = summed(folder / "sums")
    assert added == list(range(upto, len(BATCHES)))
    assert again.tobytes() == whole.tobytes()
    finished, added = summed(folder / "sums")
    assert added == []
    assert finished.tobytes() == whole.tobytes()


def test_sums_of_other_batches_or_of_another_process_are_not_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summed(folder / "sums")
    other = [range(start, start + 5) for start in range(0, 30, 5)]
    assert len(summed(folder / "sums", batches=other)[1]) == len(other)
    monkeypatch.setenv("RANK", "1")
    assert len(summed(folder / "sums")[1]) == len(BATCHES)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert len(summed(folder / "sums")[1]) == len(BATCHES)


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from cocomix.plumbing import parts
parts.SECONDS = -1.0
upto, sums = int(sys.argv[1]), np.zeros(1)
for number in (each.start for each in parts.Summing(Path("sums"), [range(n, n + 1) for n in range(20)], sums)):
    if number == upto:
        os.kill(os.getpid(), signal.SIGKILL)
    sums += np.sin(number) / 3
    print(number)
print(sums.tobytes().hex())
"""


def test_a_process_that_is_killed_loses_one_batch(folder: Path) -> None:
    def run(upto: int) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([sys.executable, "-c", KILLED, str(upto)], capture_output=True, text=True)

    assert run(13).returncode == -signal.SIGKILL
    after = run(99).stdout.split()
    assert after[0] == "13"
    for each in folder.glob("*.sums"):
        each.unlink()
    assert run(99).stdout.split()[-1] == after[-1]


def content_of(part: range, advance: parts.Advance) -> bytes:
    advance(len(part))
    return bytes(part)


def files(folder: Path) -> dict[Path, range]:
    return {folder / f"part-{number}": part for number, part in enumerate(BATCHES)}


def test_parts_that_are_there_are_not_made_again(folder: Path) -> None:
    made: list[range] = []

    def compute(part: range, advance: parts.Advance) -> bytes:
        made.append(part)
        if len(made) == 5:
            raise KeyboardInterrupt
        return content_of(part, advance)

    with pytest.raises(KeyboardInterrupt):
        in_parts(files(folder), compute, len, "parts", "numbers")
    in_parts(files(folder), compute, len, "parts", "numbers")
    assert made == [*BATCHES[:5], *BATCHES[4:]]
    assert [path.read_bytes() for path in files(folder)] == [bytes(part) for part in BATCHES]


def test_a_part_during_which_a_stop_was_asked_for_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr("cocomix.plumbing.progress.Progress.advance", stop)
        in_parts(files(folder), lambda part, _: bytes(part), len, "parts", "numbers")
    assert [path.exists() for path in files(folder)] == [True] + [False] * 9


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is the second one; what the first one tells is patched in."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    runtime.cache_clear()
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    yield
    runtime.cache_clear()


@pytest.mark.usefixtures("second_of_two")
def test_the_first_process_says_which_parts_are_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, part in files(folder).items():
        path.write_bytes(bytes(part))
    monkeypatch.setattr(distributed, "from_first", lambda there: [number != 3 for number, _ in enumerate(there)])
    made: list[range] = []

    def compute(part: range, advance: parts.Advance) -> bytes:
        made.append(part)
        return content_of(part, advance)

    in_parts(files(folder), compute, len, "parts", "numbers")
    assert made == [BATCHES[3]]


@pytest.mark.usefixtures("second_of_two")
def test_a_file_that_another_process_has_written_is_waited_for_and_then_missed_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "SIGHT_SECONDS", 0.0)
    monkeypatch.setattr(distributed, "from_first", lambda there: [True for _ in there])
    with pytest.raises(UserError, match=r"part-0: not seen by process 1; the processes must share the folder$"):
        in_parts(files(folder), content_of, len, "parts", "numbers")
    monkeypatch.setattr(distributed, "SIGHT_SECONDS", 60.0)
    looks = iter([False, False, True])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", lambda _: next(looks))
        patch.setattr(distributed.time, "sleep", lambda _: None)
        assert distributed.see(folder / "late") == folder / "late"
    assert os.environ["RANK"] == "1"
