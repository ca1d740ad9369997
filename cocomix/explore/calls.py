"""A continuation as a call that can be typed, in Python and in a shell."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from cocomix.steering.syntax import Written
from cocomix.steering.writing import Sampling


def python_call(folder: Path, text: str, edits: Sequence[Written], sampling: Sampling) -> str:
    """A program that prints the continuation."""
    kinds = sorted({type(each).__name__ for each in edits})
    drawn = f"do_sample=True, temperature={sampling.temperature}" if sampling.temperature else "do_sample=False"
    lines = [
        "from pathlib import Path",
        "",
        "import torch",
        "",
        *([f"from cocomix.steering import {', '.join(kinds)}"] if kinds else []),
        "from cocomix.steering.project import load_model",
        "",
        f"model, tokenizer = load_model(Path({str(folder)!r}))",
        f"ids = tokenizer({text!r}, return_tensors='pt').input_ids.to(model.device)",
        f"torch.manual_seed({sampling.seed})",
        "written = model.generate(",
        "    ids,",
        "    attention_mask=torch.ones_like(ids),",
        f"    max_new_tokens={sampling.tokens},",
        "    pad_token_id=tokenizer.eos_token_id,",
        f"    {drawn},",
        *([f"    concept_edits=[{', '.join(map(repr, edits))}],"] if edits else []),
        ")",
        "print(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))",
    ]
    return "\n".join(lines) + "\n"


def shell_call(
    folder: Path, artifacts: Path, text: str, edits: Sequence[str], sampling: Sampling, *, before_selection: bool
) -> str:
    """A command that shows the continuation beside the original one; without edits, that one alone."""
    options = ["--model", str(folder), "--artifacts", str(artifacts), "--tokens", str(sampling.tokens)]
    options += ["--temperature", str(sampling.temperature)] if sampling.temperature else ["--greedy"]
    options += ["--seed", str(sampling.seed)]
    if edits:
        options += ["--edit", *edits, *(["--before-selection"] if before_selection else [])]
    command = ["python", "-m", "cocomix", "steer" if edits else "generate"]
    # What begins with a dash would be taken for an option.
    return shlex.join([*command, *options, "--", text] if text.startswith("-") else [*command, text, *options])
