from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cocomix.activations.store import MIXED_GROUPS, Activations, ActivationStore, write_activations
from cocomix.plumbing.artifact import Artifact, Work

ROW_GROUP, D_MODEL = 4, 3
FILES = [4 * ROW_GROUP * MIXED_GROUPS, 2 * ROW_GROUP + 1, 3]
"""Rows: more than one mix, an incomplete row group, less than a row group."""
ROWS = sum(FILES)


def activations(first: int, rows: int) -> Activations:
    """Rows that begin with their own number."""
    number = np.arange(first, first + rows, dtype=np.uint32)
    x = np.stack([number, number / 2, -number.astype(np.int64)], axis=1).astype(np.float16)
    return Activations(x, number, number, number)


@pytest.fixture(scope="module", params=[None, 2], ids=["all shards mixed", "two"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    folder = tmp_path_factory.mktemp("store")
    with Work("activations", folder / "out", {}, {}, root=folder / "work") as work:
        for number, rows in enumerate(FILES):
            with work.write(f"resid_post_1/train-{number:05d}.parquet") as pending:
                write_activations(pending.path, activations(sum(FILES[:number]), rows), ROW_GROUP)
                pending.rows = rows
        work.finish(
            {
                "d_model": D_MODEL,
                "sites": ["resid_post_1"],
                "dtype": "fp16",
                "row_group_tokens": ROW_GROUP,
                "mixed_shards": request.param,
            }
        )
        work.publish()
    return ActivationStore(Artifact(folder / "out"))


def numbers(store: ActivationStore, batch_size: int, **order: int) -> list[int]:
    batches = list(store.batches("train", batch_size, **order))
    assert all(each.shape == (batch_size, D_MODEL) and each.dtype == torch.float32 for each in batches)
    return [int(row) for batch in batches for row in batch[:, 0]]


def test_vectors_are_read_in_order_as_they_were_written(store: ActivationStore) -> None:
    read = torch.cat(list(store.in_order("train")))
    assert store.rows("train") == ROWS
    np.testing.assert_array_equal(read.numpy(), activations(0, ROWS).x.astype(np.float32))


@given(batch_size=st.integers(1, 2 * ROWS), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_an_epoch_has_each_vector_once_but_for_an_incomplete_last_batch(
    store: ActivationStore, batch_size: int, seed: int, epoch: int
) -> None:
    seen = numbers(store, batch_size, seed=seed, epoch=epoch)
    assert len(seen) == ROWS // batch_size * batch_size
    assert len(set(seen)) == len(seen)


@given(batch_size=st.integers(1, 20), start=st.integers(0, ROWS), seed=st.integers(0, 99))
def test_a_resumed_epoch_is_the_rest_of_the_whole_one(
    store: ActivationStore, batch_size: int, start: int, seed: int
) -> None:
    whole = numbers(store, batch_size, seed=seed)
    assert numbers(store, batch_size, seed=seed, start=start) == whole[start * batch_size :]


def test_epochs_and_seeds_have_orders_of_their_own(store: ActivationStore) -> None:
    orders = {tuple(numbers(store, 1, seed=seed, epoch=epoch)) for seed in range(2) for epoch in range(2)}
    assert len(orders) == 4


def test_neighbours_on_disk_are_not_neighbours_in_a_batch(store: ActivationStore) -> None:
    order = np.array(numbers(store, 1, seed=0))
    assert (np.abs(np.diff(order)) == 1).mean() < 0.15


def test_a_batch_that_was_handed_out_is_not_overwritten(store: ActivationStore) -> None:
    batches = list(store.batches("train", 7, seed=0))
    copies = [each.clone() for each in store.batches("train", 7, seed=0)]
    for batch, copy in zip(batches, copies, strict=True):
        torch.testing.assert_close(batch, copy, rtol=0, atol=0)


def test_any_parquet_reader_can_use_the_files(store: ActivationStore) -> None:
    table = pq.read_table(store._artifact.file("resid_post_1/train-00001.parquet"))
    row = table.slice(2, 1).to_pylist()[0]
    number = FILES[0] + 2
    np.testing.assert_array_equal(np.frombuffer(row["x"], "<f2"), np.array([number, number / 2, -number], np.float16))
    assert (row["token"], row["document"], row["position"]) == (number, number, number)


def stored(folder: Path, x: Activations, row_group: int) -> ActivationStore:
    with Work("activations", folder / "out", {}, {}, root=folder / "work") as work:
        with work.write("resid_post_1/train-00000.parquet") as pending:
            write_activations(pending.path, x, row_group)
            pending.rows = len(x.x)
        about = {"sites": ["resid_post_1"], "dtype": "fp16", "row_group_tokens": row_group, "mixed_shards": None}
        work.finish({"d_model": x.x.shape[1]} | about)
        work.publish()
    return ActivationStore(Artifact(folder / "out"))


def wide(rows: int, d_model: int) -> Activations:
    number = np.arange(rows, dtype=np.uint32)
    return Activations(np.random.default_rng(0).standard_normal((rows, d_model)).astype(np.float16), *[number] * 3)


@pytest.mark.parametrize(("rows", "d_model"), [(60_000, 3), (3000, 1024)], ids=["many", "wide"])
def test_row_groups_beyond_the_usual_size_of_a_page_are_read(tmp_path: Path, rows: int, d_model: int) -> None:
    x, row_group = wide(rows, d_model), 2 * rows // 3
    store = stored(tmp_path, x, row_group)
    np.testing.assert_array_equal(torch.cat(list(store.in_order("train"))).numpy(), x.x.astype(np.float32))
    (batch,) = store.batches("train", rows, seed=0)
    assert sorted(map(tuple, batch[:, :3].tolist())) == sorted(map(tuple, x.x[:, :3].astype(np.float32).tolist()))


def test_a_row_group_that_is_larger_than_the_store_takes_no_more_memory_than_it(tmp_path: Path) -> None:
    size = 10**9
    store = stored(tmp_path, wide(100, 8), size)
    assert len(list(store.batches("train", 10, seed=0))) == 10
