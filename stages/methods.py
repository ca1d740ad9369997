"""Stage `methods`: what each listed method is: its parameters, the shape of its model, what it learns from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cocomix.base.flops import forward_flops
from cocomix.params import Params
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.shapes.methods import METHODS, supervision
from cocomix.shapes.models import TeacherSizes, shapes
from cocomix.tokens.base_tokens import BaseTokens
from stages.stage import ARTIFACTS, main, produce, to_json


def run(params: Params) -> None:
    """Make artifacts/methods: methods.json, an entry for each listed method, as `ListedMethod`.

    metrics/methods.json holds the width of the model of each method and form, listed or not, the dictionary's size, and
    the FLOPs per token of the base model's forward pass, in full and up to the layer of the concepts.
    """
    read = BaseTokens(ARTIFACTS)
    tokens = read.students
    base, sae, concepts, distribution = (
        Artifact(ARTIFACTS / each) for each in ("base", "sae", "concepts", "distribution")
    )
    section = params.pretrain

    def compute(work: Work) -> Mapping[str, Any]:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base.file("config.json").parent))
        teacher = TeacherSizes(
            latents=sae.about["concepts"],
            base_width=model.config.hidden_size,
            base_flops=forward_flops(model, read.context),
            base_flops_to_layer=forward_flops(model, read.context, sae.about["layer"]),
        )
        found = shapes(section, tokens, teacher)
        entries = {
            name: {
                "kind": section.kind(name),
                "parameters": own.model_dump(mode="json"),
                "shape": found[name],
                "supervision": supervision(own, ARTIFACTS),
            }
            for name, own in section.listed.items()
        }
        with work.write(METHODS) as pending:
            pending.path.write_bytes(to_json(entries))
        sizes = {
            "widths": {name: shape["n_embd"] for name, shape in found.items() if shape},
            "context": tokens.context,
            "base_context": read.context,
            "latents": teacher.latents,
            "base_flops": teacher.base_flops,
            "base_flops_to_layer": teacher.base_flops_to_layer,
        }
        (work.side / "metrics.json").write_bytes(to_json(sizes))
        return {}

    used = section.model_dump(mode="json", exclude={"seeds", "training"})
    inputs = {"base": base, "sae": sae, "concepts": concepts, "distribution": distribution, **read.inputs}
    side = {"metrics.json": Path("metrics/methods.json")}
    produce("methods", ARTIFACTS / "methods", inputs, used, compute, side)


if __name__ == "__main__":
    main(run)
