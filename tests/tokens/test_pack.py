import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cocomix.corpus.splits import SPLITS
from cocomix.plumbing.errors import UserError
from cocomix.tokens import pack
from cocomix.tokens.pack import count_tokens, document_ends, encode, write_windows
from cocomix.tokens.tokenizer import END_OF_DOCUMENT, train_tokenizer

EOS = 0
TEXTS = [f"The {number}th sentence says that {END_OF_DOCUMENT} is a text." for number in range(50)] + [""]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_text(train_tokenizer(TEXTS, 300).to_str())
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=7)
    return path


def ids_of(shards: list[Path]) -> list[int]:
    return [int(each) for shard in shards for each in np.load(shard)]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_documents_follow_each_other_and_end_with_eos(
    tmp_path: Path, text: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    monkeypatch.setenv("COCOMIX_WORKERS", workers)
    monkeypatch.setattr(pack, "_BATCH_CHARACTERS", 100)
    shards = encode(dict.fromkeys(SPLITS, text), tokenizer, EOS, 300, tmp_path, "tokenize")
    plain = pack.opened(tokenizer)
    expected = [each for text in TEXTS for each in [*plain.encode(text).ids, EOS]]
    for split in SPLITS:
        assert ids_of(shards[split]) == expected
        assert count_tokens(shards[split]) == len(expected)
    assert expected.count(EOS) == len(TEXTS), "a text that shows the EOS token must not end there"
    assert plain.decode(expected[: expected.index(EOS)]) == TEXTS[0]


def test_shards_that_are_there_are_kept(
    tmp_path: Path, text: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COCOMIX_WORKERS", "1")
    shards = encode({"train": text}, tokenizer, EOS, 300, tmp_path, "tokenize")["train"]
    whole = ids_of(shards)
    times = [shard.stat().st_mtime_ns for shard in shards]
    shards[3].unlink()
    again = encode({"train": text}, tokenizer, EOS, 300, tmp_path, "tokenize")["train"]
    assert ids_of(again) == whole
    assert [shard.stat().st_mtime_ns == time for shard, time in zip(again, times, strict=True)].count(False) == 1


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_ids_are_as_small_as_the_vocabulary_allows(
    tmp_path: Path,
    text: Path,
    tokenizer: Path,
    monkeypatch: pytest.MonkeyPatch,
    vocab_size: int,
    dtype: type[np.unsignedinteger],
) -> None:
    monkeypatch.setenv("COCOMIX_WORKERS", "1")
    shards = encode({"train": text}, tokenizer, EOS, vocab_size, tmp_path, "tokenize")["train"]
    write_windows(shards, 16, tmp_path / "train.npy")
    assert np.load(tmp_path / "train.npy").dtype == dtype


@given(
    parts=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=6),
    context=st.integers(2, 9),
)
def test_windows_and_their_documents_are_those_of_the_joined_ids(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]], context: int
) -> None:
    """`parts`: how many ids each document of each shard has. All are the EOS, so that none tells where one ends."""
    folder = tmp_path_factory.mktemp("shards")
    shards = [folder / f"{number}.npy" for number in range(len(parts))]
    for path, part in zip(shards, parts, strict=True):
        np.save(path, np.full(sum(part), EOS, np.uint16))
        np.save(path.with_suffix(".lengths.npy"), np.array(part))
    lengths = [each for part in parts for each in part]
    ids = np.concatenate([np.load(shard) for shard in shards])
    windows = ids.size // context
    write_windows(shards, context, folder / "windows.npy")
    np.testing.assert_array_equal(
        np.load(folder / "windows.npy", mmap_mode="r" if windows else None),
        ids[: windows * context].reshape(windows, context),
    )
    ends = document_ends(shards)
    assert ends.dtype == np.int64
    assert np.diff(ends, prepend=0).tolist() == lengths


def character_level(folder: Path) -> Path:
    """The EOS is the end of a line."""
    tokenizer = Tokenizer(models.WordLevel({"\n": 0, "a": 1, " ": 2, "?": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return saved(tokenizer, "\n", folder)


def unigram(folder: Path) -> Path:
    """The EOS is a piece as good as any other."""
    pieces = [("<unk>", 0.0), ("</s>", -1.0), *((each, -9.0) for each in ("a", "<", "/", "s", ">", "\n", " "))]
    return saved(Tokenizer(models.Unigram(pieces, unk_id=0)), "</s>", folder)


def byte_level(folder: Path) -> Path:
    return saved(train_tokenizer(TEXTS, 300), END_OF_DOCUMENT, folder)


def saved(tokenizer: Tokenizer, eos: str, folder: Path) -> Path:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos).save_pretrained(folder)
    return folder / "tokenizer.json"


MADE = [character_level, unigram, byte_level]
PIECES = ["\n", "a", " ", "</s>", "<s>", END_OF_DOCUMENT, "猫"]


@pytest.mark.parametrize("make", MADE)
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(st.lists(st.sampled_from(PIECES), max_size=9).map("".join), min_size=1, max_size=9))
def test_documents_end_where_they_end_whatever_ids_their_text_gives(
    tmp_path_factory: pytest.TempPathFactory, make: Callable[[Path], Path], texts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("documents")
    path = make(folder)
    plain = pack.opened(path)
    eos = plain.token_to_id(json.loads((folder / "tokenizer_config.json").read_text())["eos_token"])
    pq.write_table(pa.table({"text": texts}), folder / "text.parquet", row_group_size=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COCOMIX_WORKERS", "1")
        shards = encode({"train": folder / "text.parquet"}, path, eos, 300, folder, "tokenize")["train"]
    ends = document_ends(shards)
    assert np.diff(ends, prepend=0).tolist() == [len(plain.encode(text).ids) + 1 for text in texts]
    assert (np.array(ids_of(shards))[ends - 1] == eos).all()


@pytest.mark.parametrize(("make", "text", "eos"), [(character_level, "a\na", 0), (unigram, "a</s>a", 1)])
def test_the_eos_of_some_tokenizers_is_an_id_of_their_text(
    tmp_path: Path, make: Callable[[Path], Path], text: str, eos: int
) -> None:
    assert eos in pack.opened(make(tmp_path)).encode(text).ids


def test_a_text_that_the_tokenizer_fails_on_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train_tokenizer(TEXTS, 300)
    endless = pre_tokenizers.Split(Regex(r"(a+a+)+$"), "isolated")
    trained.pre_tokenizer = pre_tokenizers.Sequence([endless, trained.pre_tokenizer])
    trained.save(str(tmp_path / "tokenizer.json"))
    pq.write_table(pa.table({"text": ["a" * 60 + "!"]}), tmp_path / "text.parquet")
    monkeypatch.setenv("COCOMIX_WORKERS", "1")
    with pytest.raises(UserError, match=r"cannot encode a document of row group 0 of .*text\.parquet: Onig") as caught:
        encode({"train": tmp_path / "text.parquet"}, tmp_path / "tokenizer.json", EOS, 300, tmp_path, "tokenize")
    assert "\n" not in str(caught.value)
