"""Training activations that are computed on demand, in the same order and with the same bytes as from a store.

For token budgets larger than the disk: only the held-out activations are stored.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from numpy.typing import NDArray
from transformers import PreTrainedModel

from cocomix.activations.coding import Coded, decoded
from cocomix.activations.compute import make, shuffled
from cocomix.activations.shards import activation_shards
from cocomix.activations.store import ActivationStore, RowGroup
from cocomix.corpus.splits import Split
from cocomix.params import ActivationsParams
from cocomix.plumbing import interrupt
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.errors import UserError
from cocomix.tokens.windows import Tokens


def open_activations(
    artifact: Artifact, site: str | None, tokens: Tokens, base: Callable[[int], PreTrainedModel]
) -> ActivationStore:
    """Open the activations at a site; training activations that were not stored are computed on demand.

    Args:
        site: its name; None: the artifact's first site.
        tokens: the tokens from which the artifact was computed.
        base: loads the first blocks of the base model from which the artifact was computed, given their number.

    Raises:
        UserError: when the number of activations differs from the manifest's.
    """
    params = ActivationsParams.model_validate(artifact.manifest.params)
    store = ActivationStore(artifact, site)
    if not params.keep:
        store = ActivationStream(artifact, site, tokens, base(store.site.layer))
    for split, planned in artifact.about["tokens"].items():
        if (rows := store.rows(split)) != planned:
            raise UserError(
                f"{artifact.path}: holds {rows} of {planned} {split} activations at {store.site}; remove it and run "
                "the stage 'activations' again"
            )
    return store


class ActivationStream(ActivationStore):
    """An `ActivationStore` whose training shards are recomputed in each epoch, by the read-ahead thread.

    It holds `mixed_shards` shards in memory.
    """

    def __init__(self, artifact: Artifact, site: str | None, tokens: Tokens, model: PreTrainedModel) -> None:
        super().__init__(artifact, site)
        self._tokens, self._model = tokens, model
        self._params = ActivationsParams.model_validate(artifact.manifest.params)
        self._shards = {
            f"{self.site}/{shard.name}": shard for shard in activation_shards(tokens, "train", self._params)
        }
        self._made = lru_cache(self._mixed_shards)(self._make)

    def _files(self, split: Split) -> dict[str, int]:
        if split != "train":
            return super()._files(split)
        return {name: shard.rows for name, shard in self._shards.items()}

    def _read(self, group: RowGroup) -> NDArray[Any]:
        if group.file not in self._shards:
            return super()._read(group)
        coded = self._made(group.file)
        first = group.number * self._row_group_tokens
        return decoded(coded.x[first : first + group.rows], coded.scale)

    def _make(self, name: str) -> Coded:
        # A shard may take longer than a stopped stage may run on, so each batch checks for the stop.
        shard = self._shards[name]
        (x,) = make(self._model, self._tokens, shard, self._params, [self.site], lambda _: interrupt.check())
        activations = shuffled(x, self._tokens, shard, self._params, self.site)
        return Coded(activations.x, activations.scale)
