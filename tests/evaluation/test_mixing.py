import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cocomix.evaluation.mixing import MixingScore, PutLabelsFirst, score_mixing
from cocomix.modeling import CoCoMixForCausalLM, Concepts
from cocomix.tokens.window_data import WindowData, WindowLabels
from tests.evaluation.conftest import K_ATTR, cocomix

FAR = 3
"""How many of the 7 windows away the other one is."""
MIXINGS = [{}, {"mixing": "interleave_with_state"}, {"mixing": "add"}, {"concept_head": "equations"}]


def loss_of(model: CoCoMixForCausalLM, ids: Tensor, vectors: Tensor | None = None) -> float:
    """The plain way: the mixed vectors, if given, in place of the head."""
    hook = None
    if vectors is not None:
        hook = model.transformer.mixer.register_forward_hook(lambda *args: args[-1]._replace(vector=vectors))
    with torch.no_grad():
        loss = float(model(ids, labels=ids).loss)
    if hook:
        hook.remove()
    return loss


@pytest.mark.parametrize("changes", MIXINGS)
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_mixed_vectors_are_replaced(data: WindowData, changes: dict[str, object], batch_size: int) -> None:
    model = cocomix(**changes)
    ids = torch.from_numpy(data.windows.astype(np.int64))
    vectors: list[Tensor] = []
    with model.transformer.mixer.register_forward_hook(lambda *args: vectors.append(args[-1].vector)):
        as_it_is = loss_of(model, ids)
    (vector,) = vectors
    score = score_mixing(model, data, 100, batch_size, "mixing")
    assert score.windows == len(ids)
    assert score.as_it_is == pytest.approx(as_it_is, rel=1e-5)
    assert score.zeroed == pytest.approx(loss_of(model, ids, torch.zeros_like(vector)), rel=1e-5)
    assert score.shuffled == pytest.approx(loss_of(model, ids, vector.roll(FAR, dims=0)), rel=1e-5)
    assert score.mean == pytest.approx(loss_of(model, ids, vector.mean((0, 1)).expand_as(vector)), rel=1e-5)
    assert len({score.as_it_is, score.zeroed, score.shuffled, score.mean}) == 4


def test_windows_are_taken_from_all_over_the_data(data: WindowData) -> None:
    model = cocomix()
    chosen = WindowData(data.windows[[0, 3, 6]], WindowLabels(data.labels.concepts[[0, 3, 6]]))  # type: ignore[index]
    expected, score = (score_mixing(model, each, 3, 64, "mixing") for each in (chosen, data))
    assert score.windows == 3
    assert score.as_it_is == pytest.approx(expected.as_it_is)
    assert score.fed_by_uncertainty == pytest.approx(expected.fed_by_uncertainty)


def told_plainly(
    concepts: dict[int, float], logits: list[float], labels: list[int], count: int, turns: list[float] | None
) -> dict[int, float]:
    """One position: what is mixed after `count` of its labels were told."""
    order = sorted(labels, key=lambda label: logits[label] if turns is None else turns[labels.index(label)])
    told = sorted(order[:count], key=lambda label: -logits[label])
    others = sorted((each for each in concepts if each not in told), key=lambda each: -concepts[each])
    return dict(zip([*told, *others], sorted(concepts.values(), reverse=True), strict=False))


@given(st.data())
def test_fed_labels_become_the_first_and_the_strengths_stay(draw: st.DataObject) -> None:
    dictionary, k, m = 12, draw.draw(st.integers(1, 6)), draw.draw(st.integers(1, 5))
    generator = np.random.default_rng(draw.draw(st.integers(0, 1000)))
    count, positions = draw.draw(st.integers(0, m)), 4
    logits = torch.from_numpy(generator.normal(3, 2, (1, positions, dictionary)).astype(np.float32))
    labels = np.stack([generator.permutation(dictionary)[:m] for _ in range(positions)])
    held = generator.integers(0, m + 1, positions)
    labels[np.arange(m) >= held[:, None]] = -1
    turn = torch.from_numpy(generator.random((1, positions, m))) if draw.draw(st.booleans()) else None
    top = logits.topk(k)
    concepts = Concepts(top.values, top.indices, logits, torch.arange(positions)[None])
    edited = PutLabelsFirst(torch.from_numpy(labels)[None], count, turn)(concepts)
    for place in range(positions):
        plain = told_plainly(
            dict(zip(top.indices[0, place].tolist(), top.values[0, place].tolist(), strict=True)),
            logits[0, place].tolist(),
            [each for each in labels[place].tolist() if each >= 0],
            count,
            None if turn is None else turn[0, place].tolist(),
        )
        mixed = torch.zeros(dictionary).index_add_(0, edited.indices[0, place], edited.strengths[0, place])
        expected = torch.zeros(dictionary)
        expected[list(plain)] = torch.tensor(list(plain.values()))
        assert torch.equal(mixed, expected)


@pytest.mark.parametrize("changes", MIXINGS)
def test_labels_are_told_one_by_one(data: WindowData, changes: dict[str, object]) -> None:
    model = cocomix(**changes)
    ids = torch.from_numpy(data.windows.astype(np.int64))
    assert data.labels is not None
    labels = torch.from_numpy(np.where(data.labels.concepts == 65535, -1, data.labels.concepts.astype(np.int64)))

    def told(labels: Tensor, count: int) -> float:
        with torch.no_grad():
            return float(model(ids, labels=ids, concept_edits=[PutLabelsFirst(labels, count)]).loss)

    score = score_mixing(model, data, 100, 3, "mixing")
    assert score.fed_by_uncertainty == pytest.approx([told(labels, count) for count in range(K_ATTR + 1)], rel=1e-5)
    assert score.fed_others == pytest.approx(told(labels.roll(FAR, dims=0), K_ATTR), rel=1e-5)
    assert score.fed_at_random[0] == score.as_it_is
    assert score.fed_at_random[-1] == score.fed_by_uncertainty[-1]
    assert score.fed_at_random[1:-1] != score.fed_by_uncertainty[1:-1]


def test_one_label_a_position_is_told_at_once(data: WindowData) -> None:
    assert data.labels is not None
    first = WindowData(data.windows, WindowLabels(data.labels.concepts[..., :1]))
    score: MixingScore = score_mixing(cocomix(), first, 100, 8, "mixing")
    assert score.fed_by_uncertainty == score.fed_at_random
    assert len(score.fed_at_random) == 2
