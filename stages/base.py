"""Stage `base`: train or load the base model, a language model whose hidden states the concepts describe."""

if __name__ == "__main__":
    from stages.stage import share_work

    share_work()

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from cocomix.base.families import check_base
from cocomix.base.flops import sizes
from cocomix.check.external import outside
from cocomix.evaluation.language_model import LanguageModelScore, score_text
from cocomix.evaluation.text import split_text
from cocomix.models.accounting import flops_per_token, parameters
from cocomix.models.configs import config_of
from cocomix.params import Params
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import runtime
from cocomix.pretrained import load_model
from cocomix.shapes.models import plain_shape
from cocomix.tokens.base_tokens import BaseTokens
from cocomix.tokens.comparison import check_tokenizer, check_vocabulary
from cocomix.tokens.window_data import WindowData
from cocomix.tokens.windows import Tokens
from cocomix.training.loop import Training, TrainingCurveRow, write_curve
from cocomix.training.objectives import Objective
from stages.stage import ARTIFACTS, main, produce, to_json

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run(params: Params) -> None:
    """Make artifacts/base, a Hugging Face folder; its manifest tells the model's `sizes`."""
    tokens = BaseTokens(ARTIFACTS)

    def compute(work: Work) -> dict[str, Any]:
        if params.base.source == "train":
            model, curve = _train(params, tokens, work.scratch)
        else:
            model, curve = _load(params, tokens), []
            work.confirm_inputs()
        text = split_text(tokens, "validation")
        batch_size, kept = params.base.training.batch_size, work.scratch / "validation"
        score = score_text(model, text, batch_size, "base: validation", kept=kept)
        if runtime().rank == 0:
            _save(model, curve, score.whole, tokens, work)
        return sizes(model, tokens.context)

    side = {"metrics.json": Path("metrics/base.json"), "curve.csv": Path("plots/base.csv")}
    inputs: dict[str, Artifact | str] = {**tokens.inputs, **outside("base.pretrained", params)}
    produce("base", ARTIFACTS / "base", inputs, params.base.model_dump(), compute, side)


def _train(params: Params, tokens: Tokens, scratch: Path) -> tuple[PreTrainedModel, list[TrainingCurveRow]]:
    torch.manual_seed(params.base.seed)
    model = AutoModelForCausalLM.from_config(config_of(plain_shape(params.base.model, tokens)))
    data = (WindowData(tokens.windows("train")), WindowData(tokens.windows("validation")))
    objective = Objective(model)
    curve = Training(objective, *data, params.base.training, params.base.seed, scratch).run("base")
    return objective.model, curve


def _load(params: Params, tokens: BaseTokens) -> PreTrainedModel:
    source = str(params.base.pretrained)
    model = load_model("base.pretrained", source, params.base.revision, DTYPES[params.base.dtype])
    check_vocabulary("base.pretrained", source, model.config.vocab_size, tokens, beside=not tokens.shared)
    parameter = "tokenize.context" if params.base.context is None else "base.context"
    try:
        check_base(model.requires_grad_(False).eval(), tokens.context, parameter)
    except UserError as error:
        raise UserError(f"base.pretrained: {source!r}: {error}") from None
    if tokens.shared:
        check_tokenizer("base.pretrained", source, params.base.revision, tokens)
    return model


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
    main(run)
