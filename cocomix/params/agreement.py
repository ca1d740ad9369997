"""The agreement between sections: which values of one need or exclude values of another.

Each function takes the sections that must agree, and raises a `ValueError` with both keys where they do not.
"""

from cocomix.params.activations import ActivationsParams
from cocomix.params.attribution import AttributionParams
from cocomix.params.base import BaseParams
from cocomix.params.corpus import CorpusParams
from cocomix.params.distribution import DistributionParams
from cocomix.params.evaluate import EvaluateParams
from cocomix.params.methods import CocomixParams, KdParams, MtpParams, distillation, regresses
from cocomix.params.pretrain import PretrainParams
from cocomix.params.sae import SaeParams
from cocomix.params.sites import Site
from cocomix.params.steer import SteerParams
from cocomix.params.tokenize import TokenizeParams


def check_tokenizer(base: BaseParams, distribution: DistributionParams, pretrain: PretrainParams) -> None:
    """What students learn from the base model token by token needs the same tokens."""
    if base.tokenizer == "own" and (keys := _of_one_tokenizer(distribution, pretrain)):
        raise ValueError(
            f"base.tokenizer: own gives the students other tokens, which does not go with {', '.join(keys)}; "
            "distribution.draws can be null, and pretrain.methods can leave methods out"
        )


def _of_one_tokenizer(distribution: DistributionParams, pretrain: PretrainParams) -> list[str]:
    """The parameters, with their values, by which students learn from the base model token by token."""
    keys = [] if distribution.draws is None else [f"distribution.draws ({distribution.draws})"]
    for name, section in pretrain.listed.items():
        key = _key(name, pretrain)
        if taught := distillation(section):
            own = key if isinstance(section, KdParams) else f"{key}.kd"
            keys.append(f"{own}.kl_weight ({taught.kl_weight:g})")
        elif regresses(section):
            keys.append(f"{key}.predicts (hidden)")
    return keys


def check_tokens_ahead(tokenize: TokenizeParams, pretrain: PretrainParams) -> None:
    """A window has the tokens ahead of a position that listed methods learn there."""
    for name, section in pretrain.listed.items():
        ahead = {}
        if isinstance(section, MtpParams):
            ahead["tokens"] = section.tokens
        if isinstance(section, CocomixParams):
            ahead["label_offsets"] = max(section.label_offsets)
        for field, number in ahead.items():
            if number >= tokenize.context:
                raise ValueError(
                    f"{_key(name, pretrain)}.{field} ({number}) must be below tokenize.context ({tokenize.context})"
                )


def _key(method: str, pretrain: PretrainParams) -> str:
    return f"pretrain.forms.{method}" if method in pretrain.forms else f"pretrain.{method}"


def check_decontamination(corpus: CorpusParams, evaluate: EvaluateParams) -> None:
    """Decontamination needs texts to look for."""
    if corpus.decontaminate and not (evaluate.tasks or evaluate.corpora):
        raise ValueError(
            f"corpus.decontaminate ({corpus.decontaminate}): evaluate.tasks and evaluate.corpora are empty: "
            "there is nothing to look for"
        )


def check_blocks(base: BaseParams, activations: ActivationsParams) -> None:
    """Each site needs a block above it, in a base model of known depth."""
    for name in activations.sites:
        layer = Site.parse(name).layer
        if base.source == "train" and layer >= base.model.n_layer:
            raise ValueError(
                f"activations.sites: the block of {name} ({layer}) must be below "
                f"base.model.n_layer ({base.model.n_layer}): attribution needs a block above it"
            )


def check_sites(activations: ActivationsParams, sae: SaeParams) -> None:
    """Each autoencoder needs one of the stored sites."""
    if sae.site is None and len(activations.sites) > 1:
        raise ValueError(f"sae.site must choose one of activations.sites: {', '.join(activations.sites)}")
    others = {f"sae.also.{name}": other for name, other in sae.others().items()}
    for key, section in ({"sae": sae} | others).items():
        if section.site is not None and section.site not in activations.sites:
            raise ValueError(
                f"{key}.site ({section.site}) must be one of activations.sites: {', '.join(activations.sites)}"
            )


def check_score(base: BaseParams, attribution: AttributionParams) -> None:
    """Ablation needs losses that are not rounded."""
    if attribution.score == "ablation" and base.dtype != "fp32":
        raise ValueError(
            f"attribution.score: ablation needs base.dtype: fp32, not {base.dtype}, which rounds away the "
            "differences between losses"
        )


def check_number_of_labels(sae: SaeParams, attribution: AttributionParams) -> None:
    """There are no more labels at a position than latents to choose them from."""
    choice = "latents" if attribution.value == "pre_activation" else "k"
    if attribution.k_attr > getattr(sae, choice):
        raise ValueError(
            f"attribution.k_attr ({attribution.k_attr}) must not exceed sae.{choice} ({getattr(sae, choice)})"
        )


def check_distillation(distribution: DistributionParams, pretrain: PretrainParams) -> None:
    """What reads the sampled distribution needs it to be there, at its own temperature."""
    learns = {f"{key}.kd": distillation(form) for key, form in _forms(pretrain).items() if _is_read(key, pretrain)}
    learns |= {"kd": distillation(pretrain.kd)} if "kd" in pretrain.methods else {}
    for key, kd in learns.items():
        if kd and kd.source == "cached" and distribution.draws is None:
            raise ValueError(f"pretrain.{key}.source is cached, which needs distribution.draws, such as 50")
        if kd and kd.source == "cached" and kd.temperature != distribution.temperature:
            raise ValueError(
                f"pretrain.{key}.temperature ({kd.temperature:g}) must be distribution.temperature "
                f"({distribution.temperature:g}) with source: cached"
            )


def check_concepts(sae: SaeParams, attribution: AttributionParams, pretrain: PretrainParams) -> None:
    """Cocomix and its forms mix no more concepts than there are, and force no labels that know what comes next."""
    for key, form in _forms(pretrain).items():
        if _is_read(key, pretrain) and form.forces_labels and attribution.score != "activation":
            raise ValueError(
                f"pretrain.{key}.teacher_forcing must be 0 with attribution.score: {attribution.score}, whose "
                "labels know what comes next"
            )
        if form.concept_k > sae.concepts:
            raise ValueError(
                f"pretrain.{key}.concept_k ({form.concept_k}) must not exceed the concepts of sae ({sae.concepts})"
            )


def _forms(pretrain: PretrainParams) -> dict[str, CocomixParams]:
    """Cocomix and its forms, by their keys in `pretrain`."""
    return {"cocomix": pretrain.cocomix} | {f"forms.{name}": form for name, form in pretrain.forms.items()}


def _is_read(key: str, pretrain: PretrainParams) -> bool:
    """Whether the key is of cocomix or of a listed form."""
    return key in {"cocomix", *(f"forms.{name}" for name in pretrain.methods)}


def check_stride(tokenize: TokenizeParams, evaluate: EvaluateParams) -> None:
    """Windows of the evaluation overlap, or have no stride."""
    if evaluate.stride is not None and evaluate.stride >= tokenize.context:
        raise ValueError(
            f"evaluate.stride ({evaluate.stride}) must be below tokenize.context ({tokenize.context}): "
            "a window's first token has nothing before it"
        )


def check_continuations(tokenize: TokenizeParams, base: BaseParams, steer: SteerParams) -> None:
    """A prompt and its continuation fit into a window of the students, and of the base model."""
    for key, context in (("tokenize", tokenize.context), ("base", base.context)):
        if context is not None and steer.prompt_tokens + steer.new_tokens > context:
            raise ValueError(
                f"steer.prompt_tokens ({steer.prompt_tokens}) and steer.new_tokens ({steer.new_tokens}) "
                f"together must not exceed {key}.context ({context})"
            )


def check_batch(activations: ActivationsParams, sae: SaeParams) -> None:
    """There are activations for at least one step of the autoencoder."""
    if activations.tokens < sae.batch_size:
        raise ValueError(
            f"activations.tokens ({activations.tokens}) must be at least sae.batch_size ({sae.batch_size})"
        )
