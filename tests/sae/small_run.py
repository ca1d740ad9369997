"""Training of small autoencoders, as a program for one or several processes.

python -m tests.sae.small_run STORE OUT NAME... trains those keys of `ARCHITECTURES`, each into OUT/NAME.
"""

import os
import sys
from pathlib import Path

from safetensors.torch import save_file

from cocomix.activations.store import ActivationStore
from cocomix.plumbing import distributed
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.runtime import runtime
from cocomix.sae.learner import Learner
from cocomix.sae.training import SaeTraining, Wanted, write_curve
from tests.sae.test_training import PARAMS, options


def train(store: ActivationStore, folder: Path, architecture: str) -> Learner:
    """Some latents are dead for a while, so that they learn from the error."""
    params = PARAMS.model_copy(update={"latents": 128, "dead_tokens": 256, "ema": 0.9, **options(architecture)})
    training = SaeTraining([Wanted(store, params)], folder)
    training.run()
    return training.learners[0]


def main(store: Path, out: Path, architectures: list[str]) -> None:
    os.environ |= {"COCOMIX_PRECISION": "fp32", "COCOMIX_DEVICE": "cpu"}
    distributed.join()
    for architecture in architectures:
        learner = train(ActivationStore(Artifact(store)), out / architecture, architecture)
        if runtime().rank == 0:
            save_file(learner.finish().state_dict(), out / architecture / "sae.safetensors")
            write_curve(out / architecture / "curve.csv", learner.curve)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    sys.stderr.flush()
    os._exit(0)  # as stages do: see cocomix.plumbing.distributed.join
