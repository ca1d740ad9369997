"""Load a finished pipeline's models, labels and atlas, to read and change concepts."""

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
    if labels.latents != model.config.num_concepts:
        raise UserError(
            f"{concepts.path}: has {labels.latents} concepts, the model {model.config.num_concepts}; they are "
            "of different pipelines"
        )
    base, sae = Artifact(artifacts / "base"), Artifact(artifacts / "sae")
    made = Path(model.name_or_path)
    opened: dict[str, Artifact | str] = {"concepts": concepts, "base": base, "sae": sae}
    if (made / MANIFEST).is_file():
        trained = Artifact(made)
        section = parse(CocomixParams, trained.manifest.params["cocomix"], str(made / MANIFEST))
        opened[f"models/{made.name}"] = trained
        opened[f"supervision.{trained.about['method']}"] = supervision(section, artifacts)
    check_origins(opened)
    params = parse(AttributionParams, concepts.manifest.params, str(concepts.path / MANIFEST))
    found = Extractor(load_base(base, labels.context), load_sae(sae), params)
    if base.manifest.params.get("tokenizer") != "own":
        return found
    return found._replace(tokenizer=PreTrainedTokenizerFast.from_pretrained(base.path))


def load_labels(artifacts: Path) -> dict[int, str]:
    """The labels of concepts in the atlas, by concept; empty without an atlas.

    Raises:
        UserError: when the atlas and the labels that models learn from have different origins.
    """
    if not (artifacts / "atlas" / MANIFEST).is_file():
        return {}
    atlas, concepts = Atlas(artifacts / "atlas"), Artifact(artifacts / "concepts")
    if (concepts.path / MANIFEST).is_file():
        check_origins({"atlas": atlas, "concepts": concepts})
    return {concept: atlas.label(concept) for concept in range(len(atlas))}
