"""Read and validate the metrics files of the other stages. Losses are cross-entropies in nats per token."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cocomix.plumbing.artifact import MANIFEST, Artifact, digest_of
from cocomix.plumbing.checked import parse, read_json
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.origins import check_origins
from cocomix.report.documents import EVALUATIONS, Documents, TaskFigure, read_corpora, read_tasks


class Facts(BaseModel):
    """Base class for the content of a metrics file; fields that the report does not use are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Made(Facts):
    """When, where and with what a stage ran: see `cocomix.plumbing.provenance`."""

    commit: str
    date: str
    machine: str
    versions: str


class Usage(Facts):
    """Resources that a stage used."""

    seconds: float
    """Of the work, without the start of the process."""
    startup_seconds: float | None = None
    """From the start of the process to its work; None in files from before stages recorded it."""
    peak_memory: int
    """Maximum over the processes, in bytes."""
    bytes: int
    """Size of the artifact."""
    processes: int
    made: Made | None = None
    """None in files from before stages recorded it, and in a sum of several runs."""


class StageFacts(Facts):
    """Base class for the metrics of a stage."""

    artifact: str | None = None
    """Digest of the artifact that the stage made."""
    plots: dict[str, str] = {}
    """Digests of its plots by path; empty without plots, and in files from before stages recorded them."""
    usage: Usage | None = None
    """None, like `artifact`, in files from before stages recorded it."""


class SplitText(Facts):
    """Documents of one split."""

    documents: int
    bytes: int


class ContaminationFacts(Facts):
    """Documents of the corpus that contain a piece of a task or corpus."""

    documents: int
    texts: int
    """Texts of the task or corpus."""
    long_texts: int
    """Those of at least 13 words, which alone can be found."""


class CorpusFacts(StageFacts):
    """metrics/corpus.json."""

    train: SplitText
    validation: SplitText
    test: SplitText
    sources: int
    limited: bool
    """Whether a limit of megabytes left out text."""
    dropped: dict[str, int] = {}
    """Number of documents or paragraphs left out, by kind."""
    contaminated: dict[str, ContaminationFacts] | None = None
    """By task and corpus; None: they were not looked for."""


class SplitTokens(Facts):
    """Token counts of one split."""

    tokens: int
    bytes_per_token: float


class TokenFacts(StageFacts):
    """metrics/tokenize.json."""

    vocab_size: int
    train: SplitTokens
    validation: SplitTokens
    test: SplitTokens


class BaseTokenFacts(StageFacts):
    """metrics/base_tokens.json; all None where the base model reads the students' tokens."""

    vocab_size: int | None = None
    train: SplitTokens | None = None


class BaseFacts(StageFacts):
    """metrics/base.json; tokens and FLOPs are 0 if the model was not trained here."""

    parameters: int
    tokens: int
    flops: float
    validation_loss: float


class ActivationFacts(StageFacts):
    """metrics/activations.json."""

    train_tokens: int
    d_model: int


class SaeFacts(StageFacts):
    """metrics/sae.json."""

    fvu: float
    l0: float
    dead_share: float
    loss_base: float
    loss_spliced: float
    loss_mean_ablated: float
    loss_recovered: float


class AttributionFacts(StageFacts):
    """metrics/attribution.json."""

    positions: int
    full_share: float
    unlabelled_share: float
    label_entropy: float
    """In bits."""
    distinct_concepts: int
    most_frequent_share: float

    @property
    def frequency_loss(self) -> float:
        """Cross-entropy in nats when labels are predicted by their frequency alone."""
        return self.label_entropy * math.log(2)


class DistributionFacts(StageFacts):
    """metrics/distribution.json; all None if nothing was drawn."""

    mean_unique: float | None = None
    """Different tokens drawn at a position."""
    mean_entropy: float | None = None
    """Of the whole distribution, in nats."""
    bytes_per_token: float | None = None


class AtlasFacts(StageFacts):
    """metrics/explain.json."""

    fired: int
    """Number of concepts that fire in the scanned text."""
    auc: float
    """Mean over labels of how well each separates held-out firings of its concept from other positions."""


class MethodFacts(StageFacts):
    """metrics/methods.json; FLOPs are the base model's per token in a forward pass."""

    widths: dict[str, int]
    """Width of the hidden states of the model of each method and form."""
    context: int
    base_context: int
    """Tokens of the base model's windows."""
    concepts: int
    base_flops: int
    base_flops_to_layer: int


class Parameters(Facts):
    """Parameters of a model: all, and those that are used for a token."""

    stored: int
    active: int


class TrainingFacts(StageFacts):
    """metrics/pretrain/<method>-<seed>.json."""

    d_model: int
    n_head: int
    parameters: Parameters
    tokens: int
    flops: float
    flops_per_token: float
    seconds: float


class Score(Facts):
    """Score of a model on one split."""

    loss: float
    perplexity: float
    bits_per_byte: float


class MixingFacts(Facts):
    """Losses of a model on validation windows, with and without mixing."""

    windows: int
    as_it_is: float
    zeroed: float
    shuffled: float
    mean: float
    fed_by_uncertainty: list[float]
    """With 0, 1, .. labels of each position supplied."""
    fed_at_random: list[float]
    fed_others: float
    """With as many labels of other text supplied."""


class ConceptFacts(Facts):
    """Predicted concepts compared with labels, on the validation split."""

    cross_entropy: float
    recall_at_k: float
    recall_at_labels: float
    never_predicted: float
    ignored: float | None
    """Share of the concepts that are ignored when mixed; None: the model mixes nothing."""
    mixing: MixingFacts | None
    """None: the model mixes nothing, or the validation split has only one window."""


Kind = Literal["accuracy", "perplexity", "other"]
"""Kind of a metric. Accuracies are shares, and higher is better. For perplexities, lower is better. Other metrics have
any scale and an unknown direction."""


class MetricFacts(NamedTuple):
    """A figure of a task, with its standard error."""

    value: float
    standard_error: float | None


class TaskFacts(Facts):
    """Results on a task of lm-eval."""

    metric: str
    metrics: dict[str, MetricFacts]
    """By their names in lm-eval."""
    log_likelihood: MetricFacts | None
    """Log-likelihood of the right answer, nats per document."""
    margin: MetricFacts | None
    """Log-likelihood of the right answer minus that of the best wrong one."""
    cut: int
    """Documents that exceed the model's context."""

    @property
    def kind(self) -> Kind:
        """Kind of the headline metric."""
        if self.metric in ("acc", "acc_norm", "exact_match"):
            return "accuracy"
        return "perplexity" if "perplexity" in self.metric else "other"


class EvaluationFacts(StageFacts):
    """metrics/evaluate/<method>-<seed>.json."""

    validation: Score
    test: Score
    corpora: dict[str, Score]
    tasks: dict[str, TaskFacts]
    concepts: ConceptFacts | None

    @property
    def scores(self) -> dict[str, Score]:
        """By corpus; validation and test are first."""
        return {"validation": self.validation, "test": self.test, **self.corpora}


class Curve(NamedTuple):
    """plots/pretrain/<method>-<seed>.csv: arrays of equal length, in training order."""

    tokens: NDArray[np.float64]
    flops: NDArray[np.float64]
    seconds: NDArray[np.float64]
    loss: NDArray[np.float64]
    """On a fixed part of the validation split."""


class TrainingCurve(NamedTuple):
    """A training curve of the base model or the autoencoder: arrays of equal length; empty if it was not trained."""

    tokens: NDArray[np.float64]
    values: NDArray[np.float64]
    """Validation loss, or the fraction of variance unexplained."""


class Pipeline(NamedTuple):
    """Metrics of the stages that all compared models share."""

    corpus: CorpusFacts
    tokens: TokenFacts
    base_tokens: BaseTokenFacts
    base: BaseFacts
    activations: ActivationFacts
    sae: SaeFacts
    attribution: AttributionFacts
    distribution: DistributionFacts
    explain: AtlasFacts
    methods: MethodFacts
    steer: StageFacts
    """Without the effects, which `cocomix.steering.averages` reads from the artifact."""


class Run(NamedTuple):
    """A trained and evaluated model."""

    seed: int
    training: TrainingFacts
    evaluation: EvaluationFacts
    curve: Curve
    documents: dict[str, Documents]
    """By corpus."""
    tasks: dict[TaskFigure, dict[str, Documents]]
    """By figure and task; empty without tasks."""


METRICS, PLOTS = Path("metrics"), Path("plots")
BASE_CURVE, SAE_CURVE = PLOTS / "base.csv", PLOTS / "sae.csv"
ATLAS, STEERING = Path("artifacts/atlas"), Path("artifacts/steering")


def pipeline_files() -> list[Path]:
    """The files that `read_pipeline` reads."""
    models = ("base_tokens", "base", "activations", "sae", "attribution", "distribution", "explain", "methods", "steer")
    return [METRICS / f"{each}.json" for each in ("corpus", "tokenize", *models)]


def run_files(method: str, seed: int, folder: Path = Path()) -> list[Path]:
    """The files that `read_run` reads, in the project's folder or a copy of it."""
    name = f"{method}-{seed}"
    return [
        folder / METRICS / "pretrain" / f"{name}.json",
        folder / METRICS / "evaluate" / f"{name}.json",
        folder / PLOTS / "pretrain" / f"{name}.csv",
        folder / EVALUATIONS / name / MANIFEST,
    ]


def read_pipeline() -> Pipeline:
    """Read the metrics of the stages that run once, not per method and seed.

    Raises:
        UserError: when a file is missing or malformed.
    """
    corpus, tokens, base_tokens, base, activations, sae, attribution, distribution, explain, methods, steer = (
        pipeline_files()
    )
    return Pipeline(
        _read(CorpusFacts, corpus),
        _read(TokenFacts, tokens),
        _read(BaseTokenFacts, base_tokens),
        _read(BaseFacts, base),
        _read(ActivationFacts, activations),
        _read(SaeFacts, sae),
        _read(AttributionFacts, attribution),
        _read(DistributionFacts, distribution),
        _read(AtlasFacts, explain),
        _read(MethodFacts, methods),
        _read(StageFacts, steer),
    )


def read_run(method: str, seed: int, folder: Path = Path()) -> Run:
    """Read the metrics and the learning curve of one model, in the project's folder or a copy of it.

    Raises:
        UserError: when a file is missing or malformed.
    """
    training, evaluation, curve_file, manifest = run_files(method, seed, folder)
    trained, measured = _read(TrainingFacts, training), _read(EvaluationFacts, evaluation)
    documents, curve = Artifact(manifest.parent), _read_curve(curve_file)
    if curve.seconds[-1] != trained.seconds:
        raise UserError(f"{curve_file}: not of the training that {training} is of; run pretrain@{method}-{seed} again")
    return Run(
        seed,
        trained,
        measured,
        curve,
        read_corpora(documents),
        read_tasks(documents) if measured.tasks else {},
    )


def check_pipeline(pipeline: Pipeline, runs: Mapping[str, Run]) -> None:
    """Check that metrics files describe the plots and artifacts read with them, and that the artifacts belong together.

    Args:
        runs: by name: <method>-<seed>.

    Raises:
        UserError: when they do not.
    """
    for each in (pipeline.base, pipeline.sae, *(run.training for run in runs.values())):
        _check_plots(each)
    artifacts = {"atlas": Artifact(ATLAS), "steering": Artifact(STEERING)}
    artifacts |= {f"evaluations/{name}": Artifact(EVALUATIONS / name) for name in runs}
    facts: dict[str, StageFacts] = {
        "tokens": pipeline.tokens,
        "base_tokens": pipeline.base_tokens,
        "base": pipeline.base,
        "sae": pipeline.sae,
        "concepts": pipeline.attribution,
        "distribution": pipeline.distribution,
        "atlas": pipeline.explain,
        "steering": pipeline.steer,
        **{f"models/{name}": run.training for name, run in runs.items()},
        **{f"evaluations/{name}": run.evaluation for name, run in runs.items()},
    }
    for name, artifact in artifacts.items():
        if facts[name].artifact not in (None, artifact.digest):
            stage = artifact.manifest.stage
            raise UserError(f"{artifact.path}: not what the metrics of {stage} are of; run {stage} again")
    digests = {name: each.artifact for name, each in facts.items() if each.artifact}
    check_origins({**digests, **artifacts})


def _check_plots(facts: StageFacts) -> None:
    for path, digest in facts.plots.items():
        try:
            found = digest_of(Path(path))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; run the stage that writes it") from None
        if found != digest:
            raise UserError(f"{path}: not what the metrics of its stage are of; run that again")


Model = TypeVar("Model", bound=Facts)


def _read(model: type[Model], path: Path) -> Model:
    try:
        return parse(model, read_json(path, "run the stage that writes it again"), str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that writes it") from None


def read_base_curve() -> TrainingCurve:
    """Read the validation loss of the base model.

    Raises:
        UserError: when the file is missing or malformed.
    """
    return TrainingCurve(*_read_columns(BASE_CURVE, "tokens", "validation_loss"))


def read_sae_curve() -> TrainingCurve:
    """Read the fraction of variance that the autoencoder leaves unexplained.

    Raises:
        UserError: when the file is missing or malformed.
    """
    return TrainingCurve(*_read_columns(SAE_CURVE, "tokens", "fvu"))


def _read_curve(path: Path) -> Curve:
    columns = _read_columns(path, "tokens", "flops", "seconds", "validation_loss")
    if not columns.size:
        raise UserError(f"{path}: holds no point; run the stage that writes it again")
    return Curve(*columns)


def _read_columns(path: Path, *columns: str) -> NDArray[np.float64]:
    """The columns of a table: [columns, rows]."""
    try:
        with path.open(newline="") as file:
            rows = [[float(row[each]) for each in columns] for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that writes it") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a learning curve ({error}); run the stage that writes it again") from None
    return np.array(rows).reshape(-1, len(columns)).T
