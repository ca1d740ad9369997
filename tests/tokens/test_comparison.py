import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cocomix.plumbing.artifact import Work
from cocomix.plumbing.errors import UserError
from cocomix.tokens.comparison import check_tokenizer, check_vocabulary, difference
from cocomix.tokens.tokenizer import load_trained, train_tokenizer
from cocomix.tokens.windows import Tokens
from tests.conftest import CONTEXT

TEXTS = [f"The {number}th sentence says that {word}s are {word}." for number in range(50) for word in ("good", "bad")]


@pytest.fixture
def tokens(tokens_folder: Path) -> Tokens:
    """Windows that a trained byte-level BPE made, as far as anybody can tell."""
    trained = tokens_folder.parent / "trained.json"
    trained.write_text(train_tokenizer(TEXTS, 300).to_str())
    with Work("tokenize", tokens_folder, {}, {"source": "train"}) as work:
        for name in Tokens(tokens_folder).artifact.names():
            if not name.startswith("tokenizer/"):
                with work.write(name) as pending:
                    shutil.copyfile(tokens_folder / name, pending.path)
                    pending.rows = Tokens(tokens_folder).artifact.manifest.files[name].rows
        with work.write_folder() as folder:
            load_trained(trained).save_pretrained(folder / "tokenizer")
        work.finish(Tokens(tokens_folder).artifact.about | {"vocab_size": 300})
        work.publish()
    assert Tokens(tokens_folder).context == CONTEXT
    return Tokens(tokens_folder)


def test_a_tokenizer_is_the_same_as_itself_in_any_form(tokens: Tokens) -> None:
    theirs = tokens.tokenizer()
    assert difference(tokens, theirs) is None
    theirs.save_pretrained("copy")
    for name in ("vocab.json", "merges.txt"):
        assert not Path("copy", name).exists()
    Path("files").mkdir()
    theirs.backend_tokenizer.model.save("files")
    Path("files/tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"})
    )
    assert difference(tokens, AutoTokenizer.from_pretrained("copy")) is None
    assert difference(tokens, AutoTokenizer.from_pretrained("files")) is None


def test_a_tokenizer_may_know_more_special_tokens(tokens: Tokens) -> None:
    theirs = tokens.tokenizer()
    theirs.add_special_tokens({"pad_token": "<pad>", "bos_token": "<s>"})
    assert difference(tokens, theirs) is None


def lower_case(theirs: PreTrainedTokenizerFast) -> None:
    theirs.backend_tokenizer.normalizer = normalizers.Lowercase()


def composed(theirs: PreTrainedTokenizerFast) -> None:
    theirs.backend_tokenizer.normalizer = normalizers.NFC()


def another_eos(theirs: PreTrainedTokenizerFast) -> None:
    theirs.add_special_tokens({"eos_token": "</s>"})


def one_more_word(theirs: PreTrainedTokenizerFast) -> None:
    theirs.add_tokens([AddedToken("sentence", special=False)])


def exchanged(theirs: PreTrainedTokenizerFast) -> None:
    model = json.loads(theirs.backend_tokenizer.to_str())["model"]
    first, second = list(model["vocab"])[-2:]
    model["vocab"][first], model["vocab"][second] = model["vocab"][second], model["vocab"][first]
    theirs.backend_tokenizer.model = models.BPE(model["vocab"], [tuple(each) for each in model["merges"]])


def fewer_merges(theirs: PreTrainedTokenizerFast) -> None:
    model = json.loads(theirs.backend_tokenizer.to_str())["model"]
    theirs.backend_tokenizer.model = models.BPE(model["vocab"], [tuple(each) for each in model["merges"][:-5]])


CHANGES: dict[Any, str] = {
    lower_case: "The quick brown fox ",
    composed: "e\u0301",
    another_eos: "documents end with '<|endoftext|>' here and '</s>' there",
    one_more_word: "'a sentencesentence b'",
    exchanged: "the token ",
    fewer_merges: " here and [",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_makes_other_ids_of_a_text_is_found(tokens: Tokens, change: Any) -> None:
    theirs = tokens.tokenizer()
    change(theirs)
    found = difference(tokens, theirs)
    assert found is not None
    assert CHANGES[change] in found


def test_a_base_model_of_another_tokenizer_is_refused_and_what_to_set_is_said(tokens: Tokens) -> None:
    theirs = tokens.tokenizer()
    theirs.save_pretrained("same")
    lower_case(theirs)
    theirs.save_pretrained("other")
    check_tokenizer("base.pretrained", "same", None, tokens)
    with pytest.raises(
        UserError, match=r"'other' has another tokenizer than the tokens: .*pretrained: other, .* to base\.revision"
    ):
        check_tokenizer("base.pretrained", "other", None, tokens)


def test_a_model_with_fewer_entries_than_the_tokens_is_refused_by_whose_tokens_they_are(tokens: Tokens) -> None:
    check_vocabulary("base.pretrained", "small", 300, tokens)
    needs = r"^base\.pretrained: 'small' has a vocabulary of 299; the tokens need 300: "
    with pytest.raises(UserError, match=rf"{needs}use its tokenizer \(tokenize\.pretrained\)$"):
        check_vocabulary("base.pretrained", "small", 299, tokens)
    with pytest.raises(UserError, match=rf"{needs}the tokenizer beside it is not its own$"):
        check_vocabulary("base.pretrained", "small", 299, tokens, beside=True)


def test_a_base_model_without_a_tokenizer_is_taken_at_the_word_of_the_parameters_alone(
    tokens: Tokens, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bare").mkdir()
    with pytest.raises(UserError, match=r"base\.pretrained: 'bare': no tokenizer .* set tokenize\.source: pretrained"):
        check_tokenizer("base.pretrained", "bare", None, tokens)
    tokens.artifact.manifest.params.update({"source": "pretrained", "pretrained": "somewhere"})
    check_tokenizer("base.pretrained", "bare", None, tokens)
    assert "that of tokenize.pretrained (somewhere) is taken to be its own" in capsys.readouterr().err
