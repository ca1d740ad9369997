"""Concept edits on the base model through its autoencoder: the paper's comparison (section 3.2).

The activation is encoded, its latents are edited, and the change of the reconstruction is added to the activation:
h + decode(edited) - decode(latents), in the scale of h. The reconstruction error stays in place, so without edits
nothing changes, and it does not undo an edit.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cocomix.base.hooks import residual_edited
from cocomix.modeling import CoCoMixLanguageModel
from cocomix.modeling.concept_edits import ConceptEdits, Concepts, edited, is_by_row
from cocomix.plumbing.device import no_autocast
from cocomix.sae.autoencoder import SparseAutoencoder
from cocomix.sae.sparse import weighted_sum


@contextmanager
def concepts_edited(base: PreTrainedModel, sae: SparseAutoencoder, edits: ConceptEdits) -> Iterator[None]:
    """A context in which each forward pass of `base`, also in `generate`, has its latents edited at the SAE's site.

    `Concepts.strengths` are the active latents (with abstopk their absolute values), `logits` the latents before the
    activation function. With a list of edits per row, each row's beams and samples have its edits.

    Raises:
        ValueError: when an edit acts before the selection, or, in a forward pass, names a concept that does not exist.
    """
    every = [edit for row in edits for edit in row] if is_by_row(edits) else edits  # type: ignore[union-attr]
    if any(getattr(edit, "before_selection", False) for edit in every):
        raise ValueError("concept_edits: through an autoencoder, edits are of active latents; drop before_selection")
    if not every:
        yield
        return
    positions: list[Tensor] = []

    def note_positions(_model: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        positions[:] = [_positions(args, inputs)]

    def change(hidden: Tensor) -> Tensor:
        with no_autocast():
            return hidden + _change(sae, hidden, positions[0], _by_beam(edits, len(hidden)))

    handle = base.register_forward_pre_hook(note_positions, with_kwargs=True)
    options = base.generation_config
    before = options.use_cache
    if "past_key_values" not in inspect.signature(base.forward).parameters:
        options.use_cache = False
    try:
        with residual_edited(base, sae.config.layer, change, sae.config.location):
            yield
    finally:
        handle.remove()
        options.use_cache = before


@contextmanager
def editing(
    model: PreTrainedModel, sae: SparseAutoencoder | None, edits: ConceptEdits
) -> Iterator[dict[str, ConceptEdits]]:
    """A context in which `model` is edited; pass the options that it yields to the model's call or `generate`.

    Args:
        model: a CoCoMix model, whose predicted concepts are edited, or a base model.
        sae: the autoencoder through which a base model is edited.
    """
    if isinstance(model, CoCoMixLanguageModel):
        yield {"concept_edits": edits}
    else:
        assert sae
        with concepts_edited(model, sae, edits):
            yield {}


def _by_beam(edits: ConceptEdits, rows: int) -> ConceptEdits:
    """Edits for all rows of a forward pass, in which `generate` repeats each row once per beam."""
    if not is_by_row(edits) or rows % len(edits):
        return edits
    return [each for each in edits for _ in range(rows // len(edits))]  # type: ignore[return-value]


def _positions(args: tuple[Any, ...], inputs: dict[str, Any]) -> Tensor:
    """Positions of a forward pass's tokens in their texts, as the model counts them: int64 [batch or 1, seq]."""
    if (given := inputs.get("position_ids")) is not None:
        return given
    tokens = next(each for each in (*args, inputs.get("input_ids"), inputs.get("inputs_embeds")) if each is not None)
    cache = inputs.get("past_key_values")
    past = cache.get_seq_length() if cache is not None else 0
    return torch.arange(past, past + tokens.shape[1], device=tokens.device)[None]


def _change(sae: SparseAutoencoder, hidden: Tensor, positions: Tensor, edits: ConceptEdits) -> Tensor:
    """Change of the reconstruction by edits, for activations [batch, seq, d_model]."""
    shape = hidden.shape[:2]
    normalized = sae.normalize(hidden.flatten(0, 1).float())
    latents = sae.as_concepts(sae.encode(normalized.x))
    before = torch.addmm(sae.latent_bias, normalized.x - sae.pre_bias, sae.encoder.T)
    if sae.config.architecture == "abstopk":  # each sign of a latent is a concept
        before = torch.cat([before, -before], dim=1)
    found = Concepts(
        strengths=latents.values.abs().view(*shape, -1),
        indices=latents.indices.view(*shape, -1),
        logits=before.view(*shape, -1),
        positions=positions,
    )
    after, as_it_was = _decoded(sae, edited(found, edits)), _decoded(sae, found)
    change = (after - as_it_was) * normalized.std
    return change.view_as(hidden).to(hidden.dtype)


def _decoded(sae: SparseAutoencoder, concepts: Concepts) -> Tensor:
    """Decode concepts without the bias: [batch * seq, d_model]."""
    strengths, indices = concepts.strengths.flatten(0, 1), concepts.indices.flatten(0, 1)
    opposite = indices >= sae.config.latents
    values = torch.where(opposite, -strengths, strengths)
    return weighted_sum(values, sae.decoder, torch.where(opposite, indices - sae.config.latents, indices))
