"""The sections `base.training` and `pretrain.training`: the optimiser and its schedule."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cocomix.params.ranges import Beta, Positive, Rate, Share, Size, Weight
from cocomix.params.section import Section


class TrainingParams(Section):
    """The optimiser and its schedule; the defaults are the paper's, AdamW and a cosine (App. A)."""

    steps: Positive
    batch_size: Size
    """Windows per step."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw: for all parameters; muon: Muon for the matrices of the blocks (arXiv 2502.16982), AdamW for the others:
    embeddings, the mixer, biases and norms."""
    learning_rate: Rate
    """Peak learning rate, AdamW's."""
    muon_learning_rate: Rate | None = None
    """Peak learning rate of Muon, whose updates are scaled to be as large as AdamW's; null: learning_rate."""
    schedule: Literal["cosine", "warmup_stable_decay"] = "cosine"
    """The learning rate after the warm-up. cosine: falls along half a cosine; warmup_stable_decay: stays, then falls
    linearly."""
    warmup_share: Share = 0.05
    """Share of the steps with linear warm-up (paper: 1/300)."""
    decay_share: Share = 0.2
    """Share of the steps, at the end, in which the learning rate falls, with schedule: warmup_stable_decay."""
    final_share: Share = 0.1
    """Final learning rate over the peak."""
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.95)
    """AdamW's."""
    weight_decay: Weight = 0.1
    decay: Literal["matrices", "all"] = "matrices"
    """Parameters with weight decay: matrices, without biases, norms and other vectors; all, as in the released code."""
    clip: Annotated[float, Field(gt=0, le=1e30)] = 1.0
    """Largest norm of the gradient; larger ones are clipped."""
    eval_every: Positive
    """Steps between two validation losses on the curve."""
    eval_windows: Size
    """Validation windows for a point of the curve (the final evaluation uses all)."""
    checkpoint_every: Positive
    """Steps between two checkpoints."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.muon_learning_rate is not None and self.optimizer != "muon":
            raise ValueError(
                f"muon_learning_rate ({self.muon_learning_rate:g}) must be null with optimizer: {self.optimizer}"
            )
        if self.schedule == "warmup_stable_decay" and self.warmup_share + self.decay_share > 1:
            raise ValueError(
                f"warmup_share ({self.warmup_share:g}) and decay_share ({self.decay_share:g}) together must not exceed "
                "1 with schedule: warmup_stable_decay"
            )
        return self
