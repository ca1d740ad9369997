"""The needs of the students' training and measurement: pretrain, evaluate, steer."""

from cocomix.params import CocomixParams, MethodParams, MtpParams, Params, reads_distribution, runs_base
from cocomix.plumbing.runtime import LOGITS
from cocomix.shapes.models import Shape, deepened, dimensions, flops_per_token, parameters_of, training_flops
from cocomix.shapes.planning.base import unique_draws
from cocomix.shapes.planning.models import held, optimizing, saved, window_memory
from cocomix.shapes.planning.needs import LIBRARIES, StageNeeds
from cocomix.shapes.planning.sizes import Sizes

INTERVENTIONS = 12
"""Passes over evaluate.intervention_windows with changed concepts, or with true labels substituted one by one."""
DOUBLED = 2
"""Places at which `steer` doubles a concept: `cocomix.predictions.measure.DOUBLED`, which imports torch."""


def pretrain_needs(params: Params, section: MethodParams, shape: Shape, sizes: Sizes) -> StageNeeds:
    """The needs of `pretrain` for one method and seed."""
    training, context, teacher = params.pretrain.training, params.tokenize.context, sizes.teacher
    further = section.tokens - 1 if isinstance(section, MtpParams) else 0
    in_training = deepened(shape, further)
    stored, optimizer = parameters_of(in_training).stored, optimizing(training, in_training)
    base_bytes = held(params, sizes.base) if runs_base(section) else 0.0
    positions, unpacked = sizes.text.positions(context), 0.0
    if isinstance(section, CocomixParams) and section.predicts == "concepts":
        label_bytes = (2 if teacher.concepts < 2**16 else 4) + (2 if section.label_weights == "score" else 0)
        unpacked += positions * params.attribution.k_attr * label_bytes
    if params.distribution.draws and reads_distribution(section):
        id_bytes = 2 if shape["vocab_size"] <= 2**16 else 4
        unique = unique_draws(params.distribution.draws, shape["vocab_size"])
        unpacked += positions * (3 + unique * (id_bytes + 1))
    return StageNeeds(
        flops=training_flops(shape, section, teacher, context) * training.steps * training.batch_size * context
        + optimizer.flops,
        disk=saved(shape),
        scratch=2 * optimizer.checkpoint + unpacked,
        checkpoints=optimizer.checkpoints,
        memory=LIBRARIES + 8 * stored + optimizer.state + base_bytes,
        window_memory=window_memory(in_training, context),
    )


def evaluate_needs(params: Params, shape: Shape, sizes: Sizes) -> StageNeeds:
    """The needs of `evaluate` for one method and seed."""
    section, context, text = params.evaluate, params.tokenize.context, sizes.text
    overlap = context / section.stride if section.stride else 1
    tokens = (text.tokens["validation"] + text.tokens["test"]) * overlap
    disk = 2e3
    if shape.get("predicts") == "concepts":
        changed = min(section.intervention_windows * context, text.tokens["validation"])
        tokens += text.tokens["validation"] + INTERVENTIONS * changed
        disk += 3e3 + 50 * shape["num_concepts"]
    stored = parameters_of(shape).stored
    logits = min(section.batch_size * context * shape["vocab_size"], LOGITS)
    return StageNeeds(
        flops=flops_per_token(shape, context) * tokens, disk=disk, memory=LIBRARIES + 4 * stored + 6 * logits
    )


def steer_needs(params: Params, steered: list[Shape], sizes: Sizes) -> StageNeeds:
    """The needs of `steer`.

    Args:
        steered: the shapes of the models that mix concepts.
    """
    if not steered:
        return StageNeeds()
    section, context, base = params.steer, params.tokenize.context, sizes.base
    edits, seeds = section.concepts * len(section.strengths), len(params.pretrain.seeds)
    tokens = section.windows * (context + section.prompt_tokens + section.new_tokens)
    two_edits_of_each_model = 2 * seeds * sum(flops_per_token(each, context) for each in steered)
    sweeps = 2 * seeds * len(steered) + 1
    windows = min(section.read_windows, sizes.text.windows("validation", context))
    doubled = [DOUBLED * each["num_concepts"] for each in steered]
    # Once for the places, once for the keys and values of the edits.
    read = sum(
        flops_per_token(each, context) * (2 * windows * context + some)
        for each, some in zip(steered, doubled, strict=True)
    )
    hidden = [8 * some * dimensions(each).d_model for each, some in zip(steered, doubled, strict=True)]
    return StageNeeds(
        flops=edits * tokens * (two_edits_of_each_model + flops_per_token(base, context)) + seeds * read,
        disk=10e3 + 150 * sweeps * edits,
        scratch=seeds * (sum(hidden) + 12 * windows * sum(each["num_concepts"] for each in steered)),
        memory=LIBRARIES
        + 4 * seeds * sum(parameters_of(each).stored for each in steered)
        + held(params, base)
        + max(hidden),
    )
