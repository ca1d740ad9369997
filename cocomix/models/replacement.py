"""Replace the vectors that a model mixes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from cocomix.modeling.mixers import Mixture
from cocomix.modeling.modeling_cocomix import CoCoMixLanguageModel


@contextmanager
def vectors_replaced(model: CoCoMixLanguageModel, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the model mixes `change(vector)` instead of its vectors [batch, seq, d_model]."""

    def replace(_mixer: nn.Module, _args: object, mixture: Mixture) -> Mixture:
        assert mixture.vector is not None
        return mixture._replace(vector=change(mixture.vector))

    hook = model.base_model.mixer.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()
