import torch

from cocomix.explain.predicted import predicted
from cocomix.modeling.concept_edits import Scale
from tests.modeling.conftest import tiny

IDS = torch.randint(61, (6, 12), generator=torch.Generator().manual_seed(0))


def test_predictions_are_those_of_the_model_and_right_where_they_are_labels() -> None:
    model = tiny()
    chosen = model.concepts(IDS)
    concept = int(chosen.indices.flatten().mode().values)
    here = (chosen.indices == concept).any(2)
    labels = torch.randint(40, (*IDS.shape, 3), generator=torch.Generator().manual_seed(1))
    found = predicted(model, concept, IDS, labels, most=2)
    is_label = (labels == concept).any(2)
    assert (found.predictions, found.labelled) == (int(here.sum()), int(is_label.sum()))
    assert found.right == int((here & is_label).sum())
    peaks = chosen.logits[..., concept].masked_fill(~here, -torch.inf).amax(1).sort(descending=True)
    assert [each.window for each in found.places] == peaks.indices[:2].tolist()
    for each in found.places:
        assert here[each.window, each.position]
        assert each.strength == float(chosen.logits[each.window, each.position, concept])
        assert each.right == bool(is_label[each.window, each.position])


def test_tokens_are_promoted_by_what_doubling_the_concept_does() -> None:
    model = tiny()
    chosen = model.concepts(IDS)
    concept = int(chosen.indices.flatten().mode().values)
    here = (chosen.indices == concept).any(2)
    with torch.no_grad():
        plain, doubled = (model(IDS, concept_edits=each).logits.softmax(-1) for each in (None, [Scale(concept, 2.0)]))
    change = (doubled - plain)[here].mean(0)
    found = predicted(model, concept, IDS, most=4).promotes
    assert [each.token for each in found] == change.topk(4).indices.tolist()
    torch.testing.assert_close(torch.tensor([each.change for each in found]), change.topk(4).values)


def test_a_concept_that_is_never_predicted_promotes_nothing() -> None:
    model = tiny()
    absent = next(each for each in range(40) if each not in set(model.concepts(IDS).indices.flatten().tolist()))
    assert predicted(model, absent, IDS) == (0, None, None, [], [])
