"""Labels by a language model, and their scores (Bills et al. 2023; Paulo et al. 2024, arXiv 2410.13928).

The model reads the strongest contexts of a concept and names what they have in common. Then it judges held-out contexts
by that label. Any causal language model of transformers will do; its chat template is used if it has one.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from cocomix.base.loading import longest_context
from cocomix.corpus.splits import Split
from cocomix.explain.firings import Firings, ScanResult, rank_within
from cocomix.explain.scan import ids_around
from cocomix.params import ExplainModelParams, ExplainParams
from cocomix.plumbing.artifact import Work
from cocomix.plumbing.device import device
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.parts import Advance, in_parts
from cocomix.pretrained import load_model, load_tokenizer
from cocomix.tokens.windows import Tokens

WRITE = """Below are excerpts from texts. In each, a part of a language model that stands for one idea is most active
at the word between << and >>.

{excerpts}

Name the idea in at most ten words, such as: words of time. Answer with the name only."""

JUDGE = """A part of a language model stands for one idea: {label}

In the following excerpt, is the word between << and >> an example of that idea?

{excerpt}

Answer yes or no."""

CONCEPTS = 4
"""Number of concepts per part: the unit of resuming."""
PROMPTS = 16
"""Number of prompts per forward pass."""
LONGEST = 100
"""Maximum characters of a label."""
NEW_TOKENS = 32
"""Maximum tokens of a label."""


class Answers(BaseModel):
    """The model's answers about some concepts, kept as a file in scratch."""

    labels: dict[int, str] = {}
    firing: dict[int, list[float]] = {}
    """Log-odds of `yes` against `no`, in nats, for held-out contexts in which the concept fires."""
    others: dict[int, list[float]] = {}


class LabelModel:
    """A language model that answers questions.

    Raises:
        UserError: when it cannot be loaded.
    """

    def __init__(self, params: ExplainModelParams) -> None:
        name = str(params.name)
        self._tokenizer = load_tokenizer("explain.model.name", name, params.revision)
        model = load_model("explain.model.name", name, params.revision, "auto")
        if len(self._tokenizer) > model.config.vocab_size:
            raise UserError(
                f"explain.model.name: {name!r}: its tokenizer has {len(self._tokenizer)} tokens, the model "
                f"{model.config.vocab_size}: they are of different models"
            )
        self._longest = longest_context(model.config)
        self._model = model.requires_grad_(False).eval().to(device())
        self._tokenizer.padding_side = "left"  # generation continues at the right end
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token
        yes, no = (self._first_tokens(word) for word in ("yes", "no"))
        # A tokenizer with a token for the space gives both words the same first token.
        self._yes, self._no = sorted(yes - no), sorted(no - yes)

    def write(self, excerpts: Sequence[Sequence[str]]) -> list[str]:
        """Write a label for each concept from its excerpts."""
        prompts = [WRITE.format(excerpts="\n".join(f"- {each}" for each in every)) for every in excerpts]
        labels: list[str] = []
        for some in _batches(prompts):
            found = self._generate(some, NEW_TOKENS)
            answers = found.sequences[:, -len(found.logits) :]  # logits: one entry for each new token
            labels += map(label_in, self._tokenizer.batch_decode(answers, skip_special_tokens=True))
        return labels

    def judge(self, label: str, excerpts: Sequence[str]) -> list[float]:
        """Log-odds, in nats, that each excerpt is an example of the label: log p(yes) - log p(no)."""
        scores: list[float] = []
        for some in _batches([JUDGE.format(label=label, excerpt=each) for each in excerpts]):
            logits = self._generate(some, 1).logits[0].float()
            scores += (logits[:, self._yes].logsumexp(1) - logits[:, self._no].logsumexp(1)).tolist()
        return scores

    @torch.no_grad()
    def _generate(self, prompts: Sequence[str], tokens: int) -> Any:
        has_chat = bool(self._tokenizer.chat_template)
        prompts = self._as_questions(prompts) if has_chat else [f"{each}\n\nAnswer:" for each in prompts]
        batch = self._tokenizer(
            list(prompts),
            return_tensors="pt",
            padding=True,
            add_special_tokens=not has_chat,
            split_special_tokens=not has_chat,  # a template spells special tokens; in a plain prompt they are text
        )
        if self._longest and (needed := batch["input_ids"].shape[1] + tokens) > self._longest:
            raise UserError(
                f"explain.model: the model reads {self._longest} tokens, the questions take {needed}: choose another "
                "one, or fewer explain.model.contexts"
            )
        return self._model.generate(
            input_ids=batch["input_ids"].to(device()),
            attention_mask=batch["attention_mask"].to(device()),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=self._tokenizer.pad_token_id,
            return_dict_in_generate=True,
            output_logits=True,
        )

    def _as_questions(self, prompts: Sequence[str]) -> list[str]:
        turns = [[{"role": "user", "content": each}] for each in prompts]
        try:
            asked: list[str] = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # any kind: a template is a program
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            raise UserError(
                f"explain.model: its chat template takes no question: {type(error).__name__}: {reason}"
            ) from None
        return asked

    def _first_tokens(self, word: str) -> set[int]:
        spellings = [f"{space}{each}" for space in ("", " ") for each in (word, word.capitalize())]
        return {self._tokenizer(each, add_special_tokens=False)["input_ids"][0] for each in spellings}


def ask(
    work: Work, train: ScanResult, held_out: ScanResult, texts: Sequence[str], tokens: Tokens, params: ExplainParams
) -> Answers:
    """Label the most frequent concepts with the model, and judge held-out contexts by the labels.

    The processes share the concepts; each returns all answers.
    """
    ordered = train.counts.argsort(descending=True, stable=True)
    wanted = ordered[train.counts[ordered] > 0].tolist()[: params.model.concepts]
    parts = [wanted[start : start + CONCEPTS] for start in range(0, len(wanted), CONCEPTS)]
    files = [work.scratch / f"labels-{number:05d}.json" for number in range(len(parts))]
    asked = _Excerpts(train, held_out, texts, tokens, params)

    @cache
    def loaded() -> LabelModel:
        model = LabelModel(params.model)
        work.confirm_inputs()
        return model

    def answered(concepts: list[int], _advance: Advance) -> bytes:
        model = loaded()
        labels = model.write([asked.strongest(concept) for concept in concepts])
        pairs = dict(zip(concepts, labels, strict=True))
        answers = Answers(
            labels=pairs,
            firing={concept: model.judge(label, asked.firing(concept)) for concept, label in pairs.items()},
            others={concept: model.judge(label, asked.others(concept)) for concept, label in pairs.items()},
        )
        return answers.model_dump_json().encode()

    in_parts(dict(zip(files, parts, strict=True)), answered, len, "explain: labels", "concepts")
    return _joined(files)


def label_in(answer: str) -> str:
    """Extract the label from an answer: its first non-empty line, without quotes and full stop."""
    lines = [line.strip(" \t-*\"'`.") for line in answer.splitlines()]
    return next(filter(None, lines), "")[:LONGEST].strip()


class _Excerpts:
    """Contexts of concepts as text, with the firing token marked."""

    def __init__(
        self, train: ScanResult, held_out: ScanResult, texts: Sequence[str], tokens: Tokens, params: ExplainParams
    ) -> None:
        self._texts, self._tokens, self._params = texts, tokens, params
        self._strongest = _first(train.strongest, params.model.contexts)
        self._firing = _first(held_out.sample, params.model.judged)
        self._background, self._background_fires = held_out.background, held_out.background_fires

    def strongest(self, concept: int) -> list[str]:
        return self._marked("train", self._strongest.places[self._strongest.concepts == concept])

    def firing(self, concept: int) -> list[str]:
        return self._marked("validation", self._firing.places[self._firing.concepts == concept])

    def others(self, concept: int) -> list[str]:
        silent = self._background[~self._background_fires[:, concept]]
        # Evenly spaced, since the background is in the order of the text.
        chosen = torch.linspace(0, len(silent) - 1, min(self._params.model.judged, len(silent))).long()
        return self._marked("validation", silent[chosen])

    def _marked(self, split: Split, places: Tensor) -> list[str]:
        before, after = self._params.before, self._params.after
        excerpts = []
        for ids in ids_around(self._tokens, split, places, before, after).tolist():
            pieces = [self._texts[each] if each >= 0 else "" for each in ids]
            pieces[before] = f"<<{pieces[before]}>>"
            excerpts.append(" ".join("".join(pieces).split()))
        return excerpts


def _first(firings: Firings, most: int) -> Firings:
    return firings.at(rank_within(firings.concepts) < most)


def _batches(prompts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(prompts), PROMPTS):
        yield prompts[start : start + PROMPTS]


def _joined(files: Sequence[Path]) -> Answers:
    parts = [Answers.model_validate_json(file.read_bytes()) for file in files]
    return Answers(
        labels={concept: label for part in parts for concept, label in part.labels.items()},
        firing={concept: scores for part in parts for concept, scores in part.firing.items()},
        others={concept: scores for part in parts for concept, scores in part.others.items()},
    )
