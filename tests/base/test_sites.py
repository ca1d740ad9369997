import pytest
from transformers import (
    PreTrainedModel,
)

from cocomix.base.blocks import blocks_of
from cocomix.base.sites import check_sites
from cocomix.params import Site
from cocomix.plumbing.errors import UserError
from tests.base.conftest import families


def test_blocks_without_a_stream_between_attention_and_mlp_are_an_error(model: PreTrainedModel) -> None:
    parallel = families()[3]
    with pytest.raises(UserError, match=r"resid_mid_1: .* GPTNeoXForCausalLM does not add to the residual stream"):
        check_sites(parallel, [Site("resid_mid", 1)])
    check_sites(parallel, [Site("attn_out", 1), Site("mlp_out", 2)])


def test_a_part_that_blocks_do_not_have_is_an_error_that_names_the_site(model: PreTrainedModel) -> None:
    for block in blocks_of(model):
        del block.mlp
    names = "post_feedforward_layernorm, post_mlp_layernorm, mlp, feed_forward"
    with pytest.raises(UserError, match=f"mlp_out_1: the blocks of .* have none of {names}"):
        check_sites(model, [Site("mlp_out", 1)])
