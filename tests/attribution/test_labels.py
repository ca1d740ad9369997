import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.attribution.labels import ConceptLabels, Labels, label_type, read_labels, write_labels
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.errors import UserError


def some_labels(windows: int, context: int, k_attr: int, number: int) -> Labels:
    generator = np.random.default_rng(0)
    shape = (windows, context, k_attr)
    concepts = generator.integers(0, number, size=shape).astype(label_type(number))
    concepts[:, -1] = np.iinfo(concepts.dtype).max
    return Labels(concepts, generator.standard_normal(shape).astype(np.float16))


def publish(folder: Path, labels: Labels, number: int, files: int) -> Artifact:
    with Work("attribution", folder / "out", {}, {}, root=folder / "work") as work:
        parts = [np.array_split(each, files) for each in labels]
        for index, (concepts, scores) in enumerate(zip(*parts, strict=True)):
            with work.write(f"train-{index:05d}.parquet") as pending:
                write_labels(pending.path, Labels(concepts, scores))
                pending.rows = len(concepts)
        _, context, k_attr = labels.concepts.shape
        work.finish({"concepts": number, "k_attr": k_attr, "context": context})
        work.publish()
    return Artifact(folder / "out")


def tokens_of(labels: Labels) -> Any:
    """In place of the artifact whose windows they label."""
    shape = labels.concepts.shape[:2]
    return SimpleNamespace(windows=lambda _: np.empty(shape), artifact=SimpleNamespace(path=Path("artifacts/tokens")))


@given(
    windows=st.integers(1, 600),
    context=st.integers(1, 5),
    k_attr=st.integers(1, 3),
    number=st.sampled_from([10, 65535, 65536]),
    files=st.integers(1, 3),
)
@settings(max_examples=20)
def test_labels_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, windows: int, context: int, k_attr: int, number: int, files: int
) -> None:
    folder = tmp_path_factory.mktemp("labels")
    written = some_labels(windows, context, k_attr, number)
    labels = ConceptLabels(publish(folder, written, number, min(files, windows)))
    unpacked = labels.unpack(tokens_of(written), "train", folder / "train.npy")
    np.testing.assert_array_equal(unpacked, written.concepts)
    for kind, parts in zip(written, zip(*labels.read("train"), strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), kind)
    assert (unpacked[:, -1] == labels.no_label).all()
    assert isinstance(unpacked, np.memmap)


@pytest.mark.parametrize(("number", "kind"), [(1024, np.uint16), (65535, np.uint16), (65536, np.uint32)])
def test_the_mark_of_no_label_is_never_a_concept(number: int, kind: type) -> None:
    assert label_type(number) == kind
    assert number - 1 < np.iinfo(kind).max


def test_scores_are_beside_the_concepts(tmp_path: Path) -> None:
    written = some_labels(300, 4, 2, 10)
    write_labels(tmp_path / "file", written)
    read = list(read_labels(tmp_path / "file", 4, 2, np.uint16))
    np.testing.assert_array_equal(np.concatenate([each.scores for each in read]), written.scores)


def test_an_unpacked_file_is_used_again(tmp_path: Path) -> None:
    written = some_labels(9, 4, 2, 10)
    labels, tokens = ConceptLabels(publish(tmp_path, written, 10, 2)), tokens_of(written)
    first = labels.unpack(tokens, "train", tmp_path / "train.npy").copy()
    labels._artifact.path.joinpath("train-00000.parquet").unlink()
    np.testing.assert_array_equal(labels.unpack(tokens, "train", tmp_path / "train.npy"), first)


@pytest.mark.parametrize(("windows", "context"), [(10, 4), (8, 4), (9, 5)])
def test_labels_of_fewer_or_other_windows_than_the_tokens_are_refused(
    tmp_path: Path, windows: int, context: int
) -> None:
    labels = ConceptLabels(publish(tmp_path, some_labels(9, 4, 2, 10), 10, 2))
    with pytest.raises(UserError, match=r"out: labels 9 windows of 4 tokens of the train split, .* run the stage"):
        labels.unpack(tokens_of(some_labels(windows, context, 2, 10)), "train", tmp_path / "train.npy")


def test_an_unpacking_that_died_leaves_nothing_that_is_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = some_labels(9, 4, 2, 10)
    labels = ConceptLabels(publish(tmp_path, written, 10, 2))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: pytest.fail("died"))
        with pytest.raises(pytest.fail.Exception):
            labels.unpack(tokens_of(written), "train", tmp_path / "train.npy")
    unpacked = labels.unpack(tokens_of(written), "train", tmp_path / "train.npy")
    np.testing.assert_array_equal(unpacked, written.concepts)
