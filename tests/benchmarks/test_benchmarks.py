import json
import subprocess
import sys

import pytest

from benchmarks import medians


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ratios"),
    [
        ("activation_store", {"read", "write", "size", "read_mtokens_per_core_s", "stage_over_forward"}),
        ("attribution", {"rate", "peak_memory", "next_token_over_sequence", "attribution_over_forward"}),
        ("distillation", {"cached_over_ntp", "online_over_cached"}),
        ("evaluate", {"over_gpt2", "same_model"}),
        ("explain", {"scores", "export", "search", "page_mb", "part_mb"}),
        ("generate", {"over_block_ratio", "flatness"}),
        ("predictions", {"over_evaluation", "over_whole_windows", "places_per_position"}),
        ("student_step", {"with_labels", "student_only", "peak_memory", "over_flop_ratio"}),
    ],
)
def test_a_benchmark_ends_with_one_json_object(name: str, ratios: set[str]) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == name
    assert ratios <= set(result["ratios"])
    assert all(ratio > 0 for ratio in result["ratios"].values())


def test_medians_are_of_each_piece_of_work_after_an_unmeasured_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [0, 9, 10, 11, 20, 22, 30, 31, 40, 45, 50, 51]
    cpu, wall = iter(times), iter(10 * each for each in times)
    monkeypatch.setattr("benchmarks.time.process_time", lambda: next(cpu))
    monkeypatch.setattr("benchmarks.time.perf_counter", lambda: next(wall))
    calls: list[str] = []
    taken = medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert taken == {"a": (5, 50), "b": (1, 10)}
    assert calls == ["a", "b"] * 4
