import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cocomix.steering.retokenized import Retokenizer
from cocomix.tokens.tokenizer import END_OF_DOCUMENT, train_tokenizer


def letters() -> PreTrainedTokenizerFast:
    vocabulary = {
        letter: number for number, letter in enumerate(["?", "</s>", *" abcdefghijklmnopqrstuvwxyz\U0001f600"])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


@pytest.fixture
def student() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(["the cat the cats"] * 9, 280), eos_token=END_OF_DOCUMENT
    )


def text_of(tokenizer: PreTrainedTokenizerFast, ids: torch.Tensor) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(ids.tolist()))


def test_the_base_model_reads_what_was_written_and_knows_what_is_new(student: PreTrainedTokenizerFast) -> None:
    both = Retokenizer(student, letters(), context=20)
    rows = [student("the cat")["input_ids"], [*student(" cats")["input_ids"], student.eos_token_id]]
    start = 1
    written = torch.tensor([row[:2] for row in rows])
    found = both.retokenized(written, start)
    for row, ids, new in zip(written, *found, strict=True):
        whole = student.decode(row, skip_special_tokens=True)
        assert text_of(both.base, ids).replace("</s>", "") == whole
        assert text_of(both.base, ids[new]).replace("</s>", "") == whole[len(student.decode(row[:start])) :]


def test_a_prompt_that_ends_within_a_letter_leaves_the_letter_to_what_is_new(student: PreTrainedTokenizerFast) -> None:
    both = Retokenizer(student, letters(), context=20)
    written = torch.tensor([student("a\U0001f600b")["input_ids"]])
    found = both.retokenized(written, 3)
    assert text_of(both.base, found.ids[found.new]) == "\U0001f600b"


def test_the_end_of_a_document_stays_one(student: PreTrainedTokenizerFast) -> None:
    both = Retokenizer(student, letters(), context=20)
    first, second = student("cat")["input_ids"], student("the")["input_ids"]
    row = torch.tensor([[*first, student.eos_token_id, *second]])
    for prompt_tokens, new in ((len(first), "</s>the"), (len(first) + 1, "the")):
        found = both.retokenized(row, prompt_tokens)
        assert text_of(both.base, found.ids[0]) == "cat</s>the"
        assert text_of(both.base, found.ids[0][found.new[0]]) == new


def test_of_a_long_text_the_end_is_kept(student: PreTrainedTokenizerFast) -> None:
    both = Retokenizer(student, letters(), context=4)
    found = both.retokenized(torch.tensor([student("the cats the cats")["input_ids"]]), 1)
    assert text_of(both.base, found.ids[0]) == "cats"


def test_promoted_tokens_become_the_students_with_which_they_begin_each_once(student: PreTrainedTokenizerFast) -> None:
    both = Retokenizer(student, letters(), context=4)
    texts = ["", "</s>", "the", " cat", "then", "\ufffd"]
    the, cat = (student(text)["input_ids"][0] for text in ("the", " cat"))
    found = both.promoted(torch.tensor([[2, 4, 5, 3], [3, 1, 2, 0]]), texts, 3)
    assert found.tolist() == [[the, cat, -1], [cat, student.eos_token_id, the]]
    without = both.promoted(torch.tensor([[3, 2, 1, 0], [5, 0, 5, 0]]), texts, 2)
    assert without.tolist() == [[cat, the], [-1, -1]]
