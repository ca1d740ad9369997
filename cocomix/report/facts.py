"""The metrics files of the other stages, read and checked. Losses are cross-entropies in nats a token."""

import csv
import json
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cocomix.checked import parse
from cocomix.errors import UserError


class Facts(BaseModel):
    """Base of what a metrics file says; what the report does not use is left aside."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class SplitText(Facts):
    """Documents of one split."""

    documents: int
    bytes: int


class CorpusFacts(Facts):
    """metrics/corpus.json."""

    train: SplitText
    validation: SplitText
    test: SplitText
    sources: int


class SplitTokens(Facts):
    """Tokens of one split."""

    tokens: int
    bytes_per_token: float


class TokenFacts(Facts):
    """metrics/tokenize.json."""

    vocab_size: int
    train: SplitTokens
    validation: SplitTokens
    test: SplitTokens


class BaseFacts(Facts):
    """metrics/base.json; no tokens and no FLOPs when the model was not trained here."""

    parameters: int
    tokens: int
    flops: float
    validation_loss: float


class ActivationFacts(Facts):
    """metrics/activations.json."""

    train_tokens: int
    d_model: int


class SaeFacts(Facts):
    """metrics/sae.json."""

    fvu: float
    l0: float
    dead_share: float
    loss_base: float
    loss_spliced: float
    loss_zeroed: float
    loss_recovered: float


class AttributionFacts(Facts):
    """metrics/attribution.json."""

    positions: int
    full_share: float
    label_entropy: float
    distinct_concepts: int
    most_frequent_share: float


class Parameters(Facts):
    """Of a model: all, and those that work on a token."""

    stored: int
    active: int


class TrainingFacts(Facts):
    """metrics/pretrain/<method>-<seed>.json."""

    d_model: int
    parameters: Parameters
    tokens: int
    flops: float
    flops_per_token: float
    seconds: float


class Score(Facts):
    """A model on one split."""

    loss: float
    perplexity: float
    bits_per_byte: float


class ConceptFacts(Facts):
    """Predicted against labelled concepts, on the validation split."""

    cross_entropy: float
    recall_at_k: float
    recall_at_labels: float
    never_predicted: float


class EvaluationFacts(Facts):
    """metrics/evaluate/<method>-<seed>.json."""

    validation: Score
    test: Score
    concepts: ConceptFacts | None


class Curve(NamedTuple):
    """plots/pretrain/<method>-<seed>.csv: arrays of one length, in the order of training."""

    tokens: NDArray[np.float64]
    flops: NDArray[np.float64]
    loss: NDArray[np.float64]
    """On a fixed part of the validation split."""


class Pipeline(NamedTuple):
    """What lies before the models that are compared."""

    corpus: CorpusFacts
    tokens: TokenFacts
    base: BaseFacts
    activations: ActivationFacts
    sae: SaeFacts
    attribution: AttributionFacts


class Run(NamedTuple):
    """One trained and evaluated model."""

    seed: int
    training: TrainingFacts
    evaluation: EvaluationFacts
    curve: Curve


METRICS, PLOTS = Path("metrics"), Path("plots")


def pipeline_files() -> list[Path]:
    """Where `read_pipeline` reads."""
    return [METRICS / f"{each}.json" for each in ("corpus", "tokenize", "base", "activations", "sae", "attribution")]


def run_files(method: str, seed: int) -> list[Path]:
    """Where `read_run` reads."""
    name = f"{method}-{seed}"
    return [
        METRICS / "pretrain" / f"{name}.json",
        METRICS / "evaluate" / f"{name}.json",
        PLOTS / "pretrain" / f"{name}.csv",
    ]


def read_pipeline() -> Pipeline:
    """Read the metrics of the stages before `pretrain`.

    Raises:
        UserError: when a file is missing or not what its stage writes.
    """
    corpus, tokens, base, activations, sae, attribution = pipeline_files()
    return Pipeline(
        _read(CorpusFacts, corpus),
        _read(TokenFacts, tokens),
        _read(BaseFacts, base),
        _read(ActivationFacts, activations),
        _read(SaeFacts, sae),
        _read(AttributionFacts, attribution),
    )


def read_run(method: str, seed: int) -> Run:
    """Read the metrics and the curve of one model.

    Raises:
        UserError: when a file is missing or not what its stage writes.
    """
    training, evaluation, curve = run_files(method, seed)
    return Run(seed, _read(TrainingFacts, training), _read(EvaluationFacts, evaluation), _read_curve(curve))


Model = TypeVar("Model", bound=Facts)


def _read(model: type[Model], path: Path) -> Model:
    try:
        return parse(model, json.loads(path.read_bytes()), str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that writes it") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON; run the stage that writes it again") from None


def _read_curve(path: Path) -> Curve:
    try:
        with path.open(newline="") as file:
            rows = [
                (float(row["tokens"]), float(row["flops"]), float(row["validation_loss"]))
                for row in csv.DictReader(file)
            ]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that writes it") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a learning curve ({error}); run the stage that writes it again") from None
    if not rows:
        raise UserError(f"{path}: holds no point; run the stage that writes it again")
    return Curve(*np.array(rows).T)
