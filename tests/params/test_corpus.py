from pathlib import Path

import pytest

from tests.params.changed import refusal


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "  near_duplicates: null",
            "  near_duplicates: 0.8",
            "corpus: near_duplicates needs source: files or hub; installed-docs drops them by itself",
        ),
        (
            "  near_duplicates: null",
            "  near_duplicates: 80",
            "corpus.near_duplicates: 80: input should be less than or equal to 1",
        ),
    ],
)
def test_a_wrong_value_of_the_corpus_is_one_line_with_the_key_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert refusal(tmp_path, old, new).startswith(message)
