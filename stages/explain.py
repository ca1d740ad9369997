"""Stage `explain`: make the atlas of concepts."""

if __name__ == "__main__":
    from stages.stage import share_work

    share_work()

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cocomix.base.loading import load_base
from cocomix.check.external import outside
from cocomix.explain.build import make_atlas
from cocomix.params import Params
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.sae.autoencoder import load_sae
from cocomix.tokens.base_tokens import BaseTokens
from stages.stage import ARTIFACTS, main, produce, to_json


def run(params: Params) -> None:
    """Make artifacts/atlas; the processes share the work."""
    base, trained = Artifact(ARTIFACTS / "base"), Artifact(ARTIFACTS / "sae")
    tokens = BaseTokens(ARTIFACTS)

    def compute(work: Work) -> Mapping[str, Any]:
        sae = load_sae(trained)
        summary = make_atlas(work, load_base(base, tokens.context), sae, tokens, params.explain)
        if summary:
            (work.side / "metrics.json").write_bytes(to_json(asdict(summary)))
        return {"concepts": sae.config.concepts, "context": tokens.context}

    produce(
        "explain",
        ARTIFACTS / "atlas",
        {"base": base, "sae": trained, **tokens.inputs, **outside("explain.model.name", params)},
        params.explain.model_dump(),
        compute,
        {"metrics.json": Path("metrics/explain.json")},
    )


if __name__ == "__main__":
    main(run)
