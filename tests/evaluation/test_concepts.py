import math
from collections import Counter

import numpy as np
import pytest
import torch

from cocomix.evaluation.concepts import score_concepts
from cocomix.tokens.window_data import WindowData
from tests.evaluation.conftest import CONCEPTS, K_ATTR, cocomix


@pytest.mark.parametrize(
    "changes", [{}, {"mixing": "none"}, {"mixing": "add"}, {"concept_head": "equations"}, {"concept_k": 2}]
)
@pytest.mark.parametrize("batch_size", [3, 64])
def test_scores_are_those_of_one_position_at_a_time(
    data: WindowData, changes: dict[str, object], batch_size: int
) -> None:
    model = cocomix(**changes)
    k = model.config.concept_k
    predicted, labelled, right = Counter[int](), Counter[int](), Counter[int]()
    strengths: dict[int, list[float]] = {}
    losses, found_labels = [], 0
    assert data.labels is not None
    for window, wanted in zip(data.windows, data.labels.concepts, strict=True):
        with torch.no_grad():
            z = model.transformer(torch.from_numpy(window.astype(np.int64))[None]).concept_logits[0]
        for logits, padded in zip(z, wanted.tolist(), strict=True):
            labels = [each for each in padded if each != 65535]
            best = logits.argsort(descending=True).tolist()
            labelled.update(labels)
            predicted.update(best[:k])
            right.update(set(labels) & set(best[:k]))
            found_labels += len(set(labels) & set(best[:K_ATTR]))
            for concept in best[:k]:
                strengths.setdefault(concept, []).append(float(logits[concept]))
            if labels:
                losses.append(float(np.mean([-float(logits.log_softmax(-1)[each]) for each in labels])))
    scores = score_concepts(model, data, batch_size, "concepts")
    assert scores.whole.cross_entropy == pytest.approx(np.mean(losses), rel=1e-5)
    assert scores.whole.recall_at_k == pytest.approx(right.total() / labelled.total())
    assert scores.whole.recall_at_labels == pytest.approx(found_labels / labelled.total())
    assert scores.whole.never_predicted == pytest.approx(1 - len(predicted) / CONCEPTS)
    for column, counts in (("predicted", predicted), ("labelled", labelled), ("right", right)):
        assert getattr(scores.each, column) == [counts[each] for each in range(CONCEPTS)]
    for concept, mean in enumerate(scores.each.mean_strength):
        assert mean == (pytest.approx(np.mean(strengths[concept]), rel=1e-5) if concept in strengths else None)


def test_a_concept_that_is_multiplied_with_nearly_nothing_is_ignored(data: WindowData) -> None:
    model = cocomix()
    with torch.no_grad():
        model.transformer.mixer.compress.weight[:3] *= 1e-3
    scores = score_concepts(model, data, 8, "concepts")
    assert scores.whole.ignored == 3 / CONCEPTS
    column = model.transformer.mixer.compress.weight[5].detach()
    assert scores.each.compress_norm[5] == pytest.approx(math.sqrt(float((column**2).sum())))


def test_where_nothing_is_mixed_nothing_is_ignored(data: WindowData) -> None:
    scores = score_concepts(cocomix(mixing="none"), data, 8, "concepts")
    assert scores.whole.ignored is None
    assert scores.each.compress_norm == [None] * CONCEPTS
