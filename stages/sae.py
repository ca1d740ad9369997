"""Stage `sae`: train the sparse autoencoder on the activations, and measure it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cocomix.activations.stream import open_activations
from cocomix.artifact import Artifact, Work
from cocomix.base import load_base
from cocomix.params import Params
from cocomix.sae.quality import duplicates, reconstruction, splice
from cocomix.sae.training import SaeTraining, write_curve
from cocomix.tokens.windows import Tokens
from stages.stage import ARTIFACTS, main, produce, to_json


def run(params: Params) -> None:
    """Make artifacts/sae."""
    activations, base = Artifact(ARTIFACTS / "activations"), Artifact(ARTIFACTS / "base")
    tokens = Tokens(ARTIFACTS / "tokens")

    def compute(work: Work) -> Mapping[str, Any]:
        store = open_activations(activations, params.sae.site, tokens, lambda: load_base(base, tokens.context))
        training = SaeTraining(store, params.sae, work.scratch)
        curve = training.run()
        trained = training.sae.requires_grad_(False)
        sae = trained.folded()
        with work.write_folder() as folder:
            sae.save(folder)
        held_out = reconstruction(trained, store)
        losses = splice(sae, load_base(base, tokens.context), tokens, held_out.mean)
        metrics = {
            "fvu": held_out.fvu,
            "fvu_raw": held_out.fvu_raw,
            "l0": held_out.l0,
            "dead_share": curve[-1].dead,
            "dense_share": held_out.dense_share,
            "firing": held_out.firing,
            "duplicates": duplicates(sae),
            **losses._asdict(),
            "loss_recovered": losses.loss_recovered,
            "kl_recovered": losses.kl_recovered,
        }
        (work.side / "metrics.json").write_bytes(to_json(metrics))
        write_curve(work.side / "curve.csv", curve)
        return {**sae.config.model_dump(), "concepts": sae.config.concepts}

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
