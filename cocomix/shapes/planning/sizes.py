"""The sizes on which the needs of several stages depend."""

from typing import NamedTuple

from cocomix.params import Params, Site
from cocomix.shapes.models import Shape, TeacherSizes, dimensions, flops_per_token, plain_shape
from cocomix.shapes.planning.corpus import CorpusSize, Words, in_base_tokens


class Sizes(NamedTuple):
    """The sizes of the text and of the base model."""

    text: CorpusSize
    """In the students' tokens."""
    words: Words
    base_text: CorpusSize
    """In the base model's tokens."""
    base_words: Words
    base: Shape
    teacher: TeacherSizes
    layer: int
    """The block of the concepts' site."""


def sizes_of(params: Params, text: CorpusSize) -> Sizes:
    """The sizes for a corpus, which is given in the students' tokens."""
    words = Words(text.vocab_size, params.tokenize.context)
    base_text = in_base_tokens(params, text)
    base_words = Words(base_text.vocab_size, params.base.context or words.context)
    base = plain_shape(params.base.model, base_words)
    layer = Site.parse(params.sae.site or params.activations.sites[0]).layer
    teacher = TeacherSizes(
        params.sae.concepts,
        params.base.model.d_model,
        flops_per_token(base, base_words.context),
        flops_to_layer(base, layer),
    )
    return Sizes(text, words, base_text, base_words, base, teacher, layer)


def flops_to_layer(base: Shape, layer: int) -> int:
    """FLOPs per token of the base model up to a layer."""
    size = dimensions(base)
    blocks = flops_per_token(base, size.context) - 2 * size.d_model * base["vocab_size"]
    return int(blocks * layer / size.n_layer)
