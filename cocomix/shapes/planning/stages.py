"""The needs of all stages."""

from collections.abc import Mapping
from typing import Any

from cocomix.params import Params, PretrainParams, mixes_concepts
from cocomix.plumbing.errors import UserError
from cocomix.shapes.models import shape_of, shapes
from cocomix.shapes.planning.base import activations_needs, base_needs, distribution_needs
from cocomix.shapes.planning.concepts import attribution_needs, explain_needs, sae_needs
from cocomix.shapes.planning.corpus import CorpusSize
from cocomix.shapes.planning.needs import PLAIN, StageNeeds
from cocomix.shapes.planning.sizes import sizes_of
from cocomix.shapes.planning.students import evaluate_needs, pretrain_needs, steer_needs
from cocomix.shapes.planning.text import base_tokens_needs, corpus_needs, tokenize_needs
from cocomix.shapes.pretrained import pretrained_shape


def stage_needs(params: Params, text: CorpusSize, pretrained: Mapping[str, Any] | None = None) -> dict[str, StageNeeds]:
    """Estimate the needs of each stage, by its name in dvc.yaml.

    Args:
        text: `measured_corpus` or `estimated_corpus`.
        pretrained: the configuration of the model of `pretrain.init`; None: `pretrain.model` is assumed.

    Raises:
        UserError: when `pretrain.model` is assumed, and has no block above a concept layer.
    """
    sizes = sizes_of(params, text)
    found = {
        "corpus": corpus_needs(sizes),
        "tokenize": tokenize_needs(params, sizes),
        "base_tokens": base_tokens_needs(params, sizes),
        "base": base_needs(params, sizes),
        "activations": activations_needs(params, sizes),
        "sae": sae_needs(params, sizes),
        "attribution": attribution_needs(params, sizes),
        "distribution": distribution_needs(params, sizes),
        "explain": explain_needs(params, sizes),
        "methods": StageNeeds(disk=2000, memory=PLAIN),
        "report": StageNeeds(disk=5e4, memory=2 * PLAIN),
    }
    if pretrained is None:
        _check_assumed(params.pretrain)
    start = None if pretrained is None else pretrained_shape(pretrained, params.pretrain.model.dropout, sizes.words)
    models = shapes(params.pretrain, sizes.words, sizes.teacher, start)
    listed = params.pretrain.listed
    steered = [shape_of(name, models[name]) for name, section in listed.items() if mixes_concepts(section)]
    found["steer"] = steer_needs(params, steered, sizes)
    for name, section in listed.items():
        shape = shape_of(name, models[name])
        for seed in params.pretrain.seeds:
            found[f"pretrain@{name}-{seed}"] = pretrain_needs(params, section, shape, sizes)
            found[f"evaluate@{name}-{seed}"] = evaluate_needs(params, shape, sizes)
    return found


def _check_assumed(pretrain: PretrainParams) -> None:
    """Check that `pretrain.model` has blocks above the concept layers, where it stands for a pretrained model.

    Raises:
        UserError: when it has not.
    """
    if pretrain.init.source != "pretrained":
        return
    for key, layer in pretrain.concept_layers.items():
        if layer >= pretrain.model.n_layer:
            raise UserError(
                f"pretrain.init.path: {pretrain.init.path!r} is not on this machine, and pretrain.{key} "
                f"({layer}) is not below pretrain.model.n_layer ({pretrain.model.n_layer}): to plan, "
                "download it, or set pretrain.model to its shape"
            )
