"""The schedules written out."""

import pytest

from cocomix.params import ScheduleParams, TrainingParams
from cocomix.training.schedule import factor, learning_rate, steps_with

PARAMS = TrainingParams(
    steps=8, batch_size=1, learning_rate=1e-2, eval_every=1, eval_windows=1, checkpoint_every=1, warmup_share=0.25
)


@pytest.mark.parametrize(
    ("shape", "until", "expected"),
    [
        ("constant", 1.0, [1, 1, 1, 1, 1, 1, 1, 1]),
        ("constant", 0.25, [1, 1, 0, 0, 0, 0, 0, 0]),
        ("constant", 0.05, [1, 0, 0, 0, 0, 0, 0, 0]),
        ("linear", 1.0, [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("linear", 0.5, [1, 3 / 4, 2 / 4, 1 / 4, 0, 0, 0, 0]),
        ("learning_rate", 1.0, [0.5, 1, 1, 0.91405765, 0.68905765, 0.41094235, 0.18594235, 0.1]),
        ("learning_rate", 0.5, [0.5, 1, 1, 0.91405765, 0, 0, 0, 0]),
    ],
)
def test_the_factor_of_a_weight_in_each_step(shape: str, until: float, expected: list[float]) -> None:
    schedule = ScheduleParams(shape=shape, until=until)  # type: ignore[arg-type]
    assert [factor(schedule, PARAMS, step) for step in range(8)] == pytest.approx(expected, abs=1e-6)
    assert steps_with(schedule, PARAMS) == sum(each > 0 for each in expected)


def test_the_factor_follows_the_learning_rate() -> None:
    schedule = ScheduleParams(shape="learning_rate")
    for step in range(8):
        assert factor(schedule, PARAMS, step) == pytest.approx(learning_rate(PARAMS, step) / 1e-2)
