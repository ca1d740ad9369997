"""Parameters that do not fit the tokens are refused as soon as there are tokens."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from cocomix.check.tokens import check_dropped_tokens, check_init_tokenizer
from cocomix.plumbing.errors import UserError
from cocomix.tokens.tokenizer import END_OF_DOCUMENT, train_tokenizer
from cocomix.tokens.windows import Tokens
from tests.check.test_preflight import init, params


def test_a_model_to_go_on_from_needs_the_tokenizer_of_the_tokens(tokens_folder: Path) -> None:
    tokenizer = train_tokenizer(["text"], 300)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_DOCUMENT).save_pretrained("start")
    with pytest.raises(UserError, match=r"pretrain\.init\.path: 'start' has another tokenizer than the tokens: "):
        check_init_tokenizer(params(init("start")), {"vocab_size": 300}, Tokens(tokens_folder))
    with pytest.raises(UserError, match=r"pretrain\.init\.path: 'start' has a vocabulary of 63; the tokens need 64"):
        check_init_tokenizer(params(init("start")), {"vocab_size": 63}, Tokens(tokens_folder))
    check_init_tokenizer(params({}), None, Tokens(tokens_folder))


@pytest.mark.parametrize("token", ["c", 2, -1])
def test_a_token_to_drop_is_one_of_the_vocabulary(token: str | int) -> None:
    check_dropped_tokens(params({"activations": {"drop_tokens": ["a", 1]}}), {"a": 0, "b": 1}, "shared")
    asked = params({"activations": {"drop_tokens": [token]}})
    with pytest.raises(UserError, match=f"activations.drop_tokens: {token!r}: no token of the vocabulary of 2"):
        check_dropped_tokens(asked, {"a": 0, "b": 1}, "shared")
    check_dropped_tokens(asked, {"a": 0, "b": 1}, "own")  # the base model has the other one
