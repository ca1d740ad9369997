"""A small autoencoder's training, as a program for one or several processes: `python -m tests.sae.small_run OUT NAME`.

NAME is a key of `ARCHITECTURES`. OUT holds the store, in OUT/store.
"""

import os
import sys
from pathlib import Path

from safetensors.torch import save_file

from cocomix import distributed
from cocomix.activations.store import ActivationStore
from cocomix.artifact import Artifact
from cocomix.runtime import runtime
from cocomix.sae.training import SaeTraining, Wanted, write_curve
from tests.sae.test_training import PARAMS, options


def main(store: Path, out: Path, architecture: str) -> None:
    os.environ |= {"COCOMIX_PRECISION": "fp32", "COCOMIX_DEVICE": "cpu"}
    distributed.join()
    # Some latents are dead for a while, so that they learn from the error.
    params = PARAMS.model_copy(update={"latents": 128, "dead_tokens": 256, "ema": 0.9, **options(architecture)})
    run = SaeTraining([Wanted(ActivationStore(Artifact(store)), params)], out)
    run.run()
    if runtime().rank == 0:
        save_file(run.learners[0].finish().state_dict(), out / "sae.safetensors")
        write_curve(out / "curve.csv", run.learners[0].curve)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    sys.stderr.flush()
    os._exit(0)  # as stages do: see cocomix.distributed.join
