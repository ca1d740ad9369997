"""What is read off a text is what the model mixes, what attribution says, and what mixing is worth."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cocomix.attribution.labelling import label_windows
from cocomix.modeling.mixers import Mixture
from cocomix.plumbing.errors import UserError
from cocomix.steering.reading import concepts, encode, information_gain
from tests.modeling.conftest import named, tiny
from tests.steering.conftest import PARAMS, Setting, windows

TEXT = "w5 w9 w2 w44 w7"


def test_predicted_concepts_are_those_that_are_mixed_with_what_they_mean(setting: Setting) -> None:
    found = concepts(setting.model, TEXT, setting.tokenizer, labels={3: "three"})
    mixed = setting.model.concepts(setting.tokenizer(TEXT, return_tensors="pt").input_ids)
    assert [each.text for each in found] == TEXT.split()
    assert [[each.concept for each in position.predicted] for position in found] == mixed.indices[0].tolist()
    assert [[each.strength for each in position.predicted] for position in found] == mixed.strengths[0].tolist()
    every = [each for position in found for each in position.predicted]
    assert {each.label for each in every if each.concept == 3} <= {"three"}
    assert {each.label for each in every if each.concept != 3} == {None}
    assert all(position.labelled is None for position in found)


def test_labelled_concepts_are_those_of_attribution_and_the_last_position_has_none(setting: Setting) -> None:
    ids = windows(setting, 1)[0]
    found = concepts(setting.model, ids.tolist(), setting.tokenizer, setting.extractor)
    labels = label_windows(setting.extractor.base, setting.extractor.sae, ids[None], PARAMS)
    for position, numbers, scores in zip(found, labels.concepts[0].tolist(), labels.scores[0].tolist(), strict=True):
        wanted = [(n, s) for n, s in zip(numbers, scores, strict=True) if n != 65535]
        assert [(each.concept, each.strength) for each in position.labelled] == wanted
    assert found[0].labelled
    assert found[-1].labelled == []


class Zeroed(nn.Module):
    """A mixer that mixes zeros at one place."""

    def __init__(self, mixer: nn.Module, place: int) -> None:
        super().__init__()
        self.mixer, self.place = mixer, place

    def forward(self, hidden: Tensor) -> Mixture:
        mixture = self.mixer(hidden)
        kept = torch.arange(hidden.shape[1]) != self.place
        return mixture._replace(vector=mixture.vector * kept[:, None])


@pytest.mark.parametrize("change", [{}, {"mixing": "add"}, {"predicts": "hidden"}, {"predicts": "nothing"}], ids=named)
def test_information_gain_is_the_loss_with_zeros_at_one_place_less_the_loss_as_it_is(change: dict[str, object]) -> None:
    model, ids = tiny(**change), torch.arange(3, 11)
    losses = []
    for place in (*range(7), -1):
        other = tiny(**change)
        other.transformer.mixer = Zeroed(other.transformer.mixer, place)
        losses.append(F.cross_entropy(other(ids[None]).logits[0, :-1], ids[1:], reduction="none"))
    *without, as_it_is = torch.stack(losses)
    expected = torch.stack([each[place] for place, each in enumerate(without)]) - as_it_is
    torch.testing.assert_close(information_gain(model, ids), expected, atol=1e-4, rtol=1e-4)
    assert model(ids[None]).logits.isfinite().all()  # nothing of it stays behind


def test_a_text_of_one_token_has_concepts_and_no_gain(setting: Setting) -> None:
    (only,) = concepts(setting.model, "w5", setting.tokenizer, setting.extractor)
    assert len(only.predicted) == 5
    assert only.gain is None
    assert only.labelled == []


def test_a_model_that_predicts_concepts_and_mixes_none_has_no_gain(setting: Setting) -> None:
    found = concepts(tiny(vocab_size=64, mixing="none"), TEXT, setting.tokenizer)
    assert [each.gain for each in found] == [None] * 5
    assert all(len(each.predicted) == 5 for each in found)


def test_a_special_token_that_is_spelt_in_a_text_is_text_as_in_the_corpus(setting: Setting) -> None:
    text = "w5 <|endoftext|> w9"
    assert setting.tokenizer(text).input_ids == [5, 0, 9]
    unknown = setting.tokenizer.eos_token_id  # the words of this tokenizer are few
    assert encode(setting.model, text, setting.tokenizer).tolist() == [[5, unknown, unknown, unknown, 9]]
    assert [each.token for each in concepts(setting.model, text, setting.tokenizer)] == [5, *[unknown] * 3, 9]


def test_texts_that_cannot_be_read_are_refused_with_the_reason(setting: Setting) -> None:
    with pytest.raises(UserError, match="the text is empty"):
        concepts(setting.model, "", setting.tokenizer)
    with pytest.raises(UserError, match="has 49 tokens; the model reads at most 48"):
        concepts(setting.model, [1] * 49, setting.tokenizer)
    with pytest.raises(UserError, match="has 17 tokens; the base model reads at most 16"):
        concepts(setting.model, [1] * 17, setting.tokenizer, setting.extractor)
    with pytest.raises(UserError, match="predicts no concepts"):
        concepts(tiny(predicts="hidden"), TEXT, setting.tokenizer)
