from pathlib import Path

import pytest

from tests.params.changed import refusal


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "muon_learning_rate: null  #",
            "muon_learning_rate: 2.0e-2  #",
            "base.training: muon_learning_rate (0.02) must be null with optimizer: adamw",
        ),
        (
            "schedule: cosine          #",
            "schedule: linear          #",
            "base.training.schedule: 'linear': input should be 'cosine' or 'warmup_stable_decay'",
        ),
        (
            "optimizer: adamw          #",
            "optimizer: sgd          #",
            "base.training.optimizer: 'sgd': input should be 'adamw' or 'muon'",
        ),
        (
            "betas: [0.9, 0.95]        #",
            "betas: [1.0, 0.95]        #",
            "base.training.betas.0: 1.0: input should be less",
        ),
    ],
)
def test_a_wrong_value_of_the_optimiser_is_one_line_with_the_key_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert refusal(tmp_path, old, new).startswith(message)
