"""Stage `base`: train or load the base model, a language model whose hidden states the concepts describe."""

from pathlib import Path
from typing import Any

import torch
from transformers import GPT2LMHeadModel, PreTrainedModel

from cocomix.base.families import check_base
from cocomix.check.external import outside
from cocomix.evaluation.language_model import LanguageModelScore, score_text
from cocomix.evaluation.text import split_text
from cocomix.models.accounting import flops_per_token, parameters
from cocomix.models.configs import config_of
from cocomix.params import Params
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.progress import say
from cocomix.plumbing.runtime import runtime
from cocomix.pretrained import load_model, load_tokenizer
from cocomix.shapes.models import gpt2_shape
from cocomix.tokens.base_tokens import BaseTokens
from cocomix.tokens.comparison import difference
from cocomix.tokens.window_data import WindowData
from cocomix.tokens.windows import Tokens
from cocomix.training.loop import Training, TrainingCurveRow, write_curve
from cocomix.training.objectives import Objective
from stages.stage import ARTIFACTS, main, produce, to_json


def run(params: Params) -> None:
    """Make artifacts/base, a Hugging Face folder."""
    tokens = BaseTokens(ARTIFACTS)

    def compute(work: Work) -> dict[str, Any]:
        if params.base.source == "train":
            model, curve = _train(params, tokens, work.scratch)
        else:
            model, curve = _load(params, tokens), []
        text = split_text(tokens, "validation")
        batch_size, kept = params.base.training.batch_size, work.scratch / "validation"
        score = score_text(model, text, batch_size, "base: validation", kept=kept)
        if runtime().rank == 0:
            _save(model, curve, score.whole, tokens, work)
        return {"d_model": model.config.hidden_size, "n_layer": model.config.num_hidden_layers}

    side = {"metrics.json": Path("metrics/base.json"), "curve.csv": Path("plots/base.csv")}
    inputs: dict[str, Artifact | str] = {**tokens.inputs, **outside("base.pretrained", params)}
    produce("base", ARTIFACTS / "base", inputs, params.base.model_dump(), compute, side)


def _train(params: Params, tokens: Tokens, scratch: Path) -> tuple[PreTrainedModel, list[TrainingCurveRow]]:
    torch.manual_seed(params.base.seed)
    model = GPT2LMHeadModel(config_of(gpt2_shape(params.base.model, tokens)))
    data = (WindowData(tokens.windows("train")), WindowData(tokens.windows("validation")))
    objective = Objective(model)
    curve = Training(objective, *data, params.base.training, params.base.seed, scratch).run("base")
    return objective.model, curve


def _load(params: Params, tokens: BaseTokens) -> PreTrainedModel:
    source = str(params.base.pretrained)
    model = load_model("base.pretrained", source, params.base.revision, torch.float32)
    if model.config.vocab_size < tokens.vocab_size:
        use = "use its tokenizer (tokenize.pretrained)" if tokens.shared else "the tokenizer beside it is not its own"
        raise UserError(
            f"base.pretrained: {source!r} has a vocabulary of {model.config.vocab_size}; the tokens need "
            f"{tokens.vocab_size}: {use}"
        )
    try:
        check_base(model.requires_grad_(False).eval(), tokens.context)
    except UserError as error:
        raise UserError(f"base.pretrained: {source!r}: {error}") from None
    if tokens.shared:
        _check_tokenizer(params, tokens)
    return model


def _check_tokenizer(params: Params, tokens: Tokens) -> None:
    """Check that the base model's tokenizer, if it has one, made the tokens."""
    source, made = str(params.base.pretrained), tokens.artifact.manifest.params
    advice = (
        f"set base.tokenizer: own, or tokenize.source: pretrained, tokenize.pretrained: {source}, and "
        "tokenize.revision to base.revision"
    )
    try:
        theirs = load_tokenizer("base.pretrained", source, params.base.revision)
    except UserError as error:
        if made.get("source") == "pretrained":
            name = made["pretrained"]
            say(f"{error}; that of tokenize.pretrained ({name}) is taken to be its own: nothing can be compared")
            return
        raise UserError(
            f"{error}; a tokenizer that was trained here (tokenize.source: train) is not that of this model: set "
            "tokenize.source: pretrained, and tokenize.pretrained to the model's own"
        ) from None
    if found := difference(tokens, theirs):
        raise UserError(f"base.pretrained: {source!r} has another tokenizer than the tokens: {found}; {advice}")


def _save(
    model: PreTrainedModel, curve: list[TrainingCurveRow], score: LanguageModelScore, tokens: Tokens, work: Work
) -> None:
    with work.write_folder() as folder:
        model.save_pretrained(folder)
        tokens.tokenizer().save_pretrained(folder)
    write_curve(work.side / "curve.csv", curve)
    metrics = {
        "parameters": parameters(model).stored,
        "tokens": curve[-1].tokens if curve else 0,
        "flops": curve[-1].flops if curve else 0,
        "flops_per_token": flops_per_token(model.config, tokens.context) if curve else None,
        "seconds": curve[-1].seconds if curve else 0,
        "validation_loss": score.loss,
        "perplexity": score.perplexity,
        "bits_per_byte": score.bits_per_byte,
    }
    (work.side / "metrics.json").write_bytes(to_json(metrics))


if __name__ == "__main__":
    main(run, shared=True)
