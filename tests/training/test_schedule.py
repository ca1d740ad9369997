"""The schedules written out."""

import pytest

from cocomix.params import ScheduleParams, TrainingParams
from cocomix.training.schedule import factor, learning_rate, steps_with

PARAMS = TrainingParams(
    steps=8, batch_size=1, learning_rate=1e-2, eval_every=1, eval_windows=1, checkpoint_every=1, warmup_share=0.25
)
WHOLE_DECAY = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]


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


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [0.5, 1, 1, 0.91405765, 0.68905765, 0.41094235, 0.18594235, 0.1]),
        ({"schedule": "warmup_stable_decay", "decay_share": 0.5}, [0.5, 1, 1, 1, 0.775, 0.55, 0.325, 0.1]),
        ({"schedule": "warmup_stable_decay", "decay_share": 0.25, "final_share": 0}, [0.5, 1, 1, 1, 1, 1, 0.5, 0]),
        ({"schedule": "warmup_stable_decay", "decay_share": 0}, [0.5, 1, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "warmup_stable_decay", "warmup_share": 0, "decay_share": 1, "final_share": 0.2}, WHOLE_DECAY),
    ],
)
def test_the_learning_rate_in_each_step(changes: dict[str, object], expected: list[float]) -> None:
    params = PARAMS.model_copy(update=changes)
    steps = range(params.steps)
    assert [learning_rate(params, step, 3e-2) / 3e-2 for step in steps] == pytest.approx(expected, abs=1e-6)
    weights = ScheduleParams(shape="learning_rate")
    assert [factor(weights, params, step) for step in steps] == pytest.approx(expected, abs=1e-6)
