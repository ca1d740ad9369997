"""What a model takes: its folder on disk, its memory, and its optimiser."""

import math
from typing import NamedTuple

from cocomix.params import Params, TrainingParams
from cocomix.shapes.models import Shape, block_matrices, dimensions, newton_schulz_flops, parameters_of
from cocomix.shapes.planning.needs import TOKENIZER_BYTES

NUMBER_BYTES = {"fp32": 4, "bf16": 2}
"""Of a weight, by base.dtype."""


def saved(shape: Shape, number: int = 4) -> float:
    """Bytes of a model's folder.

    Args:
        number: bytes of a weight.
    """
    code = 70e3 if "concept_layer" in shape else 4e3
    return number * parameters_of(shape).stored + TOKENIZER_BYTES * shape["vocab_size"] + code


def held(params: Params, base: Shape, layers: int | None = None) -> float:
    """Bytes of the base model's weights.

    Args:
        layers: of its embeddings and this many blocks; None: of all.
    """
    size, stored = dimensions(base), parameters_of(base).stored
    embeddings = size.d_model * base["vocab_size"]
    some = stored if layers is None else embeddings + (stored - embeddings) * layers / size.n_layer
    return NUMBER_BYTES[params.base.dtype] * some


def window_memory(shape: Shape, context: int) -> float:
    """Memory per window: the blocks' activations, attention matrices where they are materialised, and logits."""
    size = dimensions(shape)
    d, layers = size.d_model, size.n_layer
    interleaved = shape.get("mixing") in ("interleave", "interleave_with_state")
    above = layers - shape["concept_layer"] if interleaved else 0
    positions = context * (layers + above)
    attention = 10 * size.n_head * context**2 * (layers + 3 * above) if context <= 512 else 0
    concepts = 6 * context * shape["num_concepts"] if shape.get("predicts") == "concepts" else 0
    return 34 * d * positions + attention + concepts + 6 * context * shape["vocab_size"]


class Optimizing(NamedTuple):
    """What the optimiser of a training run needs, and the checkpoints."""

    flops: float
    """Of all steps."""
    state: float
    """Bytes of its moments."""
    checkpoint: float
    """Bytes of a checkpoint: the weights and the moments."""
    checkpoints: float
    """Bytes of all checkpoints of the run."""


def optimizing(training: TrainingParams, shape: Shape) -> Optimizing:
    """What the optimiser of a model needs, and the checkpoints."""
    stored, flops = parameters_of(shape).stored, 0
    state = 8 * stored
    if training.optimizer == "muon":
        matrices = block_matrices(shape)
        flops = training.steps * sum(newton_schulz_flops(*each) for each in matrices)
        state -= 4 * sum(rows * columns for rows, columns in matrices)
    checkpoint = 4 * stored + state
    return Optimizing(flops, state, checkpoint, checkpoint * math.ceil(training.steps / training.checkpoint_every))
