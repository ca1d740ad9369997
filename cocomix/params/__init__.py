"""Parameters: every scientific knob, one section per stage, typed, frozen and closed to unknown keys.

`params.yaml` is read into `Params`, each section by the module of its name. An unknown key, a wrong type or two
contradictory values raise a `UserError` of one line that names the file, the key, the value, and what is allowed.
"""

from functools import lru_cache
from pathlib import Path
from typing import Self

from pydantic import model_validator

from cocomix.params import agreement
from cocomix.params.activations import ActivationsParams
from cocomix.params.attribution import AttributionParams, Scope, Sign
from cocomix.params.base import BaseParams
from cocomix.params.corpus import CorpusParams, FilesParams, HubParams, InstalledDocsParams
from cocomix.params.distribution import DistributionParams
from cocomix.params.evaluate import EvaluateParams, EvaluationCorpusParams
from cocomix.params.explain import ExplainModelParams, ExplainParams
from cocomix.params.methods import (
    CocomixParams,
    HiddenDistance,
    KdParams,
    Method,
    MethodParams,
    MtpParams,
    NtpParams,
    PauseParams,
    ScheduleParams,
    distillation,
    mixes_concepts,
    reads_distribution,
    regresses,
    runs_base,
)
from cocomix.params.model import Backbone, ModelParams
from cocomix.params.pretrain import InitParams, Match, PretrainParams
from cocomix.params.ranges import LAYERS, Seed
from cocomix.params.report import ReportParams
from cocomix.params.sae import Architecture, Normalization, SaeFormat, SaeParams
from cocomix.params.section import Section
from cocomix.params.sites import Location, Site
from cocomix.params.steer import SteerParams
from cocomix.params.tokenize import TokenizeParams
from cocomix.params.training import TrainingParams
from cocomix.plumbing.checked import mapping, parse, read_file

__all__ = [
    "FILE",
    "LAYERS",
    "ActivationsParams",
    "Architecture",
    "AttributionParams",
    "Backbone",
    "BaseParams",
    "CocomixParams",
    "CorpusParams",
    "DistributionParams",
    "EvaluateParams",
    "EvaluationCorpusParams",
    "ExplainModelParams",
    "ExplainParams",
    "FilesParams",
    "HiddenDistance",
    "HubParams",
    "InitParams",
    "InstalledDocsParams",
    "KdParams",
    "Location",
    "Match",
    "Method",
    "MethodParams",
    "ModelParams",
    "MtpParams",
    "Normalization",
    "NtpParams",
    "Params",
    "PauseParams",
    "PretrainParams",
    "ReportParams",
    "SaeFormat",
    "SaeParams",
    "ScheduleParams",
    "Scope",
    "Section",
    "Seed",
    "Sign",
    "Site",
    "SteerParams",
    "TokenizeParams",
    "TrainingParams",
    "distillation",
    "load",
    "mixes_concepts",
    "reads_distribution",
    "regresses",
    "runs_base",
]

FILE = Path("params.yaml")


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

    @model_validator(mode="after")
    def _agree(self) -> Self:
        agreement.check_tokenizer(self.base, self.distribution, self.pretrain)
        agreement.check_tokens_ahead(self.tokenize, self.pretrain)
        agreement.check_decontamination(self.corpus, self.evaluate)
        agreement.check_blocks(self.base, self.activations)
        agreement.check_sites(self.activations, self.sae)
        agreement.check_score(self.base, self.attribution)
        agreement.check_number_of_labels(self.sae, self.attribution)
        agreement.check_distillation(self.distribution, self.pretrain)
        agreement.check_concepts(self.sae, self.attribution, self.pretrain)
        agreement.check_stride(self.tokenize, self.evaluate)
        agreement.check_continuations(self.tokenize, self.base, self.steer)
        agreement.check_batch(self.activations, self.sae)
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
