"""The tokens that become likelier when a predicted concept's strength is doubled, one concept at one position.

An edit at a position changes nothing before it. The keys and values of one pass over a window therefore serve all edits
in it: each edit costs one token, which attends to the positions before its own.

A concept's changes are averaged over its windows, but windows are read one after another. Until all are read, final
hidden states stand for the next-token distributions, which are much larger.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from cocomix.modeling import CoCoMixCache, CoCoMixLanguageModel
from cocomix.modeling.concept_edits import Concepts, Edit
from cocomix.modeling.kernels import chunks
from cocomix.plumbing.parts import Advance, in_parts

STEP = 256
"""Edits per forward pass: enough to fill a processor. More cost more, since each is scored by the attention of all."""


class Promoted(NamedTuple):
    """A token that a predicted concept makes more likely."""

    token: int
    change: float
    """Mean change of the token's probability."""


@torch.no_grad()
def promoted_tokens(
    model: CoCoMixLanguageModel, ids: Tensor, places: Tensor, there: Tensor, most: int, kept: Path, task: str
) -> dict[int, list[Promoted]]:
    """Find the tokens whose probability rises most when a concept's strength is doubled where it is predicted.

    It is doubled at one place at a time, and only the next token is considered. The processes share the work.

    Args:
        model: mixes concepts.
        ids: int64 [windows, seq].
        places: positions in the flattened text where each concept is predicted, int64 [n, concepts].
        there: which of them exist, bool [n, concepts]; those of a concept come first.
        most: maximum tokens per concept.
        kept: folder for partial results.
        task: description for the progress bars.

    Returns:
        Tokens by concept, the most promoted first, of those concepts that have a place.
    """
    hidden = _doubled(model, ids, places, there, kept, task)

    def promoted(concepts: Tensor, _advance: Advance) -> bytes:
        before, after = model.lm_head(hidden[:, :, concepts]).softmax(-1, torch.float32)
        change = (after - before).sum(0) / there[:, concepts].sum(0)[:, None]
        largest = change.topk(min(most, change.shape[1]))
        return save({"tokens": largest.indices.cpu(), "changes": largest.values.cpu()})

    predicted = there[0].nonzero()[:, 0]
    split = chunks(len(predicted), 2 * len(places) * model.config.vocab_size)
    parts = {kept / f"promoted-{number}.safetensors": predicted[some] for number, some in enumerate(split)}
    in_parts(parts, promoted, len, f"{task}: promoted tokens", "concepts")
    effects = {}
    for path, concepts in parts.items():
        found = load(path.read_bytes())
        for concept, *some in zip(concepts.tolist(), found["tokens"].tolist(), found["changes"].tolist(), strict=True):
            effects[concept] = [Promoted(*each) for each in zip(*some, strict=True) if each[1] > 0]
    return effects


def _doubled(model: CoCoMixLanguageModel, ids: Tensor, places: Tensor, there: Tensor, kept: Path, task: str) -> Tensor:
    """Inputs of the language model head at the places, without and with the edit: [2, n, concepts, d_model].

    They are 0 where there is no place.
    """
    seq = ids.shape[1]
    rank, concept = there.nonzero(as_tuple=True)
    window, position = places[rank, concept] // seq, places[rank, concept] % seq

    def doubled(edits: Tensor, advance: Advance) -> bytes:
        tokens, cache = ids[window[edits[:1]]], CoCoMixCache(model.config)
        plain = model.base_model(tokens, past_key_values=cache, use_cache=True).last_hidden_state
        states = []
        for some in torch.split(edits, STEP):
            at = position[some]
            edited = model.base_model(
                tokens[:, at],
                attention_mask=_earlier_and_itself(at, seq),
                position_ids=at[None],
                past_key_values=cache,
                use_cache=True,
                concept_edits=[_double(concept[some])],
            ).last_hidden_state
            cache.crop(-len(some))
            states.append(torch.cat([plain[:, at], edited]))
            advance(len(some))
        return save({"states": torch.cat(states, dim=1).cpu()})

    in_window = torch.split(window.argsort(stable=True), window.bincount().tolist())
    parts = {kept / f"doubled-{row}.safetensors": edits for row, edits in enumerate(in_window) if len(edits)}
    in_parts(parts, doubled, len, f"{task}: doubled", "places")
    hidden = torch.zeros(2, *there.shape, model.config.hidden_size, dtype=model.dtype, device=ids.device)
    for path, edits in parts.items():
        hidden[:, rank[edits], concept[edits]] = load(path.read_bytes())["states"].to(ids.device)
    return hidden


def _earlier_and_itself(positions: Tensor, seq: int) -> Tensor:
    """The mask of tokens, each as if alone after a cache of `seq` positions that ends before its own.

    Args:
        positions: of the tokens, int64 [n].

    Returns:
        bool [1, 1, n, seq + n].
    """
    earlier = torch.arange(seq, device=positions.device) < positions[:, None]
    itself = torch.eye(len(positions), dtype=torch.bool, device=positions.device)
    return torch.cat([earlier, itself], dim=1)[None, None]


def _double(own: Tensor) -> Edit:
    """The edit that doubles at each position the strength of the position's own concept.

    Args:
        own: int64 [seq].
    """

    def edit(concepts: Concepts) -> Concepts:
        """Mix it once more: a concept that occurs twice has the sum of both strengths."""
        index = own[None, :, None]
        return concepts._replace(
            strengths=torch.cat([concepts.strengths, concepts.logits.gather(2, index)], dim=2),
            indices=torch.cat([concepts.indices, index], dim=2),
        )

    return edit
