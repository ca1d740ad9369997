from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from cocomix.modeling import CoCoMixForCausalLM, CoCoMixLanguageModel
from cocomix.modeling.concept_edits import Scale
from cocomix.plumbing.runtime import runtime
from cocomix.predictions import doubling
from cocomix.predictions.measure import DOUBLED, ConceptPredictions, Place, measure_predictions
from cocomix.predictions.table import BEFORE, predictions_table
from tests.modeling.conftest import LLAMA, MIXINGS, precise, tiny

WINDOWS, SEQ, CONCEPTS = 7, 40, 40
IDS = torch.randint(61, (WINDOWS, SEQ), generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(-1, CONCEPTS, (WINDOWS, SEQ, 3), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_MICRO_BATCH", "3")
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")
    runtime.cache_clear()


@pytest.fixture(params=["interleave", "add"])
def model(request: pytest.FixtureRequest) -> CoCoMixForCausalLM:
    return tiny(mixing=request.param)


@pytest.fixture
def found(model: CoCoMixForCausalLM, tmp_path: Path) -> list[ConceptPredictions]:
    return measure_predictions(model, IDS, LABELS, promoted=4, kept=tmp_path / "kept", places=2)


def where(model: CoCoMixForCausalLM, concept: int) -> tuple[Tensor, Tensor]:
    """Where it is predicted, and its logits, one concept at a time."""
    chosen = model.concepts(IDS)
    return (chosen.indices == concept).any(2), chosen.logits[..., concept]


def test_predictions_of_every_concept_are_those_of_the_model_and_right_where_they_are_labels(
    model: CoCoMixForCausalLM, found: list[ConceptPredictions]
) -> None:
    assert len(found) == CONCEPTS
    for concept, each in enumerate(found):
        here, _ = where(model, concept)
        labels = LABELS.eq(concept)
        is_label = labels.any(2)
        assert each.labelled == int(labels.sum())  # drawn labels may be twice at a position, which real ones are not
        assert (each.predictions, each.right) == (int(here.sum()), int((here & is_label).sum()))


def test_places_are_the_strongest_of_different_windows(
    model: CoCoMixForCausalLM, found: list[ConceptPredictions]
) -> None:
    for concept, each in enumerate(found):
        here, logits = where(model, concept)
        peaks = logits.masked_fill(~here, -torch.inf).max(1)
        best = [window for window in peaks.values.argsort(descending=True).tolist() if here[window].any()][:2]
        assert [place.window for place in each.places] == best
        assert [place.position for place in each.places] == peaks.indices[best].tolist()
        torch.testing.assert_close(torch.tensor([place.strength for place in each.places]), peaks.values[best])
        assert [place.right for place in each.places] == [
            concept in LABELS[place.window, place.position] for place in each.places
        ]


@torch.no_grad()
def written_out(model: CoCoMixLanguageModel, concept: int, places: list[Place]) -> Tensor:
    """The mean change of the next token's probabilities: a whole forward pass for each of the places."""
    changes = []
    for window, position, *_ in places:
        edits = [Scale(concept, 2.0, start=position, stop=position + 1)]
        passes = (model(IDS[window, None], concept_edits=some).logits[0, position] for some in (edits, None))
        doubled, plain = (each.softmax(-1) for each in passes)
        changes.append(doubled - plain)
    return torch.stack(changes).mean(0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("backbone", [{}, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("mixing", [each for each in MIXINGS if each != "none"])
def test_tokens_are_promoted_by_what_doubling_the_concept_does_at_one_strong_place_after_another(
    mixing: str, backbone: dict[str, object], attention: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubling, "STEP", 3)
    model = precise(tiny(mixing=mixing, **backbone, attn_implementation=attention))
    found = measure_predictions(model, IDS[:3, :9], LABELS[:3, :9], promoted=4, kept=tmp_path, places=3)
    assert {len(each.places) for each in found} == {0, 1, DOUBLED, 3}
    for concept, each in enumerate(found):
        if not each.places:
            assert each.promotes == []
            continue
        change = written_out(model, concept, each.places[:DOUBLED])
        values = torch.tensor([effect.change for effect in each.promotes])
        torch.testing.assert_close(values, change.topk(4).values.float(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            change[[effect.token for effect in each.promotes]].float(), values, atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("kind", ["read", "doubled", "promoted"])
def test_a_killed_measurement_goes_on_with_the_part_that_it_lost(
    model: CoCoMixForCausalLM, found: list[ConceptPredictions], tmp_path: Path, kind: str
) -> None:
    there = {path: path.read_bytes() for path in (tmp_path / "kept").rglob("*.safetensors")}
    lost = [path for path in there if path.name.startswith(kind)][-1]
    lost.unlink()
    passes: list[object] = []
    handle = model.base_model.register_forward_hook(lambda *_: passes.append(None))
    assert measure_predictions(model, IDS, LABELS, promoted=4, kept=tmp_path / "kept", places=2) == found
    handle.remove()
    assert {path: path.read_bytes() for path in there} == there
    assert len(passes) == {"read": 1, "doubled": 2, "promoted": 0}[kind]


def test_the_table_holds_a_row_a_concept_with_the_tokens_around_each_place(
    model: CoCoMixForCausalLM, found: list[ConceptPredictions], tmp_path: object
) -> None:
    numbers = [5, 8, 13, 21, 34, 55, 89]
    path = f"{tmp_path}/predicted.parquet"
    pq.write_table(predictions_table("cocomix-3", found, numbers, IDS.tolist()), path)
    rows = pq.read_table(path).to_pylist()
    assert [(row["model"], row["concept"], row["positions"]) for row in rows] == [
        ("cocomix-3", concept, WINDOWS * SEQ) for concept in range(CONCEPTS)
    ]
    for row, each in zip(rows, found, strict=True):
        assert (row["predictions"], row["right"], row["labelled"]) == each[:3]
        assert row["promotes"] == [effect.token for effect in each.promotes]
        for context, place in zip(row["contexts"], each.places, strict=True):
            assert (context["window"], context["position"]) == (numbers[place.window], place.position)
            assert context["right"] == place.right
            shown = IDS[place.window, context["start"] :].tolist()
            assert context["tokens"] == shown[: len(context["tokens"])]
            assert context["start"] == max(0, place.position - BEFORE)
            assert context["start"] + len(context["tokens"]) == min(SEQ, place.position + 9)
