"""Columns of a batch: labels that are weighted, of later positions, or of another window."""

import numpy as np
import torch

from cocomix.tokens.window_data import Drawn, WindowData, WindowLabels

NONE = np.iinfo(np.uint16).max
CONCEPTS = np.array([[[1, 2], [3, NONE], [NONE, NONE]], [[4, 5], [6, 7], [8, NONE]]], dtype=np.uint16)
SCORES = np.array([[[3, -1], [2, 0], [0, 0]], [[0, 0], [1, 3], [5, 0]]], dtype=np.float16)


def test_a_batch_has_the_columns_that_there_are() -> None:
    windows = np.arange(6, dtype=np.uint16).reshape(2, 3)
    batch = WindowData(windows).batch(np.array([1]))
    assert batch.keys() == {"windows"}
    assert batch["windows"].tolist() == [[3, 4, 5]]
    assert batch["windows"].dtype == torch.int64

    class Draws:
        def batch(self, rows: np.ndarray | slice) -> Drawn:
            assert isinstance(rows, np.ndarray)
            return Drawn(torch.as_tensor(rows), torch.zeros(1), torch.ones(1))

        def read_at_random(self) -> None: ...

    whole = WindowData(windows, WindowLabels(CONCEPTS, SCORES), Draws()).batch(np.array([1]))
    assert whole.keys() == {"windows", "labels", "label_weights", "drawn"}
    assert whole["drawn"].ids.tolist() == [1]


def test_labels_that_are_missing_are_negative() -> None:
    labels, weights = WindowLabels(CONCEPTS).batch(np.array([0]))
    assert labels.tolist() == [[[1, 2], [3, -1], [-1, -1]]]
    assert weights is None


def test_labels_weigh_by_the_magnitudes_of_their_scores_and_equally_where_all_are_zero() -> None:
    labels, weights = WindowLabels(CONCEPTS, SCORES).batch(slice(0, 2))
    assert weights is not None
    expected = [[[0.75, 0.25], [1, 0], [0, 0]], [[0.5, 0.5], [0.25, 0.75], [1, 0]]]
    torch.testing.assert_close(weights, torch.tensor(expected))
    assert labels.shape == weights.shape


def test_labels_of_later_positions_stand_beside_a_positions_own_and_end_with_the_window() -> None:
    both = WindowLabels(CONCEPTS, SCORES, offsets=(0, 1))
    labels, weights = both.batch(np.array([1]))
    assert labels.tolist() == [[[4, 5, 6, 7], [6, 7, 8, -1], [8, -1, -1, -1]]]
    assert weights is not None
    torch.testing.assert_close(weights[0, 1], torch.tensor([1 / 9, 3 / 9, 5 / 9, 0]))
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 3))
    assert both.per_position == 4
    later, _ = WindowLabels(CONCEPTS, offsets=(2,)).batch(np.array([1]))
    assert later.tolist() == [[[8, -1], [-1, -1], [-1, -1]]]


def test_shuffled_labels_are_those_of_another_window() -> None:
    labels, _ = WindowLabels(CONCEPTS, order=np.array([1, 0])).batch(np.array([0]))
    assert labels.tolist() == WindowLabels(CONCEPTS).batch(np.array([1]))[0].tolist()
