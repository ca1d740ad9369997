"""The methods: the section of each in `pretrain`, and what a method learns from."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cocomix.params.ranges import Rate, Share, Size, Temperature, Weight
from cocomix.params.section import Section

Method = Literal["ntp", "kd", "pause", "mtp", "cocomix"]
"""The kinds of methods; what is listed and compared by name is one of them, or a form of `cocomix`."""
HiddenDistance = Literal["l1", "l2", "cosine"]


class ScheduleParams(Section):
    """Factor of a loss weight over the steps of a training run."""

    shape: Literal["constant", "linear", "learning_rate"] = "constant"
    """constant: 1; linear: from 1 to 0 at `until`; learning_rate: the learning rate over its peak."""
    until: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the steps after which the factor is 0."""


class NtpParams(Section):
    """Next-token prediction, which has no parameters of its own."""


class KdParams(Section):
    """Knowledge distillation from the base model."""

    source: Literal["online", "cached"] = "online"
    """online: the base model runs in each step; cached: its sampled distribution is read (section `distribution`)."""
    kl_weight: Weight
    """Weight of KL(base || student) beside the cross-entropy (paper: 0.1)."""
    temperature: Temperature = 1.0
    """Divides the logits of both models; the loss is multiplied by its square (arXiv 1503.02531). With source: cached,
    distribution.temperature."""
    leave_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each window's positions without this loss: those with the lowest entropy of the base model's
    distribution (arXiv 2509.01649: 0.15)."""
    schedule: ScheduleParams = ScheduleParams()
    """Factor of kl_weight."""


class MtpParams(Section):
    """Multi-token prediction: heads for several tokens ahead on a shared trunk (arXiv 2404.19737)."""

    tokens: Annotated[int, Field(ge=2, le=64)]
    """Tokens that are predicted at each position, the next one included: one more block per further token, in
    training only."""
    weight: Weight
    """Weight of the losses of the further tokens, summed (paper: 1)."""
    schedule: ScheduleParams = ScheduleParams()
    """Factor of weight."""


class PauseParams(Section):
    """Pause tokens: one learned vector after each token."""

    layer: Size
    """Blocks below the pause vectors; for a comparison like the paper's (Fig. 6f), CoCoMix's concept_layer."""
    mixing: Literal["interleave", "interleave_with_state"]
    """interleave_with_state: the token's hidden state is added to the vector; interleave: the vector alone. The model
    must then learn by attention which token it follows, and does not within millions of tokens (docs/log.md, 16)."""


class CocomixParams(Section):
    """Continuous concept mixing, and its ablations."""

    predicts: Literal["concepts", "hidden", "nothing"]
    """concepts; hidden: the base model's hidden state instead, regressed (paper Fig. 6b); nothing: a control without
    concepts or labels, in which an MLP computes what is mixed, of the size that `match` says."""
    mixing: Literal["interleave", "interleave_with_state", "add", "none"]
    """interleave: a position of its own after each token; interleave_with_state: likewise, plus the token's hidden
    state; add: added to the token's hidden state (Fig. 6e); none: predicted but not mixed (Fig. 6d)."""
    concept_layer: Size
    """Blocks below the concept head (released code: 3 of 8); at least 1, as the KV cache requires."""
    concept_k: Size
    """Predicted concepts that are mixed (paper: 32)."""
    concept_head: Literal["released", "equations"]
    """released: the hidden state is normalised and the concept de-normalised, as in the released code; equations:
    neither."""
    concept_init: Literal["tied", "normal"]
    """tied: unit-norm predictor rows and compress = tied_scale x their transpose; normal: N(0, 0.02), as released."""
    tied_scale: Annotated[float, Field(gt=0, le=1e6)]
    """Scale of compress relative to the predictor at initialisation, with concept_init: tied."""
    learned_scale: bool
    """Whether a learned scalar, initially 1, multiplies the output of compress."""
    gate: bool = False
    """Whether a learned scalar, initially 0, multiplies the vector that is mixed."""
    mixing_learning_rate: Rate | None = None
    """Peak learning rate of compress, or of the MLP with predicts: nothing; null: training.learning_rate. Compress
    sums concept_k vectors, so its output changes faster than its weights do."""
    stop_gradient: bool
    """Whether the language model's loss has no gradient through the prediction."""
    concept_weight: Weight
    """Lambda, the weight of the concept loss (paper: 0.1); 0: mixing without concept loss (Fig. 6d)."""
    concept_schedule: ScheduleParams = ScheduleParams()
    """Factor of concept_weight."""
    labels: Literal["own", "shuffled"] = "own"
    """shuffled: a control in which each window has the labels of another window."""
    teacher_forcing: Share = 0.0
    """Share of the training windows in which a position's labels take the first places among the concepts that are
    mixed, if any are: the model learns to use them, and can be steered better."""
    label_weights: Literal["equal", "score"] = "equal"
    """Weights of a position's labels in the concept loss: equal, or proportional to the magnitudes of their scores."""
    label_offsets: Annotated[list[Annotated[int, Field(ge=0, le=64)]], Field(min_length=1)] = [0]
    """Whose labels a position predicts: its own (0), those of the next position (1), ..., all together."""
    hidden_loss: HiddenDistance
    """Distance between hidden states, with predicts: hidden."""
    kd: KdParams = KdParams(kl_weight=0.0)
    """Distillation beside the concepts; kl_weight: 0 for none."""

    @property
    def uses_labels(self) -> bool:
        """Whether it learns from concept labels."""
        return self.predicts == "concepts" and (self.concept_weight > 0 or self.forces_labels)

    @property
    def forces_labels(self) -> bool:
        """Whether it mixes labels in training."""
        return self.predicts == "concepts" and self.mixing != "none" and self.teacher_forcing > 0

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if len(set(self.label_offsets)) < len(self.label_offsets):
            raise ValueError(f"label_offsets lists a value twice: {self.label_offsets}")
        if self.mixing == "none":
            for name in ("stop_gradient", "learned_scale", "gate"):
                if getattr(self, name):
                    raise ValueError(f"{name} must be false with mixing: none, which mixes nothing")
        if self.forces_labels and self.label_offsets != [0]:
            raise ValueError("teacher_forcing needs label_offsets: [0]: labels of later positions know what comes next")
        if self.predicts == "nothing" and (self.mixing == "none" or self.stop_gradient):
            raise ValueError("predicts: nothing needs a mixing other than none, and stop_gradient: false")
        if self.learned_scale and self.predicts != "concepts":
            raise ValueError("learned_scale must be false where no concepts are mixed")
        if self.predicts != "nothing" and self.concept_weight == 0 and (self.stop_gradient or self.mixing == "none"):
            raise ValueError(
                "concept_weight: 0 with mixing: none or stop_gradient: true leaves nothing to train the head"
            )
        return self


MethodParams = NtpParams | KdParams | PauseParams | MtpParams | CocomixParams
"""The section of one method."""


def distillation(section: MethodParams) -> KdParams | None:
    """The distillation from the base model that a method consists of, or has beside its concepts."""
    taught = section.kd if isinstance(section, CocomixParams) else section
    return taught if isinstance(taught, KdParams) and taught.kl_weight > 0 else None


def regresses(section: MethodParams) -> bool:
    """Whether a method learns to predict the base model's hidden state."""
    return isinstance(section, CocomixParams) and section.predicts == "hidden"


def runs_base(section: MethodParams) -> bool:
    """Whether the base model runs beside a method's model in training."""
    taught = distillation(section)
    return regresses(section) or (taught is not None and taught.source == "online")


def reads_distribution(section: MethodParams) -> bool:
    """Whether a method learns from the base model's sampled distribution."""
    taught = distillation(section)
    return taught is not None and taught.source == "cached"


def mixes_concepts(section: MethodParams) -> bool:
    """Whether a method's model predicts concepts and mixes them, so that they can be steered."""
    return isinstance(section, CocomixParams) and section.predicts == "concepts" and section.mixing != "none"
