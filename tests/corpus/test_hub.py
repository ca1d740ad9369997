import json
from pathlib import Path

import pytest

from cocomix.corpus.hub import read_hub
from cocomix.params import HubParams
from cocomix.plumbing.errors import UserError


@pytest.fixture
def dataset(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A dataset of 20 documents in a folder, which `datasets` reads as it does one of the hub."""
    monkeypatch.setenv("HF_HOME", str(folder / "cache"))
    (folder / "data").mkdir()
    with (folder / "data/train.jsonl").open("w") as file:
        for number in range(20):
            file.write(json.dumps({"id": number, "text": f"text {number}" if number else None}) + "\n")
    return str(folder / "data")


def params_of(dataset: str, **changed: object) -> HubParams:
    return HubParams.model_validate({"dataset": dataset, "revision": "main"} | changed)


def test_documents_are_streamed_with_their_place(dataset: str) -> None:
    found = list(read_hub(params_of(dataset)))
    assert [document.text for document in found] == ["", *(f"text {number}" for number in range(1, 20))]
    assert found[3].source == found[3].group == f"{dataset}@main:train:3"


def test_the_limit_is_kept(dataset: str) -> None:
    assert len(list(read_hub(params_of(dataset, limit=7)))) == 7


def test_what_was_read_before_is_skipped(dataset: str) -> None:
    assert list(read_hub(params_of(dataset, limit=9), skip=5)) == list(read_hub(params_of(dataset, limit=9)))[5:]


def test_a_missing_field_and_one_without_text_are_named(dataset: str) -> None:
    with pytest.raises(UserError, match=r"no field 'txt' \(corpus.hub.text_field\); did you mean 'text'\?"):
        list(read_hub(params_of(dataset, text_field="txt")))
    with pytest.raises(UserError, match=r"row 0: 'id' holds int, not text"):
        list(read_hub(params_of(dataset, text_field="id")))


def test_a_dataset_or_split_that_is_not_there_is_one_line(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for params in (params_of(dataset, split="other"), params_of(dataset + "/gone")):
        with pytest.raises(UserError, match="cannot be read") as caught:
            list(read_hub(params))
        assert "\n" not in str(caught.value)
        assert str(params.dataset) in str(caught.value)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(TimeoutError(), "TimeoutError"), (RuntimeError("Server disconnected\nwithout an answer"), "Server disconnected")],
)
def test_a_connection_that_ends_is_one_line(
    error: Exception, reason: str, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def end(*_: object, **_named: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", end)
    with pytest.raises(UserError, match=f"@main: cannot be read: {reason}; corpus.source may also be files"):
        list(read_hub(params_of(dataset)))


def test_a_hub_that_cannot_be_reached_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"someone/something@main: cannot be read: .*") as caught:
        list(read_hub(params_of("someone/something")))
    assert "\n" not in str(caught.value)
