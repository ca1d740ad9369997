import pytest

from cocomix.report.concepts import mean_concepts
from cocomix.report.facts import ConceptFacts, MixingFacts


def facts(loss: float, ignored: float | None = None) -> ConceptFacts:
    told = [loss, loss - 1]
    mixing = MixingFacts(
        windows=64,
        as_it_is=loss,
        zeroed=5,
        shuffled=5,
        mean=5,
        fed_by_uncertainty=told,
        fed_at_random=told,
        fed_others=5,
    )
    return ConceptFacts(
        cross_entropy=loss, recall_at_k=0.5, recall_at_labels=0.2, never_predicted=0, ignored=ignored, mixing=mixing
    )


def test_each_figure_is_the_mean_over_runs_also_inside_of_lists() -> None:
    assert mean_concepts([facts(3), facts(4)]) == facts(3.5)
    assert mean_concepts([facts(3, 0.1), facts(3, 0.3)]).ignored == pytest.approx(0.2)


def test_what_is_not_measured_stays_so() -> None:
    unmixed = facts(3).model_copy(update={"mixing": None})
    assert mean_concepts([unmixed, unmixed]) == unmixed
