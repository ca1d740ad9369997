from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from cocomix.tokens.windows import Tokens


def test_every_token_knows_its_document(tokens_folder: Path) -> None:
    tokens = Tokens(tokens_folder)
    ids = np.asarray(tokens.windows("train"))
    ends = tokens.ends("train")
    expected = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))[: ids.size].reshape(ids.shape)
    assert (tokens.documents("train", slice(None)) == expected).all()
    assert (tokens.documents("train", np.array([5, 2])) == expected[[5, 2]]).all()
    assert (tokens.documents("train", slice(3, 9, 2)) == expected[3:9:2]).all()


@pytest.mark.parametrize(
    ("names", "decoder", "texts"),
    [
        (["[END]", "the", "##ing", "#"], decoders.WordPiece(), ["[END]", " the", "ing", " #"]),
        (["[END]", "\u2581the", "ing"], decoders.Metaspace(), ["[END]", " the", "ing"]),
    ],
    ids=["WordPiece", "SentencePiece"],
)
def test_the_text_of_a_token_has_the_space_before_a_word(
    tokens_folder: Path, names: list[str], decoder: decoders.Decoder, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[END]")
    backend = Tokenizer(model)
    backend.decoder = decoder
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[END]")
    monkeypatch.setattr(Tokens, "tokenizer", lambda _: tokenizer)
    tokens = Tokens(tokens_folder)
    monkeypatch.setattr(tokens, "vocab_size", len(names))
    assert tokens.texts() == texts
