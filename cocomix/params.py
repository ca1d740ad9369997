"""Parameters: every scientific knob, one section per stage, typed, frozen and closed to unknown keys.

`params.yaml` is read into `Params`. An unknown key, a wrong type or two contradictory values raise a `UserError` of one
line that names the file, the key, the value, and what is allowed.
"""

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from cocomix.plumbing.checked import mapping, parse, read_file
from cocomix.plumbing.errors import suggestion

FILE = Path("params.yaml")

LONGEST = 4096
"""Most characters of a text parameter, as of a path on Linux."""

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0, le=2**40)]
Size = Annotated[int, Field(gt=0, le=2**24)]
"""A dimension or count of things that are in memory at once."""
LAYERS = 2**10
"""Most blocks of a model."""
Layers = Annotated[int, Field(gt=0, le=LAYERS)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Rate = Annotated[float, Field(gt=0, le=1e3)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Megabytes = Annotated[float, Field(gt=0, le=1e9)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Temperature = Annotated[float, Field(gt=0, le=100)]
HiddenDistance = Literal["l1", "l2", "cosine"]
Method = Literal["ntp", "kd", "pause", "mtp", "cocomix"]
"""The kinds of methods; what is listed and compared by name is one of them, or a form of `cocomix`."""
Match = Literal["width", "stored", "active", "flops"]
Score = Literal["gradient", "activation", "integrated", "ablation"]
Sign = Literal["released", "helpful", "absolute"]
Scope = Literal["sequence", "next_token"]
Architecture = Literal["topk", "batchtopk", "relu", "jumprelu", "matryoshka", "abstopk"]
Normalization = Literal["none", "token", "whiten"]
SaeFormat = Literal["openai", "sae-lens", "sparsify"]

Location = Literal["resid_post", "resid_mid", "attn_out", "mlp_out"]


class Site(NamedTuple):
    """A site of activations in the base model, written `resid_post_2`."""

    location: Location
    """resid_post: the residual stream after the block; resid_mid: between its attention and its MLP; attn_out,
    mlp_out: the outputs of the two."""
    layer: int
    """The number of the block, from 1: `resid_post_2` is `hidden_states[2]`."""

    @classmethod
    def parse(cls, name: str) -> "Site":
        """Parse the name of a site.

        Raises:
            ValueError: when `name` is not a site.
        """
        location, _, layer = name.rpartition("_")
        if location not in get_args(Location) or not re.fullmatch("[1-9][0-9]{0,8}", layer):
            raise ValueError(f"allowed: {', '.join(get_args(Location))}, each with _ and the number of a block from 1")
        return cls(location, int(layer))  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.location}_{self.layer}"


def _is_site(name: str) -> str:
    Site.parse(name)
    return name


SiteName = Annotated[str, AfterValidator(_is_site)]
"""`<location>_<block>`: see `Site`."""


class Section(BaseModel):
    """Base of all sections: frozen, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        """Reject text that cannot be written to a file or name one: JSON and command lines can hold lone surrogates."""
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str) and (len(each) > LONGEST or re.search("[\0\ud800-\udfff]", each)):
                raise ValueError(f"must be text of at most {LONGEST} characters, without null and half characters")
        return value


class FilesParams(Section):
    """Text files on this machine."""

    paths: list[str] = []
    """Globs relative to the project: .txt, .md, .jsonl, .parquet, each plain or .gz or .zst. A text file is one
    document, cut at blank lines where it is longer than 2^16 characters."""
    text_field: str = "text"
    """Field or column that holds the text (.jsonl, .parquet)."""


class HubParams(Section):
    """A dataset of the Hugging Face hub."""

    dataset: str | None = None
    config: str | None = None
    revision: str | None = None
    """Commit or tag; required, because the data may change without it. A tag can be moved; a commit cannot."""
    split: str = "train"
    text_field: str = "text"
    limit: Positive | None = None
    """Most documents to read; null: all."""


class InstalledDocsParams(Section):
    """The documentation of Python and of the installed packages that are used here."""

    megabytes: Megabytes | None = None
    """Most text to keep, in 10^6 UTF-8 bytes; null: all."""


class CorpusParams(Section):
    """The corpus: the source of its documents, and the splits."""

    source: Literal["installed-docs", "files", "hub"]
    installed_docs: InstalledDocsParams = InstalledDocsParams()
    files: FilesParams = FilesParams()
    hub: HubParams = HubParams()
    megabytes: Megabytes | None = None
    """Most text to keep of any source, in 10^6 UTF-8 bytes; null: all."""
    validation_share: Fraction
    """Share of the documents (installed-docs: of the bytes, in whole packages) that becomes the validation split."""
    test_share: Fraction
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = None
    """Similarity from which two documents are near-duplicates, of which one is kept; null: all are kept."""
    decontaminate: Literal["count", "drop"] | None = None
    """What happens to documents that contain a piece of a text of evaluate.tasks or evaluate.corpora; null: they are
    not looked for."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.source == "files" and not self.files.paths:
            raise ValueError("source is files, but files.paths is empty: give at least one glob")
        if self.source == "installed-docs" and self.near_duplicates is not None:
            raise ValueError("near_duplicates needs source: files or hub; installed-docs drops them by itself")
        if self.source == "hub" and not (self.hub.dataset and self.hub.revision):
            raise ValueError("source is hub, which needs hub.dataset and hub.revision")
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share + test_share must be below 1: nothing is left for training")
        return self

    @property
    def used(self) -> dict[str, Any]:
        """The parameters that the corpus depends on: without options that are off or only count."""
        options = {"near_duplicates": self.near_duplicates is None, "decontaminate": self.decontaminate != "drop"}
        return self.model_dump(mode="json", exclude={name for name, is_off in options.items() if is_off})

    @property
    def limit(self) -> tuple[str, float]:
        """The key that limits the text, and most of its UTF-8 bytes; infinite: all."""
        limits = {"corpus.megabytes": self.megabytes}
        if self.source == "installed-docs":
            limits["corpus.installed_docs.megabytes"] = self.installed_docs.megabytes
        found = {key: math.inf if each is None else each * 1e6 for key, each in limits.items()}
        return min(found.items(), key=lambda each: each[1])


class TokenizeParams(Section):
    """The tokenizer and the token windows."""

    source: Literal["train", "pretrained"]
    pretrained: str | None = None
    """Hub id or folder of the tokenizer."""
    revision: str | None = None
    """Commit or tag of the hub id; required with one, as in `HubParams`."""
    vocab_size: Annotated[int, Field(ge=257, le=2**24)] = 4096
    """Entries of the trained byte-level BPE, the end-of-document token included."""
    train_megabytes: Megabytes = 100.0
    """Most text to train the tokenizer on, in 10^6 UTF-8 bytes."""
    context: Annotated[int, Field(ge=2, le=2**24)]
    """Tokens per window; the last token of a window has no next token."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.source == "pretrained" and not self.pretrained:
            raise ValueError("source is pretrained, which needs pretrained: a hub id or a folder")
        return self


Backbone = Literal["gpt2", "llama"]


class ModelParams(Section):
    """The shape of a plain language model."""

    backbone: Backbone = "gpt2"
    """llama: RMSNorm, rotary positions, SwiGLU, and the two options below, which are of llama only."""
    d_model: Size
    n_layer: Layers
    n_head: Size
    n_kv_head: Size | None = None
    """Heads of keys and values, each read by n_head / n_kv_head heads of queries; null: n_head."""
    qk_norm: bool = False
    """Whether each head's queries and keys are normalised."""
    dropout: Share = 0.0

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.d_model % self.n_head:
            raise ValueError(f"d_model ({self.d_model}) must be a multiple of n_head ({self.n_head})")
        if self.backbone == "gpt2" and (self.n_kv_head or self.qk_norm):
            raise ValueError("n_kv_head and qk_norm are of backbone: llama; with gpt2, they must be null and false")
        if self.backbone == "llama":
            if self.d_model // self.n_head % 2:
                raise ValueError(f"d_model ({self.d_model}) must be an even multiple of n_head ({self.n_head})")
            if self.n_head % (self.n_kv_head or 1):
                raise ValueError(f"n_head ({self.n_head}) must be a multiple of n_kv_head ({self.n_kv_head})")
            if self.dropout:
                raise ValueError(f"dropout ({self.dropout:g}) must be 0 with backbone: llama")
        return self


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


class BaseParams(Section):
    """The base model (teacher): the language model whose hidden states the concepts describe."""

    source: Literal["train", "pretrained"]
    pretrained: str | None = None
    """Hub id or folder of a causal language model."""
    revision: str | None = None
    """Commit or tag of the hub id; required with one, as in `HubParams`."""
    tokenizer: Literal["shared", "own"] = "shared"
    """shared: it reads the tokens of the students; own: it keeps its own tokenizer, and labels are aligned."""
    context: Annotated[int, Field(ge=2, le=2**24)] | None = None
    """Tokens per window of its own tokenizer; null: tokenize.context."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the weights and hidden states of a pretrained model. bf16: half the memory and disk, and less precise."""
    seed: Seed = 0
    model: ModelParams
    training: TrainingParams

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.source == "pretrained" and not self.pretrained:
            raise ValueError("source is pretrained, which needs pretrained: a hub id or a folder")
        if self.tokenizer == "own" and self.source == "train":
            raise ValueError(
                "tokenizer: own needs source: pretrained; one that is trained here reads the students' tokens"
            )
        if self.tokenizer == "shared" and self.context is not None:
            raise ValueError(f"context ({self.context}) needs tokenizer: own; a shared one has tokenize.context")
        if self.dtype != "fp32" and self.source == "train":
            raise ValueError(f"dtype: {self.dtype} needs source: pretrained; one that is trained here has fp32 weights")
        return self


class ActivationsParams(Section):
    """The stored activations of the base model."""

    sites: Annotated[list[SiteName], Field(min_length=1)]
    """Sites in the base model, all read in one pass: `resid_post_2` is the residual stream after 2 blocks,
    `hidden_states[2]`; the other locations are resid_mid, attn_out, mlp_out."""
    tokens: Positive
    """Training activations to store per site, in whole windows."""
    validation_tokens: Positive
    """Held-out activations to store per site, from the validation split."""
    drop_first: bool = False
    """Whether to drop position 0 of each window (with separate_documents, of each document), whose activations are far
    larger than all others in many models."""
    drop_tokens: list[Annotated[int, Field(ge=-(2**40), le=2**40)] | str] = []
    """Tokens to drop, by id or by their text in the vocabulary."""
    separate_documents: bool = False
    """Whether attention and position ids restart at each document of a window. This affects the stored activations
    only; labels, spliced losses and the atlas use whole windows, as the language models do."""
    dtype: Literal["fp16", "bf16", "int8"] = "fp16"
    """Type of the stored numbers. bf16: for activations above 65504; int8: half the size, scaled per dimension."""
    shard_tokens: Positive
    """Tokens per Parquet file: the range of the shuffle on disk, and the unit of resuming."""
    row_group_tokens: Size
    """Tokens per row group: the unit of reading."""
    mixed_shards: Size | None = None
    """Files whose row groups are shuffled together when reading; null: all."""
    keep: bool = True
    """Whether to store the training activations. If not, autoencoder training recomputes them in each epoch, in the
    same order, for each site and in each process, and holds `mixed_shards` files in memory."""
    seed: Seed = 0
    """Seed of the choice of windows and of the shuffle."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if len(set(self.sites)) < len(self.sites):
            raise ValueError(f"sites lists a value twice: {self.sites}")
        if not self.keep and self.mixed_shards is None:
            raise ValueError("keep is false, which needs mixed_shards: as many files as fit into memory")
        return self


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


class AttributionParams(Section):
    """Which concepts matter for the next token (paper Eq. 1)."""

    k_attr: Size
    """Labels per position (paper: 4)."""
    score: Score
    """gradient: gradient times activation (paper Eq. 1); activation: the activation alone (Fig. 6a); integrated:
    gradient times activation, with the gradient averaged along the path from no latents to all of them; ablation: the
    loss minus the loss with the latent set to zero, which is exact and hundreds of times slower."""
    sign: Sign
    """For scores that are a change of the loss. released: the largest positive ones, without which the loss would fall;
    helpful: the most negative ones, without which it would rise; absolute: the largest magnitudes."""
    scope: Scope = "sequence"
    """The loss in the score. sequence: the whole window's (released code); next_token: the position's own next-token
    loss (paper Eq. 1)."""
    value: Literal["activation", "pre_activation"] = "activation"
    """The factor of the gradient. activation: latents after the selection, so that only active ones become labels
    (released code); pre_activation: latents before the selection, of the whole dictionary (paper Eq. 1)."""
    integrated_steps: Size = 8
    """Gradients along the path, with score: integrated."""
    shard_tokens: Positive
    """Tokens per Parquet file, in whole windows: the unit of resuming and of dividing the work."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.value == "pre_activation" and self.score != "gradient":
            raise ValueError(f"value: pre_activation needs score: gradient, not {self.score}")
        if self.score == "activation" and self.scope == "next_token":
            raise ValueError("scope: next_token needs a score that is a change of the loss, not activation")
        if self.score == "activation" and self.sign != "released":
            raise ValueError(f"sign: {self.sign} needs a score that is a change of the loss, not activation")
        return self


class DistributionParams(Section):
    """The base model's next-token distribution, sampled once for all models that learn from it (arXiv 2503.16870)."""

    draws: Annotated[int, Field(gt=0, le=255)] | None = None
    """Tokens drawn with replacement at each position (50: 25 to 50 bytes per token); null: none are stored."""
    temperature: Temperature = 1.0
    """Divides the base model's logits before the draw."""
    shard_tokens: Positive = 65_536
    """Tokens per Parquet file, in whole windows: the unit of resuming and of dividing the work."""
    seed: Seed = 0


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
    if isinstance(section, CocomixParams):
        return section.kd if section.kd.kl_weight > 0 else None
    return section if isinstance(section, KdParams) else None


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


def _is_form_name(name: str) -> str:
    if name in (*get_args(Method), "base") or not re.fullmatch("[a-z][a-z0-9_]{0,31}", name):
        raise ValueError(
            "allowed: a small letter, then small letters, digits and _ (32 in all); "
            f"not {', '.join(get_args(Method))}, base"
        )
    return name


def _changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes`, which are nested likewise."""
    return {**values} | {
        key: _changed(values[key], change)
        if isinstance(change, Mapping) and isinstance(values.get(key), Mapping)
        else change
        for key, change in changes.items()
    }


def _agrees(form: Any) -> bool:
    """Whether the values of a form do not contradict each other; wrong values are another matter."""
    try:
        CocomixParams.model_validate(form)
    except ValidationError as error:
        return any(each["loc"] or each["type"] != "value_error" for each in error.errors())
    return True


class InitParams(Section):
    """The weights from which the language models start."""

    source: Literal["scratch", "pretrained"] = "scratch"
    """scratch: random ones; pretrained: those of a causal language model, which also gives all of them their shape."""
    path: str | None = None
    """Hub id or folder of a GPT-2, Llama or Qwen3."""
    revision: str | None = None
    """Commit or tag of the hub id; required with one, as in `HubParams`."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.source == "pretrained" and not self.path:
            raise ValueError("source is pretrained, which needs path: a hub id or a folder")
        return self


class PretrainParams(Section):
    """The language models that are compared."""

    methods: Annotated[list[str], Field(min_length=1)]
    """Methods, and forms of cocomix by their names, in the order of the report."""
    seeds: Annotated[list[Seed], Field(min_length=1)]
    match: Match
    """What ntp, kd and mtp share with cocomix, by choice of their width. width: the width of `model`; stored:
    parameters; active: parameters that one token uses (paper); flops: training FLOPs per token."""
    init: InitParams = InitParams()
    model: ModelParams
    """With `init.source: pretrained`, only its dropout is used."""
    training: TrainingParams
    ntp: NtpParams
    kd: KdParams
    pause: PauseParams
    mtp: MtpParams
    cocomix: CocomixParams
    forms: dict[Annotated[str, AfterValidator(_is_form_name)], CocomixParams] = {}
    """Further forms of cocomix, by name: given are the parameters in which one differs, kept are all."""

    def kind(self, name: str) -> Method:
        """The method that a listed name stands for."""
        return "cocomix" if name in self.forms else name  # type: ignore[return-value]

    def section(self, name: str) -> MethodParams:
        """The parameters of a method or form."""
        section: MethodParams = self.forms.get(name) or getattr(self, name)
        return section

    @property
    def listed(self) -> dict[str, MethodParams]:
        """The parameters of each of `methods`."""
        return {name: self.section(name) for name in self.methods}

    @property
    def concept_layers(self) -> dict[str, int]:
        """The layer at which each method and form that has one predicts, by its key."""
        layers = {"cocomix.concept_layer": self.cocomix.concept_layer, "pause.layer": self.pause.layer}
        return layers | {f"forms.{name}.concept_layer": form.concept_layer for name, form in self.forms.items()}

    @model_validator(mode="before")
    @classmethod
    def _complete_forms(cls, given: Any) -> Any:
        """Put the changes of each form into the parameters of cocomix, so that errors name the form's own key.

        What is no error in itself, but does not go together with `pretrain.cocomix`, leaves a form out that is not
        listed: the values of cocomix can be tried without a thought of it.
        """
        if not isinstance(given, Mapping) or not isinstance(forms := given.get("forms"), Mapping):
            return given
        cocomix = given.get("cocomix")
        values = cocomix.model_dump() if isinstance(cocomix, CocomixParams) else cocomix
        if not isinstance(values, Mapping):
            return given
        complete = {
            name: _changed(values, changes) if isinstance(changes, Mapping) else changes
            for name, changes in forms.items()
        }
        listed = methods if isinstance(methods := given.get("methods"), list) else []
        return {**given, "forms": {name: form for name, form in complete.items() if name in listed or _agrees(form)}}

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.init.source == "pretrained":
            if self.match != "width":
                raise ValueError(
                    f"match ({self.match}) must be width with init.source: pretrained, whose model gives all methods "
                    "its width"
                )
        else:
            for key, layer in self.concept_layers.items():
                if layer >= self.model.n_layer:
                    raise ValueError(f"{key} ({layer}) must be below model.n_layer ({self.model.n_layer})")
        for name, values in (("methods", self.methods), ("seeds", self.seeds)):
            if len(set(values)) < len(values):  # type: ignore[arg-type]
                raise ValueError(f"{name} lists a value twice: {values}")
        known = [*get_args(Method), *self.forms]
        if unknown := next((each for each in self.methods if each not in known), None):
            raise ValueError(f"methods lists {unknown!r}, which is no method or form; {suggestion(unknown, known)}")
        return self


class EvaluationCorpusParams(Section):
    """A further evaluation corpus, from files as in `FilesParams`."""

    paths: Annotated[list[str], Field(min_length=1)]
    text_field: str = "text"
    megabytes: Megabytes | None = None
    """Most text to use, from the beginning, in 10^6 UTF-8 bytes; null: all."""


def _is_corpus_name(name: str) -> str:
    if name in ("train", "validation", "test") or not re.fullmatch("[A-Za-z][A-Za-z0-9_-]{0,99}", name):
        raise ValueError("allowed: a letter, then letters, digits, _ and - (100 in all); not train, validation, test")
    return name


class EvaluateParams(Section):
    """Evaluation of the trained models."""

    batch_size: Size
    """Most windows per forward pass."""
    stride: Positive | None = None
    """Tokens between the starts of two windows: each token is predicted once, from at least context - stride tokens.
    null: windows do not overlap, and the first token of each is not predicted."""
    corpora: dict[Annotated[str, AfterValidator(_is_corpus_name)], EvaluationCorpusParams] = {}
    """Further corpora, by their names in the metrics."""
    intervention_windows: Annotated[int, Field(ge=2, le=2**24)]
    """Validation windows on which a model's concepts are changed, to measure the effect on its loss: at least two,
    since vectors are exchanged between windows."""
    tasks: list[str] = []
    """lm-eval tasks, by name."""
    tasks_dir: str | None = None
    """Folder of the tasks' data; null: the hub."""
    task_limit: Positive | None = None
    """Most examples per task; null: all."""


class SteerParams(Section):
    """Measurement of the steering of concepts."""

    concepts: Annotated[int, Field(ge=2, le=2**24)]
    """Concepts to steer, sampled from those that every CoCoMix model mixes in the text; for each, the edits of the
    others are the control."""
    strengths: Annotated[list[Annotated[float, Field(ge=-1e6, le=1e6)]], Field(min_length=1)]
    """Strengths that are set, or factors by which strengths are scaled."""
    windows: Size
    """Validation windows to measure the loss on; their first tokens are the prompts."""
    prompt_tokens: Size
    new_tokens: Annotated[int, Field(ge=2, le=2**24)]
    """Tokens of each continuation."""
    promoted: Size
    """Tokens that a concept promotes most: their probability is measured, and predicted concepts list them."""
    read_windows: Size
    """Most validation windows to measure each model's prediction of every concept on."""
    seed: Seed = 0
    """Seed of the choice of concepts and windows, and of the continuations."""

    @field_validator("strengths")
    @classmethod
    def _steer(cls, strengths: list[float]) -> list[float]:
        if 0 in strengths or len(set(strengths)) < len(strengths):
            raise ValueError("must be different numbers other than 0, of which the direction is known")
        return sorted(strengths)


class ExplainModelParams(Section):
    """A causal language model that writes and tests labels."""

    name: str | None = None
    """Hub id or folder."""
    revision: str | None = None
    """Commit or tag of the hub id; required with one, as in `HubParams`."""
    concepts: Size | None = None
    """Number of most frequent concepts that the model labels; the others keep their tokens as labels. null: all."""
    contexts: Size = 10
    """Strongest contexts in a prompt."""
    judged: Size = 10
    """Held-out contexts with the concept, and as many without it, on which a label is tested."""


class ExplainParams(Section):
    """The atlas: what concepts mean."""

    tokens: Positive
    """Training tokens to search, in whole windows."""
    held_out_tokens: Positive
    """Validation tokens on which labels are tested, in whole windows."""
    contexts: Size
    """Contexts of a concept's strongest firings, at most one per window."""
    quantiles: Size
    """Contexts spread evenly over the strengths of a concept."""
    before: Annotated[int, Field(ge=2, le=2**16)]
    after: Annotated[int, Field(gt=0, le=2**16)]
    """Tokens of a context before and after the token on which the concept fires."""
    sample: Size
    """Random sample of a concept's firings, for the tokens on which it fires and for its label."""
    shown: Size
    """Number of tokens on which a concept fires, of tokens that it promotes, and of nearest concepts to list."""
    label_tokens: Size
    """Most tokens of a label."""
    held_out: Size
    """Held-out firings of a concept on which its label is tested."""
    labeller: Literal["tokens", "model"] = "tokens"
    """tokens: a label is the tokens that distinguish a concept's contexts from others; model: a language model writes
    it."""
    model: ExplainModelParams = ExplainModelParams()
    shard_tokens: Positive
    """Tokens processed together, in whole windows: the unit of resuming and of dividing the work."""
    seed: Seed = 0
    """Seed of the choice of windows and of the samples."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.labeller == "model" and not self.model.name:
            raise ValueError("labeller is model, which needs model.name: a hub id or a folder")
        if self.model.judged > self.held_out:
            raise ValueError(f"model.judged ({self.model.judged}) must not exceed held_out ({self.held_out})")
        if self.model.contexts > self.contexts:
            raise ValueError(f"model.contexts ({self.model.contexts}) must not exceed contexts ({self.contexts})")
        return self


class ReportParams(Section):
    """The report."""

    title: str
    label_runs: Size
    """Training runs that share the base model, the autoencoder and the labels; their cost is divided by this number."""


class Params(Section):
    """All sections of params.yaml."""

    corpus: CorpusParams
    tokenize: TokenizeParams
    base: BaseParams
    activations: ActivationsParams
    sae: SaeParams
    attribution: AttributionParams
    distribution: DistributionParams
    explain: ExplainParams
    pretrain: PretrainParams
    evaluate: EvaluateParams
    steer: SteerParams
    report: ReportParams

    @property
    def _of_one_tokenizer(self) -> str | None:
        """A parameter, with its value, by which students learn from the base model token by token."""
        if self.distribution.draws is not None:
            return f"distribution.draws ({self.distribution.draws})"
        for name, section in self.pretrain.listed.items():
            key = f"pretrain.forms.{name}" if name in self.pretrain.forms else f"pretrain.{name}"
            if taught := distillation(section):
                own = key if isinstance(section, KdParams) else f"{key}.kd"
                return f"{own}.kl_weight ({taught.kl_weight:g})"
            if regresses(section):
                return f"{key}.predicts (hidden)"
        return None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.base.tokenizer == "own" and (key := self._of_one_tokenizer):
            raise ValueError(f"{key} needs base.tokenizer: shared, not own: the students have other tokens")
        if self.corpus.decontaminate and not (self.evaluate.tasks or self.evaluate.corpora):
            raise ValueError(
                f"corpus.decontaminate ({self.corpus.decontaminate}): evaluate.tasks and evaluate.corpora are empty: "
                "there is nothing to look for"
            )
        for name in self.activations.sites:
            layer = Site.parse(name).layer
            if self.base.source == "train" and layer >= self.base.model.n_layer:
                raise ValueError(
                    f"activations.sites: the block of {name} ({layer}) must be below "
                    f"base.model.n_layer ({self.base.model.n_layer}): attribution needs a block above it"
                )
        if self.sae.site is None and len(self.activations.sites) > 1:
            raise ValueError(f"sae.site must choose one of activations.sites: {', '.join(self.activations.sites)}")
        others = {f"sae.also.{name}": other for name, other in self.sae.others().items()}
        for key, section in ({"sae": self.sae} | others).items():
            if section.site is not None and section.site not in self.activations.sites:
                raise ValueError(
                    f"{key}.site ({section.site}) must be one of activations.sites: {', '.join(self.activations.sites)}"
                )
        if self.attribution.score == "ablation" and self.base.dtype != "fp32":
            raise ValueError(
                f"attribution.score: ablation needs base.dtype: fp32, not {self.base.dtype}, which rounds away the "
                "differences between losses"
            )
        choice = "latents" if self.attribution.value == "pre_activation" else "k"
        if self.attribution.k_attr > getattr(self.sae, choice):
            raise ValueError(
                f"attribution.k_attr ({self.attribution.k_attr}) must not exceed "
                f"sae.{choice} ({getattr(self.sae, choice)})"
            )
        pretrain = self.pretrain
        forms = {"cocomix": pretrain.cocomix} | {f"forms.{name}": form for name, form in pretrain.forms.items()}
        read = {"cocomix", *(f"forms.{name}" for name in pretrain.methods)}
        learns = {f"{key}.kd": distillation(form) for key, form in forms.items() if key in read}
        learns |= {"kd": pretrain.kd} if "kd" in pretrain.methods else {}
        for key, kd in learns.items():
            if kd and kd.source == "cached" and self.distribution.draws is None:
                raise ValueError(f"pretrain.{key}.source is cached, which needs distribution.draws, such as 50")
            if kd and kd.source == "cached" and kd.temperature != self.distribution.temperature:
                raise ValueError(
                    f"pretrain.{key}.temperature ({kd.temperature:g}) must be distribution.temperature "
                    f"({self.distribution.temperature:g}) with source: cached"
                )
        for key, form in forms.items():
            if key in read and form.forces_labels and self.attribution.score != "activation":
                raise ValueError(
                    f"pretrain.{key}.teacher_forcing must be 0 with attribution.score: {self.attribution.score}, whose "
                    "labels know what comes next"
                )
            if form.concept_k > self.sae.concepts:
                raise ValueError(
                    f"pretrain.{key}.concept_k ({form.concept_k}) must not exceed "
                    f"the concepts of sae ({self.sae.concepts})"
                )
        if self.evaluate.stride is not None and self.evaluate.stride >= self.tokenize.context:
            raise ValueError(
                f"evaluate.stride ({self.evaluate.stride}) must be below tokenize.context ({self.tokenize.context}): "
                "a window's first token has nothing before it"
            )
        if self.steer.prompt_tokens + self.steer.new_tokens > self.tokenize.context:
            raise ValueError(
                f"steer.prompt_tokens ({self.steer.prompt_tokens}) and steer.new_tokens ({self.steer.new_tokens}) "
                f"together must not exceed tokenize.context ({self.tokenize.context})"
            )
        if self.base.context is not None and self.steer.prompt_tokens + self.steer.new_tokens > self.base.context:
            raise ValueError(
                f"steer.prompt_tokens ({self.steer.prompt_tokens}) and steer.new_tokens ({self.steer.new_tokens}) "
                f"together must not exceed base.context ({self.base.context})"
            )
        if self.activations.tokens < self.sae.batch_size:
            raise ValueError(
                f"activations.tokens ({self.activations.tokens}) must be at least "
                f"sae.batch_size ({self.sae.batch_size})"
            )
        return self


def load(path: Path = FILE) -> Params:
    """Read and check all parameters.

    Raises:
        UserError: one line that names the file, the key, the value and what is allowed.
    """
    return _parsed(read_file(path), str(path))


@lru_cache(maxsize=1)  # a stage looks several times whether its parameters are still the same
def _parsed(content: bytes, source: str) -> Params:
    return parse(Params, mapping(content, source), source)
