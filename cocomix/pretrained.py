"""Models and tokenizers of others, from the hub or a folder: read, never run.

Code that lies beside a model is not trusted, and weights are read from safetensors only: a pickle can hold code.
"""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cocomix.errors import UserError
from cocomix.foreign import bounded, look_at

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
    from transformers.models.auto.auto_factory import _BaseAutoModelClass


def load_model(key: str, name: str, revision: str | None, dtype: "torch.dtype | Literal['auto']") -> "PreTrainedModel":
    """A causal language model.

    Args:
        key: the parameter that `name`, a hub id or a folder, is from: for the error.

    Raises:
        UserError: in one line, when there is none, or its weights are not whole: what is missing would be random.
    """
    import torch

    try:
        held = look_at(name, revision)
        kind, config = _auto_class(name, revision)
        with torch.device("meta"), bounded(held):
            kind.from_config(config)
        model, report = kind.from_pretrained(
            name,
            revision=revision,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported, and refused below
            output_loading_info=True,
        )
    except UserError as error:
        raise UserError(f"{key}: {name!r}: {error}") from None
    except Exception as error:  # of any kind: it comes from whatever reads the files
        raise _unreadable(key, name, "model", error) from None
    troubles = {
        "has no weights for": report["missing_keys"],
        "has weights of other shapes than its config.json says:": [each for each, *_ in report["mismatched_keys"]],
        "has weights that are not finite:": [each for each, it in model.named_parameters() if not it.isfinite().all()],
    }
    for trouble, names in troubles.items():
        if names:
            raise UserError(f"{key}: {name!r} {trouble} {min(names)}, one of {len(names)}: it is damaged, or not whole")
    return _text_part(key, name, model)


def load_tokenizer(key: str, name: str, revision: str | None) -> "PreTrainedTokenizerFast":
    """A tokenizer.

    Raises:
        UserError: in one line, when there is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise _unreadable(key, name, "tokenizer", error) from None
    if not tokenizer.encode("a", add_special_tokens=False):
        raise UserError(f"{key}: {name!r}: its tokenizer knows no text: tokenizer.json is missing")
    return tokenizer


def _auto_class(name: str, revision: str | None) -> "tuple[type[_BaseAutoModelClass], PreTrainedConfig]":
    """What loads a language model, or one of text and images whose text part is one; and its configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    # Its decoder alone could be loaded, which has learned to read an encoder.
    if not config.is_encoder_decoder:
        for kind in (AutoModelForCausalLM, AutoModelForImageTextToText):
            if type(config) in kind._model_mapping:
                return kind, config
    raise UserError(f"a {config.model_type} is no causal language model")


def _text_part(key: str, name: str, model: "PreTrainedModel") -> "PreTrainedModel":
    """Of a model of text and images, the language model in it; any other as it is.

    Raises:
        UserError: when that is no language model of its own.
    """
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedConfig

    config = getattr(model.config, "text_config", None)
    if not isinstance(config, PreTrainedConfig):
        return model
    ids = torch.arange(1, 5)[None]
    with torch.no_grad(), suppress(Exception):  # of any kind: it comes from what either class expects of the other
        with torch.device("meta"):
            text = AutoModelForCausalLM.from_config(config)
        setattr(text, text.base_model_prefix, model.get_decoder())
        text.set_output_embeddings(model.get_output_embeddings())
        text.generation_config = model.generation_config
        expected, found = (each.eval()(input_ids=ids, use_cache=False).logits for each in (model, text))
        if torch.equal(found, expected):
            return text
    kind = type(model).__name__
    raise UserError(f"{key}: {name!r}: the text part of a {kind}, {config.model_type}, is no language model of its own")


def _unreadable(key: str, name: str, what: str, error: Exception) -> UserError:
    kind = "folder" if Path(name).is_dir() else "hub id or folder"
    reason = (str(error).strip() or "unreadable").splitlines()[0]
    if not isinstance(error, OSError | ValueError):
        reason = f"{type(error).__name__}: {reason}"
    return UserError(f"{key}: {name!r}: no {what} can be loaded from this {kind}: {reason}")
