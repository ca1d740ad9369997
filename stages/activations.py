"""Stage `activations`: store the base model's activations, shuffled."""

if __name__ == "__main__":
    from stages.stage import share_work

    share_work()

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cocomix.activations.collect import collect
from cocomix.base.loading import load_base
from cocomix.params import Params, Site
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.tokens.base_tokens import BaseTokens
from stages.stage import ARTIFACTS, main, produce, to_json


def run(params: Params) -> None:
    """Collect the activations into artifacts/activations; the processes share the work."""
    base = Artifact(ARTIFACTS / "base")
    tokens = BaseTokens(ARTIFACTS)

    def compute(work: Work) -> Mapping[str, Any]:
        last = max(Site.parse(each).layer for each in params.activations.sites)
        about = collect(work, load_base(base, tokens.context, last), tokens, params.activations)
        (work.side / "metrics.json").write_bytes(
            to_json(
                {
                    "train_tokens": about["tokens"]["train"],
                    "validation_tokens": about["tokens"]["validation"],
                    "d_model": about["d_model"],
                    "rounding_fvu": about["rounding_fvu"],
                }
            )
        )
        return about

    produce(
        "activations",
        ARTIFACTS / "activations",
        {"base": base, **tokens.inputs},
        params.activations.model_dump(),
        compute,
        {"metrics.json": Path("metrics/activations.json")},
    )


if __name__ == "__main__":
    main(run)
