import json
import subprocess
import sys

import pytest

from benchmarks import medians


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ratios"),
    [
        ("activation_store", {"read_mtokens_per_core_s", "write_mtokens_per_core_s", "stage_over_forward"}),
        ("attribution", {"attribution_over_forward"}),
    ],
)
def test_a_benchmark_ends_with_one_json_object(name: str, ratios: set[str]) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == name
    assert ratios <= set(result["ratios"])
    assert all(ratio > 0 for ratio in result["ratios"].values())


def test_medians_are_of_each_piece_of_work_after_an_unmeasured_turn() -> None:
    times = iter([0, 9, 10, 11, 20, 22, 30, 31, 40, 45, 50, 51])
    calls: list[str] = []
    works = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    assert medians(works, 3, lambda: next(times)) == {"a": 5, "b": 1}
    assert calls == ["a", "b"] * 4
