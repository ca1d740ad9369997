"""The model card: README.md of a model's folder, as the Hugging Face hub shows it."""

from math import exp
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import ModelCardData
from transformers import PreTrainedConfig, PreTrainedModel

from cocomix.modeling.configuration_cocomix import ConceptFields
from cocomix.models.accounting import parameters
from cocomix.params import InitParams, Method
from cocomix.tokens.windows import TextOrigin


class Trained(NamedTuple):
    """How a model was trained."""

    name: str
    kind: Method
    """The method; of a form of CoCoMix, cocomix."""
    text: TextOrigin
    context: int
    """Tokens per window."""
    tokens: int
    """Number of text tokens in training."""
    flops: float
    """FLOPs of the whole training."""
    validation_loss: float
    """Nats per token, at the end of the learning curve."""
    init: InitParams = InitParams()
    """The weights from which it started."""
    distilled: bool = False
    """Whether it learned a base model's distribution."""
    shuffled: bool = False
    """Whether its concept labels were those of other windows."""


def model_card(model: PreTrainedModel, trained: Trained) -> str:
    """The card: YAML metadata for the hub, then Markdown; without a date, so that equal runs give equal bytes."""
    config, positions = model.config, model.config.max_position_embeddings
    head = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[_backbone(config).lower().replace("-", ""), "pretraining", trained.kind],
        base_model=_hub_model(trained.init),
        datasets=[trained.text.dataset] if trained.text.dataset else None,
    )
    stored, active = parameters(model)
    return f"""---
{head.to_yaml()}
---

# {trained.name}

{_what(config, trained)}

{config.num_hidden_layers} blocks of width {config.hidden_size} with {_heads(config)}; {positions} positions; a
vocabulary of {config.vocab_size}. {stored:,} parameters, of which {active:,} work on a token.

## Training

| | |
|---|---|
{_start(trained.init)}| Data | {_data(trained.text)}, in windows of {trained.context} tokens |
| Tokens seen | {trained.tokens:,} |
| Training FLOPs | {trained.flops:.3g} |
| Validation loss | {trained.validation_loss:.4f} nats a token (perplexity {exp(trained.validation_loss):.2f}) |

The validation loss is that of a fixed part of the validation documents, which are of the same corpus; none of them was
trained on. The model was trained to compare methods of pretraining; it was not tuned to follow instructions, nor
filtered in what it says.

## How to load it

{_loading(config)}

## Citation

```bibtex
@article{{tack2025cocomix,
  title   = {{{{LLM}} Pretraining with Continuous Concepts}},
  author  = {{Tack, Jihoon and Lanchantin, Jack and Yu, Jane and Cohen, Andrew and Kulikov, Ilia and Lan, Janice and
             Hao, Shibo and Tian, Yuandong and Weston, Jason and Li, Xian}},
  journal = {{arXiv preprint arXiv:2502.08524}},
  year    = {{2025}},
}}
```
"""


def _backbone(config: PreTrainedConfig) -> str:
    if config.model_type in ("gpt2", "cocomix"):
        return "GPT-2"
    return "Qwen3" if config.model_type == "qwen3" or getattr(config, "qk_norm", False) else "Llama"


def _heads(config: PreTrainedConfig) -> str:
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", heads)
    return f"{heads} heads" if shared == heads else f"{heads} heads of queries, {shared} of keys and values"


def _what(config: PreTrainedConfig, trained: Trained) -> str:
    paper = "[LLM Pretraining with Continuous Concepts](https://arxiv.org/abs/2502.08524)"
    if not isinstance(config, ConceptFields):
        also = {
            "kd": " and to match the distribution of a base model (knowledge distillation)",
            "mtp": " and, by further blocks in training only, tokens after it (multi-token prediction)",
        }.get(trained.kind, "")
        return f"A {_backbone(config)} trained to predict the next token{also}: a baseline of {paper}."
    vector = {
        "concepts": f"predicts concepts, latents of another model's sparse autoencoder ({config.num_concepts} of them,"
        f" the {config.concept_k} strongest of which make one vector)",
        "hidden": "predicts the hidden state of another model",
        "nothing": f"computes a vector by an MLP of width {config.mlp_width}, a control without concepts"
        if config.mlp_width
        else "takes a learned vector, a pause token",
    }[config.predicts]
    mixed = {
        "interleave": "The vector follows its token as a position of its own.",
        "interleave_with_state": "The vector, plus the token's hidden state, follows as a position of its own.",
        "add": "The vector is added to the token's hidden state.",
        "none": "Nothing of it is mixed into the hidden states.",
    }[config.mixing]
    sentences = [f"A {_backbone(config)} that after block {config.concept_layer} {vector}.", mixed]
    if trained.distilled:
        sentences.append("It also learned to match the distribution of a base model (knowledge distillation).")
    if trained.shuffled:
        sentences.append("It learned the concepts of other windows, as a control.")
    return " ".join([*sentences, f"A model of {paper}."])


def _start(init: InitParams) -> str:
    """A row of the table on training; empty: the weights were random."""
    if init.source == "scratch":
        return ""
    name = _hub_model(init)
    return f"| Went on from | {f'`{name}`, revision `{init.revision}`' if name else 'a model of a local folder'} |\n"


def _hub_model(init: InitParams) -> str | None:
    """The hub id of the model that it went on from; None: a folder, or there is none."""
    return None if init.source == "scratch" or Path(str(init.path)).is_dir() else init.path


def _data(text: TextOrigin) -> str:
    if text.dataset:
        part = f", {text.config}" if text.config else ""
        return f"`{text.dataset}`{part}, revision `{text.revision}`"
    docs = text.source == "installed-docs"
    return "The documentation of installed Python packages" if docs else "Local text files"


def _loading(config: PreTrainedConfig) -> str:
    def snippet(first: str, keywords: str) -> str:
        return f"""```python
{first}from transformers import AutoModelForCausalLM, AutoTokenizer

path = "..."  # this folder, or its id on the hub
model = AutoModelForCausalLM.from_pretrained(path{keywords})
tokenizer = AutoTokenizer.from_pretrained(path{keywords})
prompt = tokenizer("The model", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=40, do_sample=True)[0]))
```"""

    if not isinstance(config, ConceptFields):
        return snippet("", "")
    return f"""With the `cocomix` package:

{snippet("import cocomix.modeling  # makes the Auto classes know the model" + chr(10), "")}

Without it, by the Python files that lie next to the weights:

{snippet("", ", trust_remote_code=True")}"""
