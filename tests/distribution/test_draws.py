import os
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cocomix.distribution.draws import Drawn, Draws, PackedDraws, id_type, pack, write_draws
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.errors import UserError
from tests.plumbing.test_mapped import is_read_at_random


def some_ids(windows: int, context: int, draws: int, vocab_size: int) -> NDArray[np.int32]:
    """Drawn tokens, [windows, context - 1, draws], of which some are frequent."""
    generator = np.random.default_rng(0)
    shape = windows, context - 1, draws
    few = generator.integers(0, vocab_size, 3)
    rare = generator.integers(0, vocab_size, shape)
    return np.sort(np.where(generator.random(shape) < 0.5, generator.choice(few, shape), rare)).astype(np.int32)


def some_entropies(windows: int, context: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).random((windows, context - 1), np.float32)


def publish(folder: Path, ids: NDArray[np.int32], vocab_size: int, files: int) -> Artifact:
    windows, context, draws = ids.shape[0], ids.shape[1] + 1, ids.shape[2]
    with Work("distribution", folder / "out", {}, {}, root=folder / "work") as work:
        parts = zip(np.array_split(ids, files), np.array_split(some_entropies(windows, context), files), strict=True)
        for number, (drawn, entropies) in enumerate(parts):
            with work.write(f"train-{number:05d}.parquet") as pending:
                write_draws(pending.path, pack(drawn, entropies, vocab_size))
                pending.rows = len(drawn)
        work.finish({"draws": draws, "temperature": 1.0, "context": context, "vocab_size": vocab_size})
        work.publish()
    return Artifact(folder / "out")


def tokens_of(windows: int, context: int) -> Any:
    """In place of the artifact whose windows the draws are of."""
    shape = windows, context
    return SimpleNamespace(windows=lambda _: np.empty(shape), artifact=SimpleNamespace(path=Path("artifacts/tokens")))


def plain(drawn: NDArray[np.int32], entropies: NDArray[np.float32]) -> tuple[list[Any], list[Any]]:
    """What a batch says, by loops: shares by token at each position, and entropies."""
    draws = drawn.shape[2]
    shares = [[{int(i): n / draws for i, n in Counter(at.tolist()).items()} for at in window] for window in drawn]
    return [[*window, {}] for window in shares], [[*window.astype(np.float16), 0] for window in entropies]


def told(batch: Drawn) -> tuple[list[Any], list[Any]]:
    """The same of a batch; what is padded is checked."""
    assert batch.ids.shape == batch.shares.shape
    assert ((batch.ids == -1) == (batch.shares == 0)).all()
    assert (batch.ids != -1).any(1).any(0).all(), "padded to more than the most"
    shares = [
        [{int(i): float(s) for i, s in zip(*at, strict=True) if i >= 0} for at in zip(*window, strict=True)]
        for window in zip(batch.ids.numpy(), batch.shares.numpy(), strict=True)
    ]
    return shares, batch.entropies.tolist()


@given(
    windows=st.integers(1, 300),
    context=st.integers(2, 5),
    draws=st.sampled_from([1, 50, 255]),
    vocab_size=st.sampled_from([2, 256, 257, 65536, 65537]),
    files=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=20)
def test_draws_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory,
    windows: int,
    context: int,
    draws: int,
    vocab_size: int,
    files: int,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("draws")
    ids, entropies = some_ids(windows, context, draws, vocab_size), some_entropies(windows, context)
    reader = Draws(publish(folder, ids, vocab_size, min(files, windows)))
    read = [np.concatenate(each) for each in zip(*reader.read("train"), strict=True)]
    for column, written in zip(read, pack(ids, entropies, vocab_size), strict=True):
        np.testing.assert_array_equal(column, written)
    unpacked = reader.unpack(tokens_of(windows, context), "train", folder / "train")
    assert len(unpacked) == windows
    some = np.random.default_rng(seed).integers(0, windows, 7)
    for rows in (some, slice(windows // 2, windows // 2 + 3)):
        shares, given_entropies = told(unpacked.batch(rows))
        expected_shares, expected_entropies = plain(ids[rows], entropies[rows])
        assert [[pytest.approx(at) for at in window] for window in expected_shares] == shares
        assert given_entropies == expected_entropies


def test_shares_of_a_position_add_up_to_one_and_a_window_ends_without_any(tmp_path: Path) -> None:
    reader = Draws(publish(tmp_path, some_ids(9, 4, 50, 300), 300, 2))
    batch = reader.unpack(tokens_of(9, 4), "train", tmp_path / "train").batch(slice(0, 9))
    assert batch.shares.sum(-1).numpy() == pytest.approx(np.array([[1, 1, 1, 0]] * 9))
    assert (batch.entropies[:, -1] == 0).all()


@pytest.mark.parametrize(("vocab_size", "kind"), [(256, "u1"), (257, "u2"), (65536, "u2"), (65537, "u4")])
def test_ids_take_the_smallest_type_that_holds_the_vocabulary(vocab_size: int, kind: str) -> None:
    assert id_type(vocab_size) == np.dtype(kind)


def test_an_unpacked_folder_is_used_again(tmp_path: Path) -> None:
    reader = Draws(publish(tmp_path, some_ids(9, 4, 50, 300), 300, 2))
    first = reader.unpack(tokens_of(9, 4), "train", tmp_path / "train").batch(slice(0, 9))
    reader._artifact.path.joinpath("train-00000.parquet").unlink()
    again = reader.unpack(tokens_of(9, 4), "train", tmp_path / "train").batch(slice(0, 9))
    for one, other in zip(first, again, strict=True):
        assert one.equal(other)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux shows what it has noted")
def test_unpacked_draws_can_be_read_at_random(tmp_path: Path) -> None:
    draws = Draws(publish(tmp_path, some_ids(9, 4, 50, 300), 300, 2)).unpack(tokens_of(9, 4), "train", tmp_path / "all")
    draws.read_at_random()
    assert all(is_read_at_random(each) for each in (tmp_path / "all").iterdir())


@pytest.mark.parametrize(("windows", "context"), [(10, 4), (8, 4), (9, 5)])
def test_draws_of_fewer_or_other_windows_than_the_tokens_are_refused(
    tmp_path: Path, windows: int, context: int
) -> None:
    reader = Draws(publish(tmp_path, some_ids(9, 4, 50, 300), 300, 2))
    with pytest.raises(UserError, match=r"out: has draws of 9 windows of 4 tokens of the train .* run the stage"):
        reader.unpack(tokens_of(windows, context), "train", tmp_path / "train")


def test_an_artifact_without_draws_is_refused_with_what_to_set(tmp_path: Path) -> None:
    with Work("distribution", tmp_path / "out", {}, {}, root=tmp_path / "work") as work:
        work.finish({"draws": None, "temperature": 1.0, "context": 4, "vocab_size": 300})
        work.publish()
    with pytest.raises(UserError, match=r"out: holds no draws; set distribution\.draws, such as 50, and run its stage"):
        Draws(Artifact(tmp_path / "out"))


def test_an_unpacking_that_died_leaves_nothing_that_is_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = some_ids(9, 4, 50, 300)
    reader = Draws(publish(tmp_path, ids, 300, 2))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: pytest.fail("died"))
        with pytest.raises(pytest.fail.Exception):
            reader.unpack(tokens_of(9, 4), "train", tmp_path / "train")
    shares, _ = told(reader.unpack(tokens_of(9, 4), "train", tmp_path / "train").batch(slice(0, 9)))
    assert len(shares) == 9


def test_draws_are_counted_position_by_position() -> None:
    packed = pack(np.array([[[3, 3, 5], [7, 7, 7]]]), np.array([[0.5, 0.25]]), 8)
    expected = PackedDraws(
        np.array([[2, 1, 0]], np.uint8),
        np.array([3, 5, 7], np.uint8),
        np.array([2, 1, 3], np.uint8),
        np.array([[0.5, 0.25, 0]], np.float16),
    )
    for one, other in zip(packed, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
