"""The section `pretrain`: the language models that are compared, and the forms of cocomix."""

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, ValidationError, model_validator

from cocomix.params.methods import CocomixParams, KdParams, Method, MethodParams, MtpParams, NtpParams, PauseParams
from cocomix.params.model import ModelParams
from cocomix.params.ranges import Seed
from cocomix.params.section import Section
from cocomix.params.training import TrainingParams
from cocomix.plumbing.checked import merge
from cocomix.plumbing.errors import suggestion

Match = Literal["width", "stored", "active", "flops"]


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


def _is_form_name(name: str) -> str:
    if name in (*get_args(Method), "base") or not re.fullmatch("[a-z][a-z0-9_]{0,31}", name):
        raise ValueError(
            "allowed: a small letter, then small letters, digits and _ (32 in all); "
            f"not {', '.join(get_args(Method))}, base"
        )
    return name


def _changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes`, which are nested likewise."""
    found = deepcopy(dict(values))
    merge(found, changes)
    return found


def _agrees(form: Any) -> bool:
    """Whether the values of a form do not contradict each other; wrong values are another matter."""
    try:
        CocomixParams.model_validate(form)
    except ValidationError as error:
        return any(each["loc"] or each["type"] != "value_error" for each in error.errors())
    return True


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
        if unknown := [each for each in self.methods if each not in known]:
            raise ValueError(
                f"methods lists {unknown[0]!r}, which is no method or form; {suggestion(unknown[0], known)}"
            )
        return self
