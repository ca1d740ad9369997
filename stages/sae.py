"""Stage `sae`: train the sparse autoencoder on the activation store, and measure it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cocomix.activations.store import ActivationStore
from cocomix.artifact import Artifact, Work
from cocomix.base import load_base
from cocomix.params import Params
from cocomix.sae.quality import reconstruction, splice
from cocomix.sae.training import SaeTraining, write_curve
from cocomix.tokens.windows import Tokens
from stages.stage import ARTIFACTS, main, produce, to_json


def run(params: Params) -> None:
    """Make artifacts/sae."""
    activations, base = Artifact(ARTIFACTS / "activations"), Artifact(ARTIFACTS / "base")
    tokens = Tokens(ARTIFACTS / "tokens")

    def compute(work: Work) -> Mapping[str, Any]:
        store = ActivationStore(activations, params.sae.site)
        training = SaeTraining(store, params.sae, work.scratch)
        curve = training.run()
        sae = training.sae.requires_grad_(False)
        with work.write_folder() as folder:
            sae.save(folder)
        held_out = reconstruction(sae, store)
        losses = splice(sae, load_base(base, tokens.context), tokens, held_out.mean)
        metrics = {
            "fvu": held_out.fvu,
            "fvu_raw": held_out.fvu_raw,
            "l0": held_out.l0,
            "dead_share": curve[-1].dead,
            **losses._asdict(),
            "loss_recovered": losses.loss_recovered,
        }
        (work.side / "metrics.json").write_bytes(to_json(metrics))
        write_curve(work.side / "curve.csv", curve)
        return sae.config.model_dump()

    produce(
        "sae",
        ARTIFACTS / "sae",
        {"activations": activations, "base": base, "tokens": tokens.artifact},
        params.sae.model_dump(),
        compute,
        {"metrics.json": Path("metrics/sae.json"), "curve.csv": Path("plots/sae.csv")},
    )


if __name__ == "__main__":
    main(run)
