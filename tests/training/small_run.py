"""Small training runs, as a program for one or several processes.

python -m tests.training.small_run OUT CASE... runs each `Case`, given as the JSON of its fields, one after another.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from cocomix.plumbing import distributed
from cocomix.plumbing.runtime import runtime
from cocomix.training.loop import Training
from tests.training import test_loop
from tests.training.test_loop import PARAMS, training


@dataclass(frozen=True)
class Case:
    """A run."""

    out: str
    """The folder in OUT: a run goes on from what another one has left there."""
    method: str = "cocomix"
    sharding: str = "ddp"
    precision: str = "fp32"
    optimizer: str = "adamw"
    steps: int = PARAMS.steps
    stop_at: int | None = None
    """The step before which it dies."""

    def argument(self) -> str:
        return json.dumps(asdict(self))


class DiedError(Exception):
    """The run's end at `stop_at`."""


def train(out: Path, case: Case) -> None:
    """Run a case; one that does not die writes result.json, and drawn-RANK.json of each process."""
    knobs = {"DEVICE": "cpu", "MICRO_BATCH": "2", "SHARDING": case.sharding, "PRECISION": case.precision}
    with pytest.MonkeyPatch.context() as patch:
        for name, knob in knobs.items():
            patch.setenv(f"COCOMIX_{name}", knob)
        runtime.cache_clear()
        _train(out / case.out, case, patch)
    runtime.cache_clear()


def _train(folder: Path, case: Case, patch: pytest.MonkeyPatch) -> None:
    objective = getattr(test_loop, case.method)()
    params = PARAMS.model_copy(update={"optimizer": case.optimizer, "steps": case.steps})
    run = training(objective, folder, params)
    step, norms, drawn = Training._train_step, list[float](), list[float]()

    def watched_step(self: Training) -> tuple[float, float]:
        if self._step == case.stop_at:
            raise DiedError
        loss, norm = step(self)
        norms.append(norm)
        return loss, norm

    patch.setattr(Training, "_train_step", watched_step)
    modules, dtypes = objective.model.base_model.modules(), set[str]()
    projection = next(each for each in modules if isinstance(each, Conv1D | nn.Linear))
    projection.register_forward_pre_hook(lambda module, _: dtypes.add(str(module.weight.dtype)))
    objective.register_forward_pre_hook(
        lambda module, _: drawn.append(torch.rand(()).item()) if module.training else None
    )
    try:
        curve = run.run("small")
    except DiedError:
        return
    (folder / f"drawn-{runtime().rank}.json").write_text(json.dumps(drawn))
    if runtime().rank == 0:
        weights = {name: each.flatten().tolist() for name, each in objective.model.state_dict().items()}
        found = {
            "curve": [row.columns() for row in curve],
            "norms": norms,
            "weights": weights,
            "dtypes": sorted(dtypes),
        }
        (folder / "result.json").write_text(json.dumps(found))


if __name__ == "__main__":
    os.environ["COCOMIX_DEVICE"] = "cpu"
    distributed.join()
    for each in sys.argv[2:]:
        train(Path(sys.argv[1]), Case(**json.loads(each)))
    sys.stderr.flush()
    os._exit(0)  # as stages do: see cocomix.plumbing.distributed.join
