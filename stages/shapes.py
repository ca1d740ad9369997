"""Stage `shapes`: the shape of each method's model, matched to CoCoMix's according to `pretrain.match`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cocomix.base.flops import forward_flops
from cocomix.params import Params
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.shapes.models import TeacherSizes, shapes
from cocomix.tokens.windows import Tokens
from stages.stage import ARTIFACTS, main, produce, to_json


def run(params: Params) -> None:
    """Make artifacts/shapes: shapes.json, the keyword arguments of each method's model configuration, or null.

    metrics/shapes.json holds each model's width, the dictionary's size, and the FLOPs per token of the base model's
    forward pass, in full and up to the layer of the concepts.
    """
    tokens = Tokens(ARTIFACTS / "tokens")
    base, sae = Artifact(ARTIFACTS / "base"), Artifact(ARTIFACTS / "sae")
    section = params.pretrain

    def compute(work: Work) -> Mapping[str, Any]:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base.file("config.json").parent))
        teacher = TeacherSizes(
            latents=sae.about["concepts"],
            base_width=model.config.hidden_size,
            base_flops=forward_flops(model, tokens.context),
            base_flops_to_layer=forward_flops(model, tokens.context, sae.about["layer"]),
        )
        found = shapes(section, tokens, teacher)
        with work.write("shapes.json") as pending:
            pending.path.write_bytes(to_json(found))
        sizes = {
            "widths": {method: shape["n_embd"] for method, shape in found.items() if shape},
            "context": tokens.context,
            "latents": teacher.latents,
            "base_flops": teacher.base_flops,
            "base_flops_to_layer": teacher.base_flops_to_layer,
        }
        (work.side / "metrics.json").write_bytes(to_json(sizes))
        return {}

    used = section.model_dump(include={"match", "model", "pause"})
    used["cocomix"] = section.cocomix.model_dump(exclude={"concept_weight", "hidden_loss"})
    inputs = {"tokens": tokens.artifact, "base": base, "sae": sae}
    side = {"metrics.json": Path("metrics/shapes.json")}
    produce("shapes", ARTIFACTS / "shapes", inputs, used, compute, side)


if __name__ == "__main__":
    main(run)
