import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cocomix.plumbing.errors import UserError
from cocomix.tokens.tokenizer import (
    END_OF_DOCUMENT,
    LONGEST_WORD,
    load_pretrained,
    load_trained,
    sample_texts,
    train_tokenizer,
)

TEXTS = [f"The {number}th sentence says that {word}s are {word}." for number in range(50) for word in ("good", "bad")]


def test_training_gives_the_same_tokenizer_with_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = set()
    for parallelism in ("false", "true", "true"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallelism)
        trained.add(train_tokenizer(TEXTS, 400).to_str())
    assert len(trained) == 1


def test_a_trained_tokenizer_is_lossless_and_ends_documents(tmp_path: Path) -> None:
    path = tmp_path / "trained.json"
    path.write_text(train_tokenizer(TEXTS, 300).to_str())
    load_trained(path).save_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in ("The sentence .", "  two  spaces\n\ttab ", "naïve 数字 \U0001f600", "a 's n't , b"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == (END_OF_DOCUMENT, 0)
    assert len(tokenizer) <= 300


def trained_on_whole_words(texts: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def test_words_as_long_as_any_are_trained_on_whole() -> None:
    texts = [*TEXTS, "naïve 数字 \U0001f600\n\n\tcafé", "ab" * (LONGEST_WORD // 2)]
    assert train_tokenizer(texts, 400).to_str() == trained_on_whole_words(texts, 400).to_str()


@pytest.mark.parametrize("piece", ["a", " ", "1", ".", "\n", "猫", "\u0301", "ab"])
def test_a_word_without_end_is_cut_for_training_alone(piece: str) -> None:
    text = piece * (1 << 18)
    tokenizer = train_tokenizer([*TEXTS, text], 512)
    assert max(map(len, tokenizer.get_vocab())) <= LONGEST_WORD
    assert json.loads(tokenizer.to_str())["pre_tokenizer"]["type"] == "ByteLevel"
    for document in (text, f"The {text} sentence."):
        assert tokenizer.decode(tokenizer.encode(document).ids) == document


def test_the_sample_comes_from_all_over_the_corpus(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    texts = [f"{number:04d}" * 100 for number in range(100)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=5, write_statistics=False)
    assert list(sample_texts(path, 1e9)) == texts
    sampled = list(sample_texts(path, 10_000))
    assert sampled == [text for text in texts if text in set(sampled)]
    assert 8_000 <= sum(map(len, sampled)) <= 12_000
    assert sampled[0] == texts[0]
    assert sampled[-1] == texts[-1]


@pytest.mark.parametrize(("share", "groups"), [(2.0, 20), (1.0, 20), (0.99, 20), (0.9, 18), (0.5, 10), (0.001, 1)])
def test_the_sample_has_about_the_size_asked_for(tmp_path: Path, share: float, groups: int) -> None:
    path = tmp_path / "train.parquet"
    texts = [f"{number:04d}" * 100 for number in range(100)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=5, write_statistics=False)
    metadata = pq.ParquetFile(path).metadata
    total = sum(metadata.row_group(number).total_byte_size for number in range(20))
    assert len(list(sample_texts(path, share * total))) == 5 * groups


def test_a_folder_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "trained.json"
    path.write_text(train_tokenizer(TEXTS, 300).to_str())
    folder = tmp_path / "folder"
    load_trained(path).save_pretrained(folder)
    assert load_pretrained(str(folder), None).get_vocab() == load_trained(path).get_vocab()


def test_a_pretrained_tokenizer_begins_no_text_with_a_token_of_its_own(tmp_path: Path) -> None:
    trained = train_tokenizer(TEXTS, 300)
    trained.add_special_tokens(["<s>"])
    special = [("<s>", trained.token_to_id("<s>"))]
    begin = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=special)
    trained.post_processor = processors.Sequence([processors.ByteLevel(), begin])
    theirs = PreTrainedTokenizerFast(tokenizer_object=trained, bos_token="<s>", eos_token=END_OF_DOCUMENT)
    theirs.save_pretrained(tmp_path / "theirs")
    load_pretrained(str(tmp_path / "theirs"), None).save_pretrained(tmp_path / "ours")
    ours = AutoTokenizer.from_pretrained(tmp_path / "ours")
    text = "  The 1st sentence, naïve."
    ids = theirs(text)["input_ids"]
    assert ids[0] == theirs.bos_token_id
    assert ours(text)["input_ids"] == ids[1:]
    assert ours.decode(ids[1:]) == text
    assert ours.get_vocab() == theirs.get_vocab()
    assert (ours.bos_token_id, ours.eos_token_id) == (None, 0)  # lm-eval puts the latter before texts then


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer can be loaded from this folder") as caught:
        load_pretrained(str(tmp_path), None)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_eos_is_an_error(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no EOS token"):
        load_pretrained(str(tmp_path), None)


def edited(tmp_path: Path, **changes: Any) -> str:
    """A folder with a trained tokenizer, of whose tokenizer.json parts are replaced."""
    trained = tmp_path / "trained.json"
    trained.write_text(train_tokenizer(TEXTS, 300).to_str())
    load_trained(trained).save_pretrained(tmp_path / "edited")
    path = tmp_path / "edited/tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(tmp_path / "edited")


def test_a_tokenizer_need_not_know_any_given_letter(tmp_path: Path) -> None:
    for vocabulary in ({"<end>": 0, "猫": 1}, {"<end>": 0, "0": 1, "1": 2}):
        tokenizer = Tokenizer(models.WordLevel(vocabulary))
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(tmp_path)
        assert load_pretrained(str(tmp_path), None).get_vocab() == vocabulary


@pytest.mark.parametrize("kind", ["gpt2", "bert", "t5", "gpt_neox"])
def test_a_tokenizer_without_its_vocabulary_is_an_error(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UserError, match=r"its tokenizer knows no text: tokenizer\.json is missing"):
        load_pretrained(str(tmp_path), None)


ENDLESS = {"type": "Split", "pattern": {"Regex": "(a+a+)+$"}, "behavior": "Isolated", "invert": False}
FAULTS = {
    "its token 'far' has the id 4,294,967,294; allowed: below 4,194,304": {"far": 2**32 - 2},
    "no tokenizer can be loaded from this folder: ": {"before": -1},
}


@pytest.mark.parametrize("message", FAULTS)
def test_ids_that_no_model_could_have_are_named(tmp_path: Path, message: str) -> None:
    model = json.loads(train_tokenizer(TEXTS, 300).to_str())["model"]
    model["vocab"] |= FAULTS[message]
    with pytest.raises(UserError, match=re.escape(message)):
        load_pretrained(edited(tmp_path, model=model), None)


def test_a_tokenizer_that_explodes_is_tried_elsewhere_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name = edited(tmp_path, pre_tokenizer=ENDLESS)
    with pytest.raises(UserError, match=r"edited': its tokenizer cannot be loaded and tried within 60 s and 4 GB"):
        load_pretrained(name, None)
    assert capfd.readouterr().err == ""


TWICE = [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40
MAKES_ENDLESS_TEXT = {
    "normalizer": {"type": "Sequence", "normalizers": TWICE},
    "decoder": {"type": "Sequence", "decoders": TWICE},
}


@pytest.mark.slow
@pytest.mark.parametrize("part", MAKES_ENDLESS_TEXT)
def test_a_tokenizer_that_makes_endless_text_is_ended(tmp_path: Path, part: str) -> None:
    name = edited(tmp_path, **{part: MAKES_ENDLESS_TEXT[part]})
    with pytest.raises(UserError, match="cannot be loaded and tried within 60 s and 4 GB"):
        load_pretrained(name, None)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_chat_template_that_loops_without_end_is_ended(tmp_path: Path) -> None:
    name = edited(tmp_path)
    loops = "{% for each in range(99999) %}" * 4 + "{% endfor %}" * 4
    (Path(name) / "chat_template.jinja").write_text(loops)
    with pytest.raises(UserError, match="cannot be loaded and tried within 60 s and 4 GB"):
        load_pretrained(name, None)


def test_a_pipe_in_a_tokenizer_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"tokenizer\.json is a pipe, socket or device"):
        load_pretrained(str(tmp_path), None)
