"""Models and tokenizers of others, from the hub or a folder: read, never run.

Code that lies beside a model is not trusted, and weights are read from safetensors only: a pickle can hold code.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cocomix.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def load_model(key: str, name: str, revision: str | None, dtype: "torch.dtype | Literal['auto']") -> "PreTrainedModel":
    """A causal language model.

    Args:
        key: the parameter that `name`, a hub id or a folder, is from: for the error.

    Raises:
        UserError: in one line, when there is none, or its weights are not whole: what is missing would be random.
    """
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported, and refused below
            output_loading_info=True,
        )
    except Exception as error:  # of any kind: it comes from whatever reads the files
        raise unreadable(key, name, "model", error) from None
    troubles = {
        "has no weights for": report["missing_keys"],
        "has weights of other shapes than its config.json says:": [each for each, *_ in report["mismatched_keys"]],
        "has weights that are not finite:": [each for each, it in model.named_parameters() if not it.isfinite().all()],
    }
    for trouble, names in troubles.items():
        if names:
            raise UserError(f"{key}: {name!r} {trouble} {min(names)}, one of {len(names)}: it is damaged, or not whole")
    return model


def load_tokenizer(key: str, name: str, revision: str | None) -> "PreTrainedTokenizerFast":
    """A tokenizer.

    Raises:
        UserError: in one line, when there is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise unreadable(key, name, "tokenizer", error) from None
    if not tokenizer.encode("a", add_special_tokens=False):
        raise UserError(f"{key}: {name!r}: its tokenizer knows no text: tokenizer.json is missing")
    return tokenizer


def unreadable(key: str, name: str, what: str, error: Exception) -> UserError:
    """What to say when `what`, a model or a tokenizer, cannot be read for `error`, in one line."""
    kind = "folder" if Path(name).is_dir() else "hub id or folder"
    reason = (str(error).strip() or "unreadable").splitlines()[0]
    if not isinstance(error, OSError | ValueError):
        reason = f"{type(error).__name__}: {reason}"
    return UserError(f"{key}: {name!r}: no {what} can be loaded from this {kind}: {reason}")
