"""A small training run, as a program for one or several processes.

python -m tests.training.small_run OUT METHOD [--optimizer muon] [--steps N] [--stop-at STEP]
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from cocomix.plumbing import distributed
from cocomix.plumbing.runtime import runtime
from cocomix.training.loop import Training
from tests.training import test_loop
from tests.training.test_loop import PARAMS, training


def main(folder: Path, method: str, optimizer: str, steps: int, stop_at: int | None) -> None:
    os.environ["COCOMIX_DEVICE"] = "cpu"
    os.environ.setdefault("COCOMIX_PRECISION", "fp32")
    distributed.join()
    objective = getattr(test_loop, method)()
    run = training(objective, folder, PARAMS.model_copy(update={"optimizer": optimizer, "steps": steps}))
    step, norms, drawn = Training._train_step, list[float](), list[float]()

    def watched_step(self: Training) -> tuple[float, float]:
        if self._step == stop_at:
            os._exit(0)
        loss, norm = step(self)
        norms.append(norm)
        return loss, norm

    Training._train_step = watched_step  # type: ignore[method-assign]
    modules, dtypes = objective.model.base_model.modules(), set[str]()
    projection = next(each for each in modules if isinstance(each, Conv1D | nn.Linear))
    projection.register_forward_pre_hook(lambda module, _: dtypes.add(str(module.weight.dtype)))
    objective.register_forward_pre_hook(
        lambda module, _: drawn.append(torch.rand(()).item()) if module.training else None
    )
    curve = run.run("small")
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
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("method")
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--steps", type=int, default=PARAMS.steps)
    parser.add_argument("--stop-at", type=int)
    main(**vars(parser.parse_args()))
    sys.stderr.flush()
    os._exit(0)  # as stages do: see cocomix.plumbing.distributed.join
