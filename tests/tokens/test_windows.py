from pathlib import Path

import numpy as np

from cocomix.tokens.windows import Tokens


def test_every_token_knows_its_document(tokens_folder: Path) -> None:
    tokens = Tokens(tokens_folder)
    ids = np.asarray(tokens.windows("train"))
    ends = tokens.ends("train")
    expected = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))[: ids.size].reshape(ids.shape)
    assert (tokens.documents("train", slice(None)) == expected).all()
    assert (tokens.documents("train", np.array([5, 2])) == expected[[5, 2]]).all()
    assert (tokens.documents("train", slice(3, 9, 2)) == expected[3:9:2]).all()
