import os
import threading
import time

import pytest

from benchmarks.trainings import ratios, run
from flows.shares import Share
from tests.stages.conftest import finished
from tests.stages.project import Project

__all__ = ["finished"]

PARTS = [Share({"COCOMIX_PROCESSES": "1", "COCOMIX_THREADS": "1"}, ())] * 2


def test_as_much_runs_at_a_time_as_there_are_parts_each_with_one_of_its_own() -> None:
    parts = [Share({"PART": name}, ()) for name in "ab"]
    lock, at_work, seen = threading.Lock(), set[str](), list[set[str]]()

    def work(part: Share) -> None:
        name = part.environment["PART"]
        with lock:
            assert name not in at_work
            at_work.add(name)
            seen.append(set(at_work))
        time.sleep(0.05)
        with lock:
            at_work.remove(name)

    run([work] * 6, parts)
    assert len(seen) == 6
    assert {"a", "b"} in seen
    seen.clear()
    run([work] * 3, parts[:1])
    assert seen == [{"a"}] * 3


@pytest.mark.slow
def test_trainings_at_a_time_give_the_same_models_and_are_compared(
    finished: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", finished.environment)
    found = ratios(finished.path, PARTS, {"pretrain": {"training": {"steps": 4}}}, 1)
    assert set(found) == {"over_one_at_a_time", "over_a_share_each"}
    assert all(ratio > 0 for ratio in found.values())
