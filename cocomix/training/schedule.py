"""The learning rate, and the factors of loss weights, as functions of the step (from 0)."""

import math

from cocomix.params import ScheduleParams, TrainingParams


def learning_rate(params: TrainingParams, step: int, peak: float) -> float:
    """Learning rate of a step: linear warm-up to the peak, then decay to `final_share` of it.

    cosine: along half a cosine, from the end of the warm-up; warmup_stable_decay: on a line, in the last `decay_share`
    of the steps. Either is at `final_share` in the last step, except with a `decay_share` of 0, which never decays.
    """
    warmup = round(params.warmup_share * params.steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if params.schedule == "cosine":
        done = (step - warmup) / max(1, params.steps - 1 - warmup)
        left = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    else:
        decay = round(params.decay_share * params.steps)
        left = min(1.0, (params.steps - 1 - step) / decay) if decay else 1.0
    return peak * (params.final_share + (1 - params.final_share) * left)


def steps_with(schedule: ScheduleParams, params: TrainingParams) -> int:
    """Number of steps, from the first one on, in which the factor of a loss weight is not 0."""
    return math.ceil(schedule.until * params.steps)


def factor(schedule: ScheduleParams, params: TrainingParams, step: int) -> float:
    """Factor of a loss weight in a step."""
    end = schedule.until * params.steps
    if step >= end:
        return 0.0
    match schedule.shape:
        case "constant":
            return 1.0
        case "linear":
            return 1 - step / end
        case "learning_rate":
            return learning_rate(params, step, peak=1.0)
