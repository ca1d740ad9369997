import pytest

from cocomix.report.facts import Usage
from cocomix.report.usage import StageUsage, startup_share


def stage(name: str, seconds: float, startup_seconds: float | None) -> StageUsage:
    return StageUsage(
        name, 1, Usage(seconds=seconds, startup_seconds=startup_seconds, peak_memory=1, bytes=1, processes=1)
    )


def test_the_share_of_starting_is_of_the_time_of_all_stages() -> None:
    assert startup_share([stage("sae", 20.0, 9.0), stage("explain", 10.0, 1.0)]) == pytest.approx(0.25)


@pytest.mark.parametrize("other", [stage("sae", 20.0, None), StageUsage("sae", 1, None)])
def test_the_share_of_starting_is_unknown_where_a_stage_did_not_record_it(other: StageUsage) -> None:
    assert startup_share([other, stage("explain", 10.0, 1.0)]) is None
