from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from cocomix.evaluation.text import split_text, token_bytes
from cocomix.tokens.tokenizer import train_tokenizer
from cocomix.tokens.windows import Tokens

TRAINED = PreTrainedTokenizerFast(
    tokenizer_object=train_tokenizer(["the cat sat on the mat, naïve 猫 " * 20], 300), eos_token="<|endoftext|>"
)


@given(st.text())
def test_the_bytes_of_tokens_are_those_of_the_text(text: str) -> None:
    ids = TRAINED.backend_tokenizer.encode(text.replace("<|endoftext|>", "")).ids
    assert token_bytes(TRAINED, 0.5).token_bytes[ids].sum() == len(text.replace("<|endoftext|>", "").encode())


def test_the_end_of_a_document_has_no_bytes() -> None:
    assert token_bytes(TRAINED, 0.5).end_bytes == 0


def test_a_tokenizer_that_is_not_of_bytes_counts_the_average(tokens_folder: Path) -> None:
    text = split_text(Tokens(tokens_folder), "test")
    assert (text.token_bytes == np.full(64, 4.0)).all()
    assert text.end_bytes == 4.0


@pytest.mark.parametrize("token", ["<extra>", "naïve"])
def test_an_added_token_stands_for_itself(token: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=train_tokenizer(["a b"], 300), eos_token="<|endoftext|>")
    tokenizer.add_tokens([token])
    assert token_bytes(tokenizer, 0.5).token_bytes[tokenizer.convert_tokens_to_ids(token)] == len(token.encode())
