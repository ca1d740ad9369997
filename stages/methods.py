"""Stage `methods`: what each listed method is: its parameters, the shape of its model, what it learns from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cocomix.check.external import outside
from cocomix.check.tokens import check_init_tokenizer
from cocomix.params import Params
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.shapes.methods import METHODS, supervision
from cocomix.shapes.models import Shape, TeacherSizes, dimensions, shape_of, shapes
from cocomix.shapes.pretrained import check_pretrained, pretrained_shape
from cocomix.tokens.base_tokens import BaseTokens
from cocomix.tokens.windows import Tokens
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
        teacher = TeacherSizes(
            concepts=sae.about["concepts"],
            base_width=base.about["d_model"],
            base_flops=base.about["flops"],
            base_flops_to_layer=base.about["flops_to_layer"][sae.about["layer"] - 1],
        )
        found = shapes(section, tokens, teacher, _pretrained(params, tokens))
        entries = {
            name: {
                "kind": section.kind(name),
                "parameters": own.model_dump(mode="json"),
                "shape": shape_of(name, found[name]),
                "supervision": supervision(own, ARTIFACTS),
            }
            for name, own in section.listed.items()
        }
        with work.write(METHODS) as pending:
            pending.path.write_bytes(to_json(entries))
        sizes = {
            "widths": {name: dimensions(shape).d_model for name, shape in found.items() if shape},
            "context": tokens.context,
            "base_context": read.context,
            "concepts": teacher.concepts,
            "base_flops": teacher.base_flops,
            "base_flops_to_layer": teacher.base_flops_to_layer,
        }
        (work.side / "metrics.json").write_bytes(to_json(sizes))
        return {}

    unused = {"seeds", "training"} | ({"init"} if section.init.source == "scratch" else set())
    used = section.model_dump(mode="json", exclude=unused)
    opened = {"base": base, "sae": sae, "concepts": concepts, "distribution": distribution}
    inputs: dict[str, Artifact | str] = {**opened, **read.inputs, **outside("pretrain.init.path", params)}
    side = {"metrics.json": Path("metrics/methods.json")}
    produce("methods", ARTIFACTS / "methods", inputs, used, compute, side)


def _pretrained(params: Params, tokens: Tokens) -> Shape | None:
    """The shape of the model from which the methods go on; None: they start from scratch."""
    init = params.pretrain.init
    if init.source == "scratch":
        return None
    from cocomix.pretrained import load_config  # imports torch

    config = load_config("pretrain.init.path", str(init.path), init.revision).to_dict()
    check_pretrained(config, params.pretrain, tokens.context)
    check_init_tokenizer(params, config, tokens)
    return pretrained_shape(config, params.pretrain.model.dropout, tokens)


if __name__ == "__main__":
    main(run)
