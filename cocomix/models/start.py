"""A language model at the start of its training: with random weights, or with those of a pretrained model."""

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from cocomix.models.configs import config_of
from cocomix.params import InitParams
from cocomix.plumbing.errors import UserError
from cocomix.pretrained import load_model
from cocomix.shapes.models import Shape


def new_model(shape: Shape, context: int, init: InitParams, seed: int) -> PreTrainedModel:
    """Build a model; what it has beyond a pretrained one, such as a concept head, is random from the seed.

    Args:
        shape: its shape: with `init.source: pretrained`, of the pretrained model (`cocomix.shapes.pretrained`).
        context: tokens of the windows that it will read.

    Raises:
        UserError: in one line, when the pretrained model cannot be loaded, or has embeddings that are not tied.
    """
    pretrained = None
    if init.source == "pretrained":
        pretrained = load_model("pretrain.init.path", str(init.path), init.revision, torch.float32)
        # transformers ties them only if the files do not hold two different ones, whatever the configuration says.
        if pretrained.get_output_embeddings().weight is not pretrained.get_input_embeddings().weight:
            raise UserError(
                f"pretrain.init.path: {init.path!r}: says tie_word_embeddings: true, but its weights have an "
                "unembedding that differs from the embeddings"
            )
    torch.manual_seed(seed)  # after loading, which may draw numbers
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config_of(shape, context))
    if pretrained is not None:
        take_over(model, pretrained)
    return model


@torch.no_grad()
def take_over(model: PreTrainedModel, pretrained: PreTrainedModel) -> None:
    """Copy the weights of a pretrained model into a model of its shape.

    Embeddings of tokens beyond the model's vocabulary, with which some vocabularies are padded, are left out.
    """
    for name, weights in pretrained.named_parameters():
        own = model.get_parameter(name)
        own.copy_(weights[: len(own)])
