"""An lm-eval model with our scoring of continuations; imported only when tasks are scored (see `downstream`)."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cocomix.evaluation.downstream_likelihood import Likelihood, Request, log_likelihoods
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import runtime


class DownstreamLM(HFLM):
    """lm-eval's transformers model, with the log-likelihoods of `downstream_likelihood`.

    Several processes share the work of each request and all get all answers, so lm-eval runs as if each were alone.
    Generated text is not shared: each process generates all of it.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch_size: int) -> None:
        at_once = runtime().at_most(batch_size)
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=at_once)
        self.begin("", None)
        self._encoded: dict[str, list[int]] = {}
        self._lengths: list[int] = []

    def begin(self, task: str, kept: Path | None) -> None:
        """Start another task.

        Args:
            task: description for the progress bar.
            kept: see `cocomix.plumbing.parts.Summing`.
        """
        self.task, self._kept, self._asked = task, kept, 0
        self.cut: set[int] = set()
        """Documents with a request that exceeds the model's context."""

    def loglikelihood(self, requests: Sequence[Instance], **_: Any) -> list[Likelihood]:
        """The log-likelihood of each continuation, and whether greedy decoding would generate it.

        Raises:
            UserError: for an empty continuation.
        """
        self._encode_together({text for each in requests for text in (each.args[0].rstrip(), "".join(each.args))})
        answers: list[Likelihood] = super().loglikelihood(requests, disable_tqdm=True)
        self._encoded = {}
        lengths = zip(requests, self._lengths, strict=True)
        self.cut = {each.doc_id for each, length in lengths if length > self.max_length}
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Instance], **_: Any) -> list[float]:
        """The log-likelihood of each text, in disjoint windows, each conditioned on the token before it."""
        found = [0.0] * len(requests)
        windows = [
            (number, *make_disjoint_window(window))
            for number, each in enumerate(requests)
            for window in get_rolling_token_windows(
                self.tok_encode(each.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
        ]
        for window, answer in zip(windows, self._loglikelihood_tokens(windows), strict=True):
            found[window[0]] += answer.log_likelihood
        return found

    def generate_until(self, requests: Sequence[Instance], **_: Any) -> list[str]:
        """The text that the model generates, by lm-eval's own code.

        Raises:
            UserError: when the text to generate does not fit into the model's context.
        """
        try:
            written: list[str] = super().generate_until(requests, disable_tqdm=True)
        except AssertionError as error:
            raise UserError(f"{self.task}: {error}") from error
        return written

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, *args: Any, **kwargs: Any) -> list[int]:
        """Token ids, equal to lm-eval's."""
        if add_special_tokens is None and string in self._encoded:
            return self._encoded[string]
        return super().tok_encode(string, add_special_tokens, *args, **kwargs)

    def _encode_together(self, texts: Iterable[str]) -> None:
        """Encode many texts at once in the tokenizer's threads, except the few that lm-eval encodes differently."""
        prefix = self.tokenizer.decode(self.prefix_token_id)
        plain = [text for text in texts if text and not text.startswith(prefix)]
        ids = self.tokenizer(plain, return_attention_mask=False, verbose=False)["input_ids"] if plain else []
        self._encoded = dict(zip(plain, ids, strict=True))

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[Likelihood]:
        for text, _, continuation in requests:
            if not continuation:
                raise UserError(f"{self.task}: an answer is empty: there is no token to score after {text[0][-60:]!r}")
        wanted = [Request(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        self._lengths = [len(context) + len(continuation) - 1 for context, continuation in wanted]
        batch_tokens = self.batch_size * self.max_length
        kept = self._kept and self._kept.with_name(f"{self._kept.name}-{self._asked}")
        self._asked += 1
        return log_likelihoods(self.model, wanted, self.max_length, batch_tokens, self.task, kept)
