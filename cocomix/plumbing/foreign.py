"""Checks of model files from elsewhere before anything in them is loaded or allocated.

Files must be regular and hold plain tensors. Otherwise a configuration may ask for a million layers or for a program of
the hub, an index may point to another folder or a pickle, and a pipe may never end. The headers of the weight files
bound a model's size.
"""

import json
import reprlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from cocomix.plumbing.errors import UserError

JSON_BYTES = 1 << 26
"""Maximum size of a configuration or an index."""
LAYERS = 10_000
"""Maximum of layers, labels and the like in a configuration: transformers builds lists of that length first."""
NOT_READ = ("quantization_config", "transformers_weights")
"""Fields of a configuration that name another form of the weights."""
ATTENTION = ("eager", "sdpa")
"""Implementations of attention that a configuration may ask for: others can be programs, which are downloaded."""
PLAIN = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
"""safetensors' names of the dtypes of an unquantised model; masks and positions are integers."""


class Held(NamedTuple):
    """Content of the weight files."""

    tensors: int
    numbers: int


def check_regular(path: Path) -> None:
    """Check that a path is a regular file: reading a pipe or a device may block or never end.

    Raises:
        UserError: when it is not, or does not exist.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'no file, but something else' if path.exists() else 'no such file'}")


def read_json(path: Path) -> Any:
    """Read a small JSON file.

    Raises:
        UserError: when it is too large or not valid JSON, in one line.
    """
    check_regular(path)
    if (size := path.stat().st_size) > JSON_BYTES:
        raise UserError(f"{path}: has {size} bytes; such a file has at most {JSON_BYTES}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None


def look_at(name: str, revision: str | None) -> Held:
    """Check the configuration and the weight files of a model, without loading them.

    Args:
        name: hub id or folder.

    Raises:
        UserError: in one line, naming the file.
    """
    if Path(name).is_dir():
        for each in Path(name).iterdir():
            if not each.is_dir():
                check_regular(each)
    check_config(name, revision)
    if _found(name, "adapter_config.json", revision):
        raise UserError("adapter_config.json: adapters are not read, as they may name another model: give a whole one")
    return _held(name, revision)


def check_config(name: str, revision: str | None, *, local: bool = False) -> None:
    """Check the configuration of a model, before it is used.

    Args:
        name: hub id or folder.
        local: whether to download nothing.

    Raises:
        UserError: in one line, naming the file.
    """
    config, path = _read(name, "config.json", revision, local=local)
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds no configuration")
    _check_fields(config, path)


@contextmanager
def bounded(held: Held) -> Iterator[None]:
    """A context in which building a model, without memory, fails once it is far larger than its weight files.

    Raises:
        UserError: when the model has far more modules or numbers than the weight files hold.
    """
    modules, numbers = 0, 0

    def count(_parent: nn.Module, _name: str, _child: nn.Module | None) -> None:
        nonlocal modules
        modules += 1
        if modules > 200 + 8 * held.tensors:
            raise UserError(f"config.json asks for over {modules - 1} modules; the weights are {held.tensors} tensors")

    def weigh(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
        nonlocal numbers
        numbers += tensor.numel() if tensor is not None else 0
        if numbers > (1 << 30) + 4 * held.numbers:  # the constant allows for masks, which are not stored
            raise UserError(f"config.json asks for {numbers} numbers and more; the weights hold {held.numbers}")

    with ExitStack() as hooks:
        hooks.callback(register_module_module_registration_hook(count).remove)
        hooks.callback(register_module_parameter_registration_hook(weigh).remove)
        hooks.callback(register_module_buffer_registration_hook(weigh).remove)
        yield


def _read(name: str, file: str, revision: str | None, *, local: bool = False) -> tuple[Any, Path]:
    from transformers.utils import cached_file

    path = cached_file(name, file, revision=revision, local_files_only=local)
    if path is None:
        raise UserError(f"{file}: no such file")
    return read_json(Path(path)), Path(path)


def _found(name: str, file: str, revision: str | None) -> str | None:
    """The path of a file of a model; None: there is none."""
    from transformers.utils import cached_file

    path: str | None = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    return path


def _check_fields(fields: Any, path: Path) -> None:
    """Check a configuration, and the configurations nested in it."""
    for field, value in fields.items() if isinstance(fields, dict) else ():
        counts = any(word in str(field) for word in ("layer", "label", "block", "depth", "stage"))
        if counts and isinstance(value, int | float) and value > LAYERS:
            raise UserError(f"{path}: {field}: {reprlib.repr(value)}: allowed: at most {LAYERS}")
        if field in NOT_READ and value:
            raise UserError(f"{path}: {field}: not read; give the model's own weights, in 16 or 32 bits")
        if field in ("attn_implementation", "_attn_implementation") and value not in (None, *ATTENTION):
            allowed = f"allowed: {', '.join(ATTENTION)}, or no such field"
            raise UserError(f"{path}: {field}: {reprlib.repr(value)}: {allowed}")
        _check_fields(value, path)


def _held(name: str, revision: str | None) -> Held:
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

    names = [SAFE_WEIGHTS_NAME]
    if not _found(name, SAFE_WEIGHTS_NAME, revision):
        if not _found(name, SAFE_WEIGHTS_INDEX_NAME, revision):
            raise UserError(f"no {SAFE_WEIGHTS_NAME} or {SAFE_WEIGHTS_INDEX_NAME} there: other weights are not read")
        index, path = _read(name, SAFE_WEIGHTS_INDEX_NAME, revision)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(shards, dict) or not shards:
            raise UserError(f"{path}: weight_map: must say which file holds which tensor")
        names = sorted({str(each) for each in shards.values()})
        for each in names:
            if Path(each).name != each or not each.endswith(".safetensors"):
                raise UserError(f"{path}: names {reprlib.repr(each)}; allowed: .safetensors files beside it")
    tensors = numbers = 0
    for each in names:
        shard = _found(name, each, revision)
        if shard is None:
            raise UserError(f"{each}: missing")
        check_regular(Path(shard))
        with safe_open(shard, "pt") as file:
            for key in list(file.keys()):
                tensor = file.get_slice(key)
                if tensor.get_dtype() not in PLAIN:
                    raise UserError(f"{shard}: {key}: is of type {tensor.get_dtype()}; allowed: 16 or 32 bits")
                tensors, size = tensors + 1, 1
                for side in tensor.get_shape():
                    size *= side
                numbers += size
    return Held(tensors, numbers)
