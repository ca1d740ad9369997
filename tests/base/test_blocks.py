import pytest
from transformers import (
    PreTrainedModel,
)

from cocomix.base.blocks import blocks_of, check_layer
from cocomix.plumbing.errors import UserError


@pytest.mark.parametrize("layer", [0, 3, 4])
def test_a_layer_without_blocks_on_both_sides_is_an_error_that_says_which_are_allowed(
    model: PreTrainedModel, layer: int
) -> None:
    with pytest.raises(UserError, match=rf"layer {layer}: .* 3 blocks; allowed: 1 to 2"):
        check_layer(model, layer)


def test_a_model_without_a_list_of_blocks_is_an_error_that_names_it(model: PreTrainedModel) -> None:
    model.config.num_hidden_layers = 5
    with pytest.raises(UserError, match=type(model).__name__):
        blocks_of(model)
