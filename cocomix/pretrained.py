"""Load pretrained models and tokenizers from the hub or a folder, without running code that comes with them.

Remote code is not trusted, and weights are read from safetensors only: a pickle can hold code.
"""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cocomix.plumbing import interrupt
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.foreign import bounded, check_config, look_at

MAX_VOCABULARY = 1 << 22
"""Upper bound of a tokenizer's ids, exclusive: a model has a row of weights for each."""
TRIAL_SECONDS, TRIAL_BYTES = 60, 4 << 30
"""Limits of CPU time and memory for loading a tokenizer and trying it on a few texts."""
TRIAL_TEXTS = (
    "The quick brown fox, 3.14159 and naïve_variable2.\n\n\tIt's 敏捷的棕色狐狸 \U0001f600!",
    *(each * 2000 for each in ("a", "A", "0", " ", "\n", ".", "e\u0301", "猫", "\U0001f600", "ab", "a ", "a1", "x\n")),
    *("".join([each * 40, end]) for each in ("a", "0", " ", "ab") for end in ("!", "\n", "b", "0")),
)
"""Texts for the trial; some are long runs, on which a backtracking pattern takes practically forever."""

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
    from transformers.models.auto.auto_factory import _BaseAutoModelClass


def load_config(key: str, name: str, revision: str | None, *, local: bool = False) -> "PreTrainedConfig":
    """Load the configuration of a model.

    Args:
        key: the parameter that holds `name`, for errors.
        name: hub id or folder.
        local: whether to download nothing.

    Raises:
        UserError: in one line, when none is found, or it is refused by `check_config`.
    """
    from transformers import AutoConfig

    with _one_line(key, name):
        check_config(name, revision, local=local)
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False, local_files_only=local)


def check_files(key: str, name: str, revision: str | None) -> None:
    """Check the configuration and the weight files of a model without loading them: see `look_at`.

    Args:
        key: the parameter that holds `name`, for errors.
        name: hub id or folder.

    Raises:
        UserError: in one line, when one is missing, damaged, or of a kind that is not read.
    """
    with _one_line(key, name):
        look_at(name, revision)


def load_model(key: str, name: str, revision: str | None, dtype: "torch.dtype | Literal['auto']") -> "PreTrainedModel":
    """Load a causal language model.

    Args:
        key: the parameter that holds `name`, for errors.
        name: hub id or folder.

    Raises:
        UserError: in one line, when no model is found, or weights are missing, which would be initialised randomly.
    """
    import torch

    with _one_line(key, name):
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
            ignore_mismatched_sizes=True,  # they are reported, and refused below
            output_loading_info=True,
        )
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
    """Load a tokenizer after a trial in a separate process, since a crafted one may never finish.

    Raises:
        UserError: in one line, when no tokenizer is found, or the trial exceeds `TRIAL_SECONDS` or `TRIAL_BYTES`.
    """
    for path in Path(name).iterdir() if Path(name).is_dir() else ():
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"{key}: {name!r}: {path.name} is a pipe, socket or device: reading it may never end")
    from huggingface_hub import constants

    context = get_context("forkserver")
    context.set_forkserver_preload(["transformers.models.auto.tokenization_auto"])
    ours, theirs = context.Pipe(duplex=False)
    trial = context.Process(
        target=_try_tokenizer, args=(theirs, constants.HF_HUB_OFFLINE, key, name, revision), daemon=True
    )
    trial.start()
    theirs.close()
    try:
        trouble = ours.recv()
    except EOFError:  # the process was killed
        trouble = (
            f"{key}: {name!r}: its tokenizer cannot be loaded and tried within {TRIAL_SECONDS} s and "
            f"{TRIAL_BYTES >> 30} GB: it is damaged, or meant to do harm"
        )
    trial.join()
    interrupt.check()
    if trouble:
        raise UserError(trouble)
    return _tokenizer(key, name, revision)


def _try_tokenizer(answer: Connection, offline: bool, key: str, name: str, revision: str | None) -> None:
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = offline  # the parent's current value
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads need additional memory
    resource.setrlimit(resource.RLIMIT_CPU, (TRIAL_SECONDS, TRIAL_SECONDS))
    resource.setrlimit(resource.RLIMIT_DATA, (TRIAL_BYTES, TRIAL_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # suppresses Rust's panic messages
    try:
        tokenizer = _tokenizer(key, name, revision)
        for text in TRIAL_TEXTS:
            try:
                _try(tokenizer, text)
            except MemoryError:
                raise
            except Exception:  # it need not encode every character; encoding the corpus reports its failures
                continue
        answer.send("")
    except UserError as error:
        answer.send(str(error))
    except BaseException:  # any kind, Rust's panics included
        os._exit(1)


def _try(tokenizer: "PreTrainedTokenizerFast", text: str) -> None:
    """Encode and decode a text, and ask it as a question: a chat template is a program with loops."""
    tokenizer.decode(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if tokenizer.chat_template:
        question = [{"role": "user", "content": text}]
        tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)


def _tokenizer(key: str, name: str, revision: str | None) -> "PreTrainedTokenizerFast":
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise unreadable(key, name, "tokenizer", error) from None
    vocabulary = tokenizer.get_vocab()
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    if not any(token.strip("\u2581") for token in vocabulary.keys() - added - set(tokenizer.all_special_tokens)):
        raise UserError(f"{key}: {name!r}: its tokenizer knows no text: tokenizer.json is missing")
    largest = max(vocabulary, key=lambda token: vocabulary[token])
    if vocabulary[largest] >= MAX_VOCABULARY:
        allowed = f"allowed: below {MAX_VOCABULARY:,}"
        raise UserError(f"{key}: {name!r}: its token {largest[:40]!r} has the id {vocabulary[largest]:,}; {allowed}")
    return tokenizer


def _auto_class(name: str, revision: str | None) -> "tuple[type[_BaseAutoModelClass], PreTrainedConfig]":
    """The auto class and configuration of a language model, or of an image-text model with one as its text part."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    # The decoder of an encoder-decoder could be loaded alone, but it was trained to attend to an encoder.
    if not config.is_encoder_decoder:
        for kind in (AutoModelForCausalLM, AutoModelForImageTextToText):
            if type(config) in kind._model_mapping:
                return kind, config
    raise UserError(f"a {config.model_type} is no causal language model")


def _text_part(key: str, name: str, model: "PreTrainedModel") -> "PreTrainedModel":
    """The language model within an image-text model; other models are returned unchanged.

    Raises:
        UserError: when the text part alone does not compute the same logits.
    """
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedConfig

    config = getattr(model.config, "text_config", None)
    if not isinstance(config, PreTrainedConfig):
        return model
    ids = torch.arange(1, 5)[None]
    with torch.no_grad(), suppress(Exception):  # any kind: the two classes may be incompatible in any way
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


@contextmanager
def _one_line(key: str, name: str) -> Iterator[None]:
    """Turn any error of reading a model into a `UserError` that names the parameter."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {name!r}: {error}") from None
    except Exception as error:  # any kind: the libraries that read the files raise it
        raise unreadable(key, name, "model", error) from None


def unreadable(key: str, name: str, what: str, error: Exception) -> UserError:
    """The error for a model or tokenizer (`what`) that cannot be read because of `error`, in one line."""
    kind = "folder" if Path(name).is_dir() else "hub id or folder"
    reason = (str(error).strip() or "unreadable").splitlines()[0]
    if not isinstance(error, OSError | ValueError):
        reason = f"{type(error).__name__}: {reason}"
    return UserError(f"{key}: {name!r}: no {what} can be loaded from this {kind}: {reason}")
