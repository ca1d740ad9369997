"""Between the students' tokens and those of a base model with its own tokenizer, for the measurement of steering.

The base model reads what a student has written in its own tokens, and the tokens that its concepts promote stand for
the students' tokens with which their texts begin.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cocomix.tokens.encoding import ids_of, plain, spans_of


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
        """Encode in the base model's tokens what a student has written, int64 [rows, its tokens]."""
        whole, prompts = (
            self.student.batch_decode(each, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for each in (written, written[:, :prompt_tokens])
        )
        encoder = plain(self.base.backend_tokenizer)
        every = ids_of(encoder, whole, "what a model wrote")
        spans = spans_of(encoder, whole, "what a model wrote")
        length = min(self.context, max(1, *map(len, every)))
        ids = torch.full((len(every), length), int(self.base.eos_token_id))
        new = torch.zeros(len(every), length, dtype=torch.bool)
        for row, (tokens, places) in enumerate(zip(every, spans, strict=True)):
            begins = len(prompts[row].rstrip("\ufffd"))  # decoded alone, it may end within a character
            kept = tokens[-length:]
            ids[row, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
            new[row, : len(kept)] = torch.from_numpy(places[-length:, 1] > begins)
        return Retokenized(ids.to(written.device), new.to(written.device))

    def promoted(self, tokens: Tensor, texts: Sequence[str], most: int) -> Tensor:
        """The students' tokens with which the texts of the base model's begin: int64 [concepts, at most `most`].

        All concepts have the same number, each token once. What is a part of a character is left out.

        Args:
            tokens: of the base model, best first, [concepts, candidates].
            texts: the text of each of its tokens.
        """
        used = sorted({token for token in tokens.flatten().tolist() if texts[token] and "\ufffd" not in texts[token]})
        encoded = ids_of(plain(self.student.backend_tokenizer), [texts[token] for token in used], "a token")
        first = {token: ids[0] for token, ids in zip(used, encoded, strict=True) if ids}
        end = int(self.student.eos_token_id)
        first[int(self.base.eos_token_id)] = end
        of_concepts = ([first[token] for token in row if token in first] or [end] for row in tokens.tolist())
        found = [list(dict.fromkeys(row)) for row in of_concepts]
        width = min(most, *map(len, found))
        return torch.tensor([row[:width] for row in found])
