"""A text is encoded alike wherever it comes from."""

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from cocomix.tokens import pack
from cocomix.tokens.encoding import ids_and_spans_of, ids_of, ids_of_text, spans_of
from cocomix.tokens.tokenizer import END_OF_DOCUMENT, load_trained, train_tokenizer

TEXTS = ["It says that the end is near.", f"{END_OF_DOCUMENT}", f"a{END_OF_DOCUMENT} {END_OF_DOCUMENT}\n", " a\n\n"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    trained = train_tokenizer(TEXTS, 300)
    trained.enable_truncation(2)
    trained.enable_padding(length=40)
    trained.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize("text", TEXTS)
def test_a_persons_text_has_the_ids_of_a_document(path: Path, text: str) -> None:
    tokenizer: PreTrainedTokenizerFast = load_trained(path)
    ids = ids_of_text(tokenizer, text)
    assert ids == pack.opened(path).encode(text).ids
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer(END_OF_DOCUMENT).input_ids == [tokenizer.eos_token_id]
    assert ids_of_text(tokenizer, text) == ids


@pytest.mark.parametrize("text", [*TEXTS, "", "na\u00efve \U0001f600"])
def test_a_text_that_is_encoded_once_has_the_ids_and_the_spans_of_both_ways(path: Path, text: str) -> None:
    tokenizer = pack.opened(path)
    ids, spans = ids_and_spans_of(tokenizer, text, "the text")
    assert [ids] == ids_of(tokenizer, [text], "the text")
    assert spans.shape == (len(ids), 2)
    assert np.array_equal(spans, spans_of(tokenizer, [text], "the text")[0])
