from pathlib import Path

import pytest
from dvc.stage.cache import StageCache

from flows.reproduce import reproduce
from flows.run_cache import remember
from tests.flows.conftest import set_params


def outcome() -> str:
    """What DVC did for the first stage."""
    return reproduce("number", lambda _: None).outcome


def test_results_of_an_earlier_value_come_back_with_the_metrics_that_git_keeps(project: Path) -> None:
    assert outcome() == "ran"
    metrics = Path("metrics/number.json").read_bytes()
    remember()
    set_params(number=3)
    assert outcome() == "ran"
    assert Path("metrics/number.json").read_bytes() != metrics
    set_params(number=1)
    assert outcome() == "restored"
    assert Path("metrics/number.json").read_bytes() == metrics
    assert Path("number.txt").read_text() == "1"


@pytest.mark.parametrize("change", [lambda path: path.write_text("{}"), Path.unlink], ids=["edited", "deleted"])
def test_metrics_that_a_person_has_changed_are_not_remembered(project: Path, change: object) -> None:
    assert outcome() == "ran"
    assert callable(change)
    change(Path("metrics/number.json"))
    remember()
    set_params(number=3)
    assert outcome() == "ran"
    set_params(number=1)
    assert outcome() == "ran"


def test_a_cache_that_cannot_be_written_ends_no_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome() == "ran"

    def full(_cache: StageCache, _stage: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StageCache, "save", full)
    remember()


def test_a_folder_without_a_readable_pipeline_has_nothing_to_remember(project: Path) -> None:
    Path("dvc.yaml").write_text("stages: [")
    remember()
    assert not Path(".dvc/cache/runs").exists()
