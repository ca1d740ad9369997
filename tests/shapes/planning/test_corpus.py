import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocomix.plumbing.errors import UserError
from cocomix.shapes.planning.corpus import estimated_corpus
from tests.shapes.planning.estimates import params


@given(st.floats(0.1, 1e5))
def test_a_corpus_is_no_larger_than_its_limit_and_its_source(megabytes: float) -> None:
    corpus = {"source": "files", "files": {"paths": ["*.txt"]}, "megabytes": megabytes}
    text = estimated_corpus(params(corpus=corpus), 1e9)
    assert sum(text.bytes.values()) == pytest.approx(min(megabytes * 1e6, 1e9))
    assert text.tokens["train"] > text.tokens["validation"] > 0


def test_a_dataset_of_unknown_size_must_be_limited() -> None:
    corpus = {"source": "hub", "hub": {"dataset": "a", "revision": "b"}, "megabytes": None}
    with pytest.raises(UserError, match=r"corpus\.megabytes: null: .* set a limit"):
        estimated_corpus(params(corpus=corpus), None)
