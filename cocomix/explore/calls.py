"""Requests for a continuation, and the equivalent calls in Python and in a shell."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cocomix.explore import limits
from cocomix.explore.continuation import Sampling, checked_temperature
from cocomix.explore.edit_syntax import Written


class Continuation(BaseModel):
    """A text to continue."""

    model_config = ConfigDict(extra="forbid")

    text: limits.Text
    edits: Annotated[list[limits.Edit], Field(max_length=limits.EDITS)] = []
    before_selection: bool = False
    base: bool = False
    """Whether the base model continues the text, edited through its autoencoder."""
    tokens: int = Field(40, ge=1, le=limits.TEXT_CHARACTERS)
    temperature: Annotated[float, AfterValidator(checked_temperature)] = 0.8
    seed: int = Field(0, ge=0, lt=2**63)

    @property
    def sampling(self) -> Sampling:
        """The sampling settings."""
        return Sampling(self.tokens, self.temperature, self.seed)


def python_call(
    folder: Path, artifacts: Path, asked: Continuation, edits: Sequence[Written], *, own_tokenizer: bool = False
) -> str:
    """A Python program that prints the continuation.

    Args:
        own_tokenizer: whether the base model has a tokenizer of its own.
    """
    writer, listed = "base" if asked.base else "model", ", ".join(map(repr, edits))
    through, own = asked.base and bool(edits), "tokenizer" if own_tokenizer else "_"
    names = sorted({type(each).__name__ for each in edits})
    drawn = f"do_sample=True, temperature={asked.temperature}" if asked.temperature else "do_sample=False"
    generate = [
        f"written = {writer}.generate(",
        "    ids,",
        "    attention_mask=torch.ones_like(ids),",
        f"    max_new_tokens={asked.tokens},",
        "    pad_token_id=tokenizer.eos_token_id,",
        f"    {drawn},",
        *([f"    concept_edits=[{listed}],"] if edits and not asked.base else []),
        ")",
    ]
    lines = [
        "from pathlib import Path",
        "",
        "import torch",
        "",
        f"from cocomix.explore.load import {'load_extractor, ' if asked.base else ''}load_model",
        *([f"from cocomix.modeling import {', '.join(names)}"] if names else []),
        *(["from cocomix.steering.autoencoder import concepts_edited"] if through else []),
        "from cocomix.steering.reading import encode",
        "",
        f"model, tokenizer = load_model(Path({str(folder)!r}))",
        *([f"base, sae, _, {own} = load_extractor(Path({str(artifacts)!r}), model)"] if asked.base else []),
        f"ids = encode({writer}, {asked.text!r}, tokenizer)",
        f"torch.manual_seed({asked.seed})",
        *([f"with concepts_edited(base, sae, [{listed}]):"] if through else []),
        *(f"    {each}" if through else each for each in generate),
        "print(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))",
    ]
    return "\n".join(lines) + "\n"


def shell_call(folder: Path, artifacts: Path, asked: Continuation) -> str:
    """A command that shows the continuation beside the unedited one, or, without edits, the continuation alone."""
    options = ["--model", str(folder), "--artifacts", str(artifacts), "--tokens", str(asked.tokens)]
    options += ["--temperature", str(asked.temperature)] if asked.temperature else ["--greedy"]
    options += ["--seed", str(asked.seed), *(["--base"] if asked.base else [])]
    if asked.edits:
        options += ["--edit", *asked.edits, *(["--before-selection"] if asked.before_selection else [])]
    command = ["python", "-m", "cocomix", "steer" if asked.edits else "generate"]
    # A text that begins with a dash would be parsed as an option.
    text = asked.text
    return shlex.join([*command, *options, "--", text] if text.startswith("-") else [*command, text, *options])
