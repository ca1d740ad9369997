"""Models, tokenizers and autoencoders that something is wrong with, made from those of a finished project."""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from cocomix.plumbing.artifact import Artifact
from cocomix.sae.autoencoder import SparseAutoencoder
from cocomix.sae.formats import save_for

MARK = "executed"
"""A file in the working directory that code which must not run would leave."""


class Evil:
    """Unpickled, it runs a command."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {MARK}",)


def changed(**fields: Any) -> Callable[[Path], None]:
    """Change a model's configuration."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def cut(name: str, share: float) -> Callable[[Path], None]:
    return lambda folder: (
        (folder / name).write_bytes((whole := (folder / name).read_bytes())[: int(len(whole) * share)]) and None
    )


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def holding(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def weights(
    edit: Callable[[dict[str, torch.Tensor]], object], name: str = "model.safetensors"
) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / name)
        edit(tensors)
        save_file(tensors, folder / name, {"format": "pt"})

    return change


def pickled(folder: Path) -> None:
    """Weights as a pickle that runs a command."""
    (folder / "model.safetensors").unlink()
    torch.save({"a": Evil()}, folder / "pytorch_model.bin")


def with_code(folder: Path) -> None:
    """A model, or tokenizer, that is defined by a program beside it."""
    classes = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": ["evil.T", "evil.T"]}
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        content = json.loads(path.read_text()) | {"auto_map": classes, "model_type": "evil", "tokenizer_class": "Evil"}
        path.write_text(json.dumps(content))
    (folder / "evil.py").write_text(f"open({MARK!r}, 'w')\n")


def encoder(folder: Path) -> None:
    """A model that sees what it is to predict."""
    from transformers import BertConfig, BertLMHeadModel

    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=512, initializer_range=0.5, **shape)  # type: ignore[arg-type]
    BertLMHeadModel(config).save_pretrained(folder)


MODELS: Mapping[str, Callable[[Path], None]] = {
    "no-config": without("config.json"),
    "torn-config": holding("config.json", b"{"),
    "no-type": holding("config.json", b"{}"),
    "unknown-type": changed(model_type="foo"),
    "t5": changed(model_type="t5"),
    "no-weights": without("model.safetensors"),
    "cut-weights": cut("model.safetensors", 0.5),
    "other-weights": holding("model.safetensors", b"garbage" * 99),
    "empty-weights": holding("model.safetensors", b""),
    "deeper": changed(n_layer=5),
    "wider": changed(n_embd=64),
    "one-lost": weights(lambda tensors: tensors.pop("transformer.h.1.mlp.c_fc.weight")),
    "not-finite": weights(lambda tensors: tensors["transformer.h.1.mlp.c_fc.weight"].fill_(torch.nan)),
    "encoder": encoder,
    "pickled": pickled,
    "with-code": with_code,
    "no-tokenizer": lambda folder: [each.unlink() for each in folder.glob("tokenizer*")] and None,
}

TOKENIZERS: Mapping[str, Callable[[Path], None]] = {
    "torn": holding("tokenizer.json", b"{"),
    "empty": holding("tokenizer.json", b"{}"),
    "binary": holding("tokenizer.json", b"\xff\xfe\0"),
    "cut": cut("tokenizer.json", 0.5),
    "torn-config": holding("tokenizer_config.json", b"{"),
    "list-config": holding("tokenizer_config.json", b"[]"),
    "config-alone": without("tokenizer.json"),
}


def configured(**fields: Any) -> Callable[[Path], None]:
    """Change an autoencoder's configuration."""

    def change(folder: Path) -> None:
        path = folder / "cfg.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


WEIGHTS = "sae_weights.safetensors"
AUTOENCODERS: Mapping[str, Callable[[Path], None]] = {
    "no-config": without("cfg.json"),
    "torn-config": holding("cfg.json", b"{"),
    "list-config": holding("cfg.json", b"[]"),
    "text-width": configured(d_in="x"),
    "negative-width": configured(d_in=-1),
    "few-latents": configured(d_sae=9),
    "text-k": configured(k="x"),
    "no-k": configured(k=0),
    "unknown-kind": configured(architecture="foo"),
    "other-layer": configured(metadata={"hook_name": "blocks.9.hook_resid_post"}),
    "number-hook": configured(metadata={"hook_name": 3}),
    "list-metadata": configured(metadata=[1]),
    "cut-weights": cut(WEIGHTS, 0.5),
    "pickled-weights": holding(WEIGHTS, pickle.dumps(Evil())),
    "not-finite": weights(lambda tensors: tensors["W_enc"].fill_(torch.nan), WEIGHTS),
}


def make_all(project: Path) -> None:
    """Folders models/, tokenizers/, autoencoders/ and texts in a project."""
    for name, spoil in MODELS.items():
        folder = project / "models" / name
        shutil.copytree(project / "artifacts/base", folder)
        spoil(folder)
    for name, spoil in TOKENIZERS.items():
        folder = project / "tokenizers" / name
        shutil.copytree(project / "artifacts/tokens/tokenizer", folder)
        spoil(folder)
    sae = SparseAutoencoder.load(Artifact(project / "artifacts/sae").verified())
    for name, spoil in AUTOENCODERS.items():
        folder = project / "autoencoders" / name
        save_for(sae, folder, "sae-lens")
        spoil(folder)
    (project / "autoencoders/evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"activation": Evil()}, project / "autoencoders/evil-zip.pt")
    (project / "autoencoders/empty.pt").touch()
    torch.save([1], project / "autoencoders/list.pt")
    torch.save({"activation": "TopK", "activation_state_dict": 3}, project / "autoencoders/no-activation.pt")
    torch.save(
        {"activation": "TopK", "activation_state_dict": {"k": 1}, "latent_bias": 3}, project / "autoencoders/number.pt"
    )
    texts = {
        "empty.txt": b"",
        "mark.txt": b"\xef\xbb\xbf",
        "same.jsonl": b'{"text": "same"}\n' * 50,
        "number.jsonl": b'{"text": "x", "n": ' + b"9" * 5000 + b"}\n",
        "deep.jsonl": b'{"text": ' + b"[" * 100_000 + b"}\n",
        "nan.jsonl": b'{"text": NaN}\n',
        "words.txt.gz": b"words",
        "words.txt.zst": b"words",
        "empty.parquet": b"",
        "short.txt": b"a b c\n\n" * 3,
    }
    (project / "bad").mkdir()
    for name, content in texts.items():
        (project / "bad" / name).write_bytes(content)
    (project / "bad/folder.txt").mkdir()
