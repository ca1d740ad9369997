"""Between the students' tokens and those of a base model with its own tokenizer, for the measurement of steering.

The base model reads what a student has written in its own tokens, and the tokens that its concepts promote stand for
the students' tokens with which their texts begin.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cocomix.tokens.encoding import ids_and_spans_of, ids_of, plain


class Retokenized(NamedTuple):
    """Texts in the base model's tokens."""

    ids: Tensor
    """int64 [rows, tokens], padded with EOS at the end."""
    new: Tensor
    """Whether a token is of what a student has written after its prompt: bool [rows, tokens]."""


class Retokenizer(NamedTuple):
    """Two tokenizers."""

    student: PreTrainedTokenizerFast
    base: PreTrainedTokenizerFast
    context: int
    """Tokens that the base model reads at most; the last ones are kept."""

    def retokenized(self, written: Tensor, prompt_tokens: int) -> Retokenized:
        """Encode in the base model's tokens what a student has written, int64 [rows, its tokens]; EOS stays EOS."""
        encoder = plain(self.base.backend_tokenizer)
        rows = [self._row(encoder, row, prompt_tokens) for row in written.tolist()]
        length = min(self.context, max(1, *(len(row) for row in rows)))
        ids = torch.full((len(rows), length), int(self.base.eos_token_id))
        new = torch.zeros(len(rows), length, dtype=torch.bool)
        for number, row in enumerate(rows):
            kept = row[-length:]
            for place, (token, is_new) in enumerate(kept):
                ids[number, place], new[number, place] = token, is_new
        return Retokenized(ids.to(written.device), new.to(written.device))

    def _row(self, encoder: Tokenizer, written: list[int], prompt_tokens: int) -> list[tuple[int, bool]]:
        """The base model's tokens of a row, and whether each is new."""
        found: list[tuple[int, bool]] = []
        start = 0
        ends = [place for place, token in enumerate(written) if token == self.student.eos_token_id]
        for end in [*ends, len(written)]:  # documents
            text, prompt = (self._text(written[start:stop]) for stop in (end, max(start, min(end, prompt_tokens))))
            begins = len(prompt.rstrip("\ufffd"))  # decoded alone, it may end within a character
            tokens, spans = ids_and_spans_of(encoder, text, "what a model wrote")
            found += zip(tokens, (spans[:, 1] > begins).tolist(), strict=True)
            if end < len(written):
                found.append((int(self.base.eos_token_id), end >= prompt_tokens))
            start = end + 1
        return found

    def _text(self, ids: list[int]) -> str:
        text: str = self.student.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def promoted(self, tokens: Tensor, texts: Sequence[str], most: int) -> Tensor:
        """The students' tokens with which the texts of the base model's begin: int64 [concepts, `most`].

        A concept has each token once; -1: it has no more. Parts of characters are left out.

        Args:
            tokens: of the base model, best first, [concepts, candidates].
            texts: the text of each of its tokens.
        """
        used = sorted({token for token in tokens.flatten().tolist() if texts[token] and "\ufffd" not in texts[token]})
        encoded = ids_of(plain(self.student.backend_tokenizer), [texts[token] for token in used], "a token")
        first = {token: ids[0] for token, ids in zip(used, encoded, strict=True) if ids}
        first[int(self.base.eos_token_id)] = int(self.student.eos_token_id)
        found = torch.full((len(tokens), most), -1)
        for concept, row in enumerate(tokens.tolist()):
            own = list(dict.fromkeys(first[token] for token in row if token in first))[:most]
            found[concept, : len(own)] = torch.tensor(own, dtype=torch.int64)
        return found
