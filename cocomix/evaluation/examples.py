"""Example positions of real text with their labels and the concepts that a model predicts there."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from cocomix.base.hooks import residual_at
from cocomix.evaluation.language_model import windows_at_once
from cocomix.modeling import CoCoMixLanguageModel
from cocomix.plumbing.device import device, send
from cocomix.tokens.spaced import spaced
from cocomix.tokens.visible import is_visible
from cocomix.tokens.window_data import NO_LABEL, WindowData

EXAMPLES = 6
BEFORE, AFTER = 24, 8
"""Maximum tokens shown before and after the position, within its window."""


class Example(NamedTuple):
    """A position of the validation split; tokens and concepts are ids."""

    before: list[int]
    token: int
    """The token at the position."""
    following: list[int]
    labelled: list[int]
    """Labels, best first."""
    predicted: list[int]
    """The most probable concepts; as many as the maximum number of labels per position."""
    probabilities: list[float]


@torch.no_grad()
def choose_examples(model: CoCoMixLanguageModel, data: WindowData, texts: Sequence[str]) -> list[Example]:
    """Choose evenly spaced windows, and in each the last visible token of its first three quarters.

    Args:
        texts: the text of each token, by id. White space is not visible; a window without visible tokens is read at
            three quarters.
    """
    assert data.labels is not None
    model.eval().to(device())
    (count, context), m = data.windows.shape, data.labels.per_position
    rows = spaced(count, EXAMPLES)
    can_be_seen = np.array([is_visible(each) for each in texts])[data.windows[rows][:, : 3 * context // 4 + 1]]
    positions = torch.from_numpy(3 * context // 4 - can_be_seen[:, ::-1].argmax(1))
    examples = []
    at_once = windows_at_once(EXAMPLES, context, model.config)
    for start in range(0, len(rows), at_once):
        batch = data.batch(rows[start : start + at_once])
        ids, labels = batch["windows"], batch["labels"]
        mixture = model.base_model.mixer(residual_at(model, send(ids), model.config.concept_layer))
        at = positions[start : start + at_once]
        read = torch.arange(len(at))
        best = mixture.concept_logits[read, at].float().softmax(-1).topk(m)
        examples += [
            Example(
                before=tokens[max(0, position - BEFORE) : position],
                token=tokens[position],
                following=tokens[position + 1 : position + 1 + AFTER],
                labelled=[each for each in wanted if each != NO_LABEL],
                predicted=concepts,
                probabilities=probabilities,
            )
            for position, tokens, wanted, concepts, probabilities in zip(
                at.tolist(),
                ids.tolist(),
                labels[read, at].tolist(),
                best.indices.tolist(),
                best.values.tolist(),
                strict=True,
            )
        ]
    return examples
