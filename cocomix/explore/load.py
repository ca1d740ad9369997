"""Load a finished pipeline's models, labels and atlas, to read and change concepts."""

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from cocomix import pretrained
from cocomix.attribution.labels import ConceptLabels
from cocomix.base.loading import load_base
from cocomix.explain.atlas import Atlas
from cocomix.modeling import CoCoMixLanguageModel, ConceptFields
from cocomix.params import AttributionParams, CocomixParams
from cocomix.plumbing.artifact import MANIFEST, Artifact
from cocomix.plumbing.checked import parse
from cocomix.plumbing.device import device
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.origins import check_origins
from cocomix.sae.autoencoder import load_sae
from cocomix.shapes.methods import supervision
from cocomix.steering.reading import Extractor


def load_model(folder: Path) -> tuple[CoCoMixLanguageModel, PreTrainedTokenizerFast]:
    """Load a CoCoMix model in fp32 for inference on this process's device, and its tokenizer.

    Raises:
        UserError: when the folder holds none, or the artifact is damaged.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no model there (no config.json); name a folder such as artifacts/models/cocomix-0")
    ours = (folder / MANIFEST).is_file()
    if ours:
        Artifact(folder).verified()
    model = pretrained.load_model("--model", str(folder), None, torch.float32)
    config = model.config
    if not isinstance(config, ConceptFields) or config.predicts != "concepts":
        predicts = f" that predicts {config.predicts}" if isinstance(config, ConceptFields) else ""
        raise UserError(f"{folder}: a {config.model_type} model{predicts}; concepts need one that predicts concepts")
    # A tokenizer of others is tried first, in a process that imports transformers again.
    tokenizer = (
        PreTrainedTokenizerFast.from_pretrained(folder)
        if ours
        else pretrained.load_tokenizer("--model", str(folder), None)
    )
    return model.requires_grad_(False).eval().to(device()), tokenizer


def load_extractor(artifacts: Path, model: CoCoMixLanguageModel) -> Extractor:
    """Load the base model and the autoencoder that define the concepts of `model`, and the attribution parameters.

    Raises:
        UserError: when one of them is missing or damaged, they have other concepts than `model`, or they do not belong
            together.
    """
    concepts = Artifact(artifacts / "concepts")
    labels = ConceptLabels(concepts)
    _check_number(concepts, labels.number, model)
    base, sae = Artifact(artifacts / "base"), Artifact(artifacts / "sae")
    _check_model(artifacts, model, {"concepts": concepts, "base": base, "sae": sae})
    params = parse(AttributionParams, concepts.manifest.params, str(concepts.path / MANIFEST))
    found = Extractor(load_base(base, labels.context), load_sae(sae), params)
    if base.manifest.params.get("tokenizer") != "own":
        return found
    return found._replace(tokenizer=PreTrainedTokenizerFast.from_pretrained(base.path))


def load_labels(artifacts: Path, model: CoCoMixLanguageModel) -> dict[int, str]:
    """The labels of the concepts of `model` in the atlas, by concept; empty without an atlas.

    Raises:
        UserError: when the atlas has other concepts than `model`, or they do not belong together.
    """
    if not (artifacts / "atlas" / MANIFEST).is_file():
        return {}
    atlas = Atlas(artifacts / "atlas")
    _check_number(atlas, len(atlas), model)
    opened: dict[str, Artifact] = {"atlas": atlas}
    if (artifacts / "concepts" / MANIFEST).is_file():
        opened["concepts"] = Artifact(artifacts / "concepts")
    _check_model(artifacts, model, opened)
    return {concept: atlas.label(concept) for concept in range(len(atlas))}


def _check_number(artifact: Artifact, concepts: int, model: CoCoMixLanguageModel) -> None:
    if concepts != (known := model.config.num_concepts):
        raise UserError(f"{artifact.path}: has {concepts} concepts, the model {known}; they are of different pipelines")


def _check_model(artifacts: Path, model: CoCoMixLanguageModel, opened: Mapping[str, Artifact]) -> None:
    """Check that artifacts belong together and to the model, as far as the model's folder and the labels tell."""
    checked: dict[str, Artifact | str] = dict(opened)
    made = Path(model.name_or_path)
    if (made / MANIFEST).is_file():
        checked[f"models/{made.name}"] = trained = Artifact(made)
        if "concepts" in opened:
            section = parse(CocomixParams, trained.manifest.params["cocomix"], str(made / MANIFEST))
            checked[f"supervision.{trained.about['method']}"] = supervision(section, artifacts)
    check_origins(checked)
