from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from cocomix.explain.label_model import LabelModel, label_in
from cocomix.params import ExplainModelParams, ExplainParams
from cocomix.plumbing import interrupt
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.interrupt import Interrupted
from cocomix.plumbing.progress import Progress
from tests.attribution.conftest import LATENTS, Setting
from tests.explain.test_build import PARAMS, made


@pytest.fixture
def folder_of_model(folder: Path) -> Path:
    """A random language model with a byte-level tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({each: place for place, each in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=2048, vocab_size=300, initializer_range=0.3)
    config.bos_token_id = config.eos_token_id = None
    GPT2LMHeadModel(config).save_pretrained(folder / "asked")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="!").save_pretrained(folder / "asked")
    return folder / "asked"


def params(model: Path, **changes: Any) -> ExplainParams:
    asked = ExplainModelParams(name=str(model), contexts=2, judged=3, **changes)
    return PARAMS.model_copy(update={"labeller": "model", "model": asked})


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("\n\n words of time.\nmore", "words of time"),
        ('- "names"', "names"),
        ("", ""),
        ("x" * 300, "x" * 100),
    ],
)
def test_a_label_is_the_first_line_that_says_something(answer: str, label: str) -> None:
    assert label_in(answer) == label


@pytest.fixture
def folder_of_writer(folder_of_model: Path) -> Path:
    """A model that writes `one` and then its EOS, or else `x`."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder_of_model)
    size, (*written, other) = 300, tokenizer.convert_tokens_to_ids([*":one!x"])
    config = GPT2Config(n_embd=size, n_layer=1, n_head=1, n_positions=2048, vocab_size=size, tie_word_embeddings=False)
    config.bos_token_id, config.eos_token_id = None, tokenizer.eos_token_id
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for each in model.parameters():
            each.zero_()
        model.transformer.ln_f.weight.fill_(1.0)
        model.transformer.wte.weight.copy_(torch.eye(size))
        for before, after in pairwise(written):
            model.lm_head.weight[after, before] = 1.0
        model.lm_head.weight[other, [written[-2], other]] = 0.5
    model.save_pretrained(folder_of_model)
    return folder_of_model


def test_a_label_ends_where_the_model_ends_it(folder_of_writer: Path) -> None:
    model = LabelModel(ExplainModelParams(name=str(folder_of_writer)))
    assert model.write([["in <<May>>"], ["a much longer excerpt, of <<other>> words"]]) == ["o n e", "o n e"]


def test_padding_changes_no_judgement(folder_of_model: Path) -> None:
    model = LabelModel(ExplainModelParams(name=str(folder_of_model)))
    together = model.judge("words of time", ["in <<May>>", "a much longer excerpt, of <<other>> words"])
    alone = [
        model.judge("words of time", [each])[0] for each in ("in <<May>>", "a much longer excerpt, of <<other>> words")
    ]
    assert together == pytest.approx(alone, abs=1e-4)
    assert together[0] != pytest.approx(together[1], abs=1e-4)


def test_a_chat_template_is_used(folder_of_model: Path) -> None:
    asked = ExplainModelParams(name=str(folder_of_model))
    plain = LabelModel(asked).judge("time", ["<<May>>"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder_of_model)
    tokenizer.chat_template = "{% for each in messages %}[{{ each.content }}]{% endfor %}:"
    tokenizer.save_pretrained(folder_of_model)
    assert LabelModel(asked).judge("time", ["<<May>>"]) != plain


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no users') }}", "TemplateError: no users"),
        ("{% for each in messages %}", "TemplateSyntaxError: "),
        ("{{ messages[7].content }}", "UndefinedError: "),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError: "),
    ],
)
def test_a_chat_template_that_takes_no_question_is_an_error_of_one_line(
    folder_of_model: Path, template: str, reason: str
) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder_of_model)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder_of_model)
    model = LabelModel(ExplainModelParams(name=str(folder_of_model)))
    with pytest.raises(UserError, match=f"explain.model: its chat template takes no question: {reason}"):
        model.judge("time", ["<<May>>"])


def test_a_special_token_that_is_spelt_in_an_excerpt_is_text(folder_of_model: Path) -> None:
    asked = ExplainModelParams(name=str(folder_of_model))
    expected = LabelModel(asked).judge("time", ["<|end|> <<May>>"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder_of_model)
    tokenizer.add_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.save_pretrained(folder_of_model)
    assert len(tokenizer("<|end|>").input_ids) == 1
    assert LabelModel(asked).judge("time", ["<|end|> <<May>>"]) == expected


def test_a_space_that_is_a_token_of_its_own_speaks_neither_for_yes_nor_for_no(folder_of_model: Path) -> None:
    model = LabelModel(ExplainModelParams(name=str(folder_of_model)))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder_of_model)
    assert tokenizer.tokenize(" yes")[0] == tokenizer.tokenize(" no")[0]
    yes, no = (set(tokenizer.convert_ids_to_tokens(each)) for each in (model._yes, model._no))
    assert (yes, no) == ({"y", "Y"}, {"n", "N"})


def test_the_concepts_that_fire_most_are_labelled_by_the_model(setting: Setting, folder_of_model: Path) -> None:
    tokens, _ = made(setting)
    by_model, _ = made(setting, key="asked", params=params(folder_of_model, concepts=6))
    cards = [by_model.concept(each) for each in range(LATENTS)]
    labelled = {each.concept for each in cards if each.labeller == "model"}
    ordered = sorted(cards, key=lambda each: -each.firings)
    assert labelled == {each.concept for each in ordered[:6]}
    for card in cards:
        assert (card.label == tokens.label(card.concept)) == (card.concept not in labelled)
    assert all(cards[each].auc is not None for each in labelled)


def test_labels_of_an_interrupted_process_are_kept(
    setting: Setting, folder_of_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = params(folder_of_model, concepts=8)
    expected = made(setting, params=wanted)[0].manifest.files
    asked: list[int] = []

    def stop(self: Progress, amount: int, **_: Any) -> None:
        if amount == 4:
            raise Interrupted(interrupt.signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance", stop)
        with pytest.raises(Interrupted):
            made(setting, key="stopped", params=wanted)
    write = LabelModel.write
    monkeypatch.setattr(LabelModel, "write", lambda self, some: asked.append(len(some)) or write(self, some))
    assert made(setting, key="stopped", params=wanted)[0].manifest.files == expected
    assert asked == [4]


def test_a_model_that_is_not_there_is_an_error_of_one_line(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"explain\.model\.name: 'empty': no tokenizer can be loaded from this "
    ) as error:
        LabelModel(ExplainModelParams(name="empty"))
    assert "\n" not in str(error.value)
