from types import SimpleNamespace
from typing import Any

import pytest

from cocomix.params import Params
from cocomix.report import conclusions
from cocomix.report.cards import LEAST, SHOWN, read_cards
from cocomix.report.wording import changed, one_seed, visible
from cocomix.statistics import Interval
from cocomix.steering.averages import Sweep
from tests.shipped import paper_params, paper_values

BELOW, ABOVE, AROUND = Interval(-0.2, -0.3, -0.1), Interval(0.2, 0.1, 0.3), Interval(0.05, -0.1, 0.2)


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        (BELOW, "CoCoMix ends at a lower test loss than knowledge distillation, by 0.200 nats"),
        (ABOVE, "Knowledge distillation is ahead of CoCoMix: its test loss is 0.200 nats lower"),
        (AROUND, "CoCoMix and knowledge distillation end at test losses that these documents do not tell apart"),
    ],
)
def test_who_is_ahead_is_said_whoever_it_is(gap: Interval, said: str) -> None:
    assert conclusions.against("cocomix", "kd", gap).startswith(said)


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        (BELOW, "Mixing concepts in helps: it lowers the test loss by 0.200 nats"),
        (
            ABOVE,
            "Predicting concepts without mixing them in is better than CoCoMix: the test loss of predicted is 0.200",
        ),
        (AROUND, "Mixing concepts in makes no difference to the test loss that these documents show"),
    ],
)
def test_whether_mixing_helps_is_said_either_way(gap: Interval, said: str) -> None:
    assert conclusions.mixing(gap, "predicted").startswith(said)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (conclusions.use_of_labels("cocomix", 4.1, 4.105, False), "CoCoMix does not use labels that are fed to it"),
        (conclusions.use_of_labels("cocomix", 4.1, 4.3, False), "CoCoMix uses labels that are fed to it"),
        (conclusions.use_of_labels("cocomix", 4.3, 4.1, True), "CoCoMix uses labels that are fed to it"),
        (
            conclusions.use_of_labels("cocomix", 4.3, 4.1, False),
            "CoCoMix does not benefit from labels that are fed to it, which raise",
        ),
        (conclusions.mixture("cocomix", 4.1, 4.3), "CoCoMix needs the concepts that it mixes in"),
        (conclusions.mixture("cocomix", 4.1, 4.105), "CoCoMix does not need the concepts that it mixes in"),
        (conclusions.prediction("predicted", 5.2, 6.0), 'The form "predicted" predicts concepts from the text'),
        (conclusions.prediction("predicted", 6.0, 6.0), 'The form "predicted" predicts concepts no better than'),
        (conclusions.whole_cost("cocomix", 0.8), "CoCoMix saves compute, even with its supervision: 0.80 times"),
        (conclusions.whole_cost("cocomix", 0.97), "CoCoMix takes about the same compute as next-token prediction"),
        (conclusions.whole_cost("cocomix", 1.03), "CoCoMix takes about the same compute as next-token prediction"),
        (conclusions.whole_cost("cocomix", 1.2), "CoCoMix saves no compute once its supervision counts: 1.20 times"),
        (conclusions.atlas_labels(0.8), "The labels in the atlas tell where their concepts fire (AUC 0.80"),
        (conclusions.atlas_labels(0.55), "The labels in the atlas hardly tell where their concepts fire (AUC 0.55"),
    ],
)
def test_a_figure_decides_which_of_two_conclusions_is_drawn(said: str, expected: str) -> None:
    assert said.startswith(expected)


@pytest.mark.parametrize(
    ("own", "gap", "said"),
    [
        (ABOVE, ABOVE, "makes its own tokens likelier, more than raising another"),
        (AROUND, ABOVE, "does not make them likelier than no edit"),
        (BELOW, ABOVE, "does not make them likelier than no edit"),
        (ABOVE, AROUND, "no likelier than raising another"),
    ],
)
def test_steering_is_set_against_no_edit_and_other_concepts(own: Interval, gap: Interval, said: str) -> None:
    effect: Any = SimpleNamespace(log_ratio=SimpleNamespace(own=own, difference=gap))
    for method in ("cocomix", "base"):
        assert said in conclusions.steered(method, Sweep(f"{method}_set", 16, [effect]))


def test_one_seed_says_what_its_intervals_leave_out() -> None:
    of_one, of_two = (SimpleNamespace(runs=[None] * seeds) for seeds in (1, 2))
    several: Any = [[of_one, of_one], [of_one], [of_two, of_two]]
    about = ": its intervals are about which documents are read, not about other seeds or other machines"
    assert [one_seed(each) for each in several] == [f"This is one seed{about}.", "This is one seed.", ""]


def test_every_parameter_that_differs_is_shown_as_it_is_written() -> None:
    shipped = paper_params()
    assert changed(shipped, shipped) == []
    values = paper_values()
    values["tokenize"]["pretrained"] = "caf\u00e9"
    values["sae"] |= {"k": 16, "also": {"wide": {"latents": 4096}}}
    values["explain"]["model"]["judged"] = 5
    values["pretrain"]["training"]["betas"] = [0.8, 0.9]
    assert changed(Params.model_validate(values), shipped) == [
        ("tokenize.pretrained", '"caf\u00e9"', "null"),
        ("sae.k", "16", "32"),
        ("sae.also.wide", '{"latents": 4096}', "null"),
        ("explain.model.judged", "5", "10"),
        ("pretrain.training.betas", "[0.8, 0.9]", "[0.9, 0.95]"),
    ]


def test_forms_differ_in_their_own_changes_only() -> None:
    values = paper_values()
    values["pretrain"]["forms"] = {"predicted": {"mixing": "none"}, "gone": {"gate": True}}
    shipped = Params.model_validate(values)
    values["pretrain"]["cocomix"]["concept_weight"] = 0.5
    values["pretrain"]["forms"] = {"predicted": {"mixing": "none"}, "own": {"kd": {"kl_weight": 1.0}}}
    assert changed(Params.model_validate(values), shipped) == [
        ("pretrain.cocomix.concept_weight", "0.5", "0.3"),
        ("pretrain.forms.gone", "null", '{"gate": true}'),
        ("pretrain.forms.own", '{"kd.kl_weight": 1.0}', "null"),
    ]


def test_white_space_is_shown_only_where_there_is_nothing_else() -> None:
    shown = {" a": " a", "\n": "\u21b5", " \n": "\u00b7\u21b5", "\t": "\u2192", "\r\u3000": r"\r\u3000"}
    assert {each: visible(each) for each in shown} == shown


UNLABELLED = 40


class OfScores:
    """An atlas, as far as `read_cards` reads it."""

    def __init__(self, scores: list[tuple[float | None, int]]) -> None:
        self._scores = scores

    def scores(self) -> list[tuple[int, float | None, int]]:
        return [(number, *each) for number, each in enumerate(self._scores)]

    def label(self, number: int) -> str:
        return "" if number == UNLABELLED else "a label"

    def concept(self, number: int) -> Any:
        return SimpleNamespace(contexts=[], _replace=lambda **_: number)


def test_the_best_and_the_typical_labels_are_shown_if_they_rest_on_enough() -> None:
    aucs = [0.5 + each / 100 for each in range(40)]
    atlas: Any = OfScores([*((auc, LEAST) for auc in aucs), (1.0, LEAST), (1.0, LEAST - 1), (None, 0)])
    cards = read_cards(atlas)
    assert cards.best == [39, 38, 37, 36]
    assert len(cards.typical) == SHOWN
    assert set(cards.typical) <= set(range(18, 24))
    few: Any = OfScores([(0.9, LEAST)] * 5)
    assert read_cards(few) == ([0, 1, 2, 3], [4])
    none: Any = OfScores([])
    assert read_cards(none) == ([], [])
