"""The section `sae`: the sparse autoencoders."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from cocomix.params.ranges import Fraction, Positive, Rate, Seed, Share, Size, Weight
from cocomix.params.section import Section
from cocomix.params.sites import SiteName

Architecture = Literal["topk", "batchtopk", "relu", "jumprelu", "matryoshka", "abstopk"]
Normalization = Literal["none", "token", "whiten"]
SaeFormat = Literal["openai", "sae-lens", "sparsify"]


class PublishedSaeParams(Section):
    """A published autoencoder of another project."""

    path: str | None = None
    """A file (openai) or a folder (sae-lens, sparsify) on this machine."""
    format: SaeFormat = "openai"


class SaeChanges(Section):
    """The parameters in which an autoencoder of `SaeParams.also` differs from `SaeParams`."""

    site: SiteName | None = None
    architecture: Architecture | None = None
    latents: Size | None = None
    k: Size | None = None
    prefixes: list[Size] | None = None
    sparsity_weight: Annotated[float, Field(gt=0, le=1e6)] | None = None
    learning_rate: Rate | None = None
    aux_k: Size | None = None
    dead_tokens: Positive | None = None
    normalize: Normalization | None = None
    ema: Fraction | None = None
    seed: Seed | None = None

    @model_serializer(mode="wrap")
    def _given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Dump the given fields only: `ema: null` means no average, an omitted ema means the value of `SaeParams`."""
        return {key: value for key, value in dump(self).items() if key in self.model_fields_set}


class SaeParams(Section):
    """The sparse autoencoder."""

    architecture: Architecture = "topk"
    """topk: the k largest latents; batchtopk: the k times batch_size largest of a batch; relu: all positive ones, with
    an L1 penalty; jumprelu: those above learned thresholds, k on average; matryoshka: batchtopk with nested
    dictionaries; abstopk: the k largest in magnitude, of either sign."""
    source: Literal["train", "published"] = "train"
    """published: read from another project instead of trained. architecture, latents, k and normalize must then match
    it; training parameters are not used."""
    published: PublishedSaeParams = PublishedSaeParams()
    site: SiteName | None = None
    """The one of `activations.sites` to train on; null: the only one."""
    latents: Size
    """C, the size of the dictionary (paper: 32768)."""
    k: Size
    """Active latents per activation (paper: 32); with relu, only the least number that attribution can select from."""
    prefixes: list[Size] = []
    """matryoshka: sizes of the nested dictionaries, which are prefixes of the latents; ascending."""
    sparsity_weight: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Weight of the sparsity loss beside the fraction of variance unexplained. relu: the L1 of the latents over a
    typical activation's norm; jumprelu: (L0 / k - 1)^2."""
    sparsity_warmup_share: Share = 0.05
    """Share of the steps in which sparsity_weight rises from 0."""
    epochs: Size
    """Passes over the training activations."""
    batch_size: Size
    """Activations per step."""
    learning_rate: Rate
    warmup_share: Share = 0.05
    decay_share: Share = 0.2
    """Share of the steps, at the end, in which the learning rate falls linearly to zero."""
    aux_k: Size
    """Most dead latents that reconstruct the error (AuxK)."""
    aux_weight: Weight = 1 / 32
    dead_tokens: Positive
    """A latent is dead when it has not fired for more than this many tokens."""
    normalize: Normalization = "token"
    """token: subtract each activation's mean, divide by its unbiased standard deviation, as OpenAI's v5; whiten: the
    same per dimension, over activations; none: no normalisation."""
    ema: Fraction | None = None
    """Decay of the moving average of the weights, which becomes the result; null: the last weights."""
    seed: Seed = 0
    checkpoint_every: Positive
    also: dict[Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,100}$")], SaeChanges] = {}
    """Further autoencoders that are trained in the same pass: by name, the parameters that differ from this one. They
    are measured and kept in artifacts/sae/also; the concepts are this one's latents. Another architecture inherits
    neither prefixes nor sparsity_weight."""

    @property
    def concepts(self) -> int:
        """Number of concepts: one per latent; in abstopk, one per latent and sign."""
        return self.latents * (2 if self.architecture == "abstopk" else 1)

    def others(self) -> dict[str, "SaeParams"]:
        """The parameters of each of `also`."""
        return {name: self._but(each) for name, each in self.also.items()}

    def _but(self, changes: SaeChanges) -> "SaeParams":
        given = changes.model_dump()
        without = {"also"}
        if given.get("architecture", self.architecture) != self.architecture:
            without |= {"prefixes", "sparsity_weight"}
        return SaeParams.model_validate(self.model_dump(exclude=without) | given)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.also and self.source == "published":
            raise ValueError("also is for autoencoders that are trained; source is published")
        for name, changes in self.also.items():
            try:
                self._but(changes)
            except ValidationError as error:
                first = error.errors()[0]
                key = ".".join(["also", name, *map(str, first["loc"])])
                raise ValueError(f"{key}: {first['msg'].removeprefix('Value error, ')}") from None
        if self.source == "published" and not self.published.path:
            raise ValueError("source is published, which needs published.path: a file or a folder")
        if self.k > self.latents:
            raise ValueError(f"k ({self.k}) must not exceed latents ({self.latents})")
        if self.source == "train" and (self.sparsity_weight is not None) != (self.architecture in ("relu", "jumprelu")):
            raise ValueError(
                f"sparsity_weight ({self.sparsity_weight}) is for relu and jumprelu, which need it; "
                f"architecture is {self.architecture}"
            )
        if bool(self.prefixes) != (self.architecture == "matryoshka"):
            raise ValueError(
                f"prefixes ({self.prefixes}) are for matryoshka, which needs them; architecture is {self.architecture}"
            )
        if self.prefixes != sorted({*self.prefixes}) or max(self.prefixes, default=0) >= self.latents:
            raise ValueError(f"prefixes ({self.prefixes}) must ascend and be below latents ({self.latents})")
        return self
