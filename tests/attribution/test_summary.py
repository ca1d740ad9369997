import numpy as np
import pytest

from cocomix.attribution.labels import Labels
from cocomix.attribution.summary import summarise


def test_the_summary_counts_labels() -> None:
    none = 65535
    concepts = np.array([[[1, 2], [1, none], [none, none]], [[3, 1], [1, 2], [none, none]]], np.uint16)
    parts = [Labels(each[None], np.zeros((1, 3, 2), np.float16)) for each in concepts]
    summary = summarise(parts, number=5)
    assert summary.positions == 4
    assert summary.full_share == 3 / 4
    assert summary.unlabelled_share == 0
    assert summary.distinct_concepts == 3
    assert (summary.most_frequent, summary.most_frequent_share) == (1, 4 / 7)
    shares = np.array([4, 2, 1]) / 7
    assert summary.label_entropy == pytest.approx(-(shares * np.log2(shares)).sum())


def test_positions_without_a_label_are_a_share_of_those_with_a_next_token() -> None:
    none = 65535
    concepts = np.array([[[1, 2], [none, none], [none, none]]], np.uint16)
    assert summarise([Labels(concepts, np.zeros((1, 3, 2), np.float16))], number=5).unlabelled_share == 1 / 2
