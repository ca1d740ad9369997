"""Requirements of a base model of any family, checked by running it on a few tokens.

Names in configurations and modules differ between families. The stage `base` checks once, at the start, all that later
stages rely on, so that none of them fails after hours or computes numbers that mean something else.
"""

from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cocomix.base.blocks import blocks_of
from cocomix.base.hooks import residual_at, residual_edited, stream_of
from cocomix.base.loading import longest_context
from cocomix.plumbing.errors import UserError

TOKENS = 8
"""Length of the sequences on which a model is checked."""


def check_base(model: PreTrainedModel, context: int, parameter: str = "tokenize.context") -> None:
    """Check that `model`, frozen and in evaluation mode, can be a base model of windows of `context` tokens.

    Args:
        parameter: that says `context`, for the error.

    Raises:
        UserError: in one line, with what is missing.
    """
    try:
        _check(model, context, parameter)
    except Exception as error:
        if isinstance(error, UserError):
            raise
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise UserError(f"a {type(model).__name__} cannot be run: {type(error).__name__}: {reason}") from None


@torch.no_grad()
def final_norm(model: PreTrainedModel) -> nn.Module:
    """The module between the last block's output and the unembedding: a norm, and what follows it, if anything.

    Raises:
        UserError: when there is no such module.
    """
    trace = _trace(model, _some_ids(model))
    chain, at = [], trace.streams[-1]
    for module, given, made in trace.above:
        if _same(at, trace.unembedded):
            break
        if _same(at, given):
            chain.append(module)
            at = made
    if not _same(at, trace.unembedded):
        raise UserError(f"{type(model).__name__}: no norm makes its unembedding's input of its last block's output")
    return chain[0] if len(chain) == 1 else nn.Sequential(*chain)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether `other` is `one`, perhaps in another type: in bf16, some families have a residual stream in fp32."""
    return one.shape == other.shape and torch.equal(one.to(other.dtype), other)


def _check(model: PreTrainedModel, context: int, parameter: str) -> None:
    name, blocks, width = type(model).__name__, blocks_of(model), getattr(model.config, "hidden_size", None)
    limit = longest_context(model.config) or context
    if limit < context:
        raise UserError(f"a {name} with a context of {limit}; the tokens need {context} ({parameter})")
    ids = _some_ids(model)
    with torch.no_grad():
        trace = _trace(model, ids)
        if trace.order != list(range(len(blocks))):
            raise UserError(
                f"{name} does not run its {len(blocks)} blocks one after another, so layers are no places in it"
            )
        if any(each.shape != (*ids.shape, width) for each in trace.streams):
            shape = list(trace.streams[0].shape[2:])
            raise UserError(
                f"{name} has a stream of shape {shape} between its blocks; it must be one vector of {width}"
            )
        if not trace.logits.isfinite().all():
            raise UserError(f"{name} predicts logits that are not finite")
        one, other = trace.logits[:, :-1]
        if not torch.allclose(one, other, atol=(1e-3 + torch.finfo(model.dtype).eps) * float(one.abs().max())):
            raise UserError(f"a {name} sees the tokens that it is to predict")
        if residual_at(model, ids[:1, :1].expand(1, context), 1).shape[1] != context:
            raise UserError(f"{name} does not read windows of {context} tokens")
    if len(blocks) < 2:
        raise UserError(f"a {name} with {len(blocks)} block; concepts need a block below and one above")
    final_norm(model)
    _check_gradient(model, ids)


def _check_gradient(model: PreTrainedModel, ids: Tensor) -> None:
    leaf: list[Tensor] = []

    def detach(residual: Tensor) -> Tensor:
        leaf.append(residual.detach().requires_grad_())
        return leaf[0]

    with torch.enable_grad(), residual_edited(model, len(blocks_of(model)) - 1, detach):
        loss = model(input_ids=ids, use_cache=False).logits.logsumexp(-1).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
    if not gradient.isfinite().all() or not gradient.any():
        raise UserError(f"{type(model).__name__} has no gradient of its predictions in its residual stream")


class _Trace(NamedTuple):
    """The intermediate results of a forward pass."""

    order: list[int]
    """The numbers of the blocks in the order in which they ran."""
    streams: list[Tensor]
    """The outputs of these blocks."""
    above: list[tuple[nn.Module, Tensor, Tensor]]
    """The modules above the blocks, each with its input and its output."""
    unembedded: Tensor
    """The input of the unembedding."""
    logits: Tensor


def _some_ids(model: PreTrainedModel) -> Tensor:
    """Two sequences that differ in their last token only: int64 [2, TOKENS]."""
    ids = torch.arange(1, TOKENS + 1, device=model.device).expand(2, -1).clone()
    ids[1, -1] += 1
    return ids


def _trace(model: PreTrainedModel, ids: Tensor) -> _Trace:
    blocks, head = list(blocks_of(model)), model.get_output_embeddings()
    if head is None:
        raise UserError(f"{type(model).__name__} has no unembedding (get_output_embeddings)")
    order: list[int] = []
    streams: list[Tensor] = []
    above: list[tuple[nn.Module, Tensor, Tensor]] = []
    unembedded: list[Tensor] = []

    def after_block(block: nn.Module, _args: Any, output: Any) -> None:
        order.append(blocks.index(block))
        streams.append(stream_of(output))

    def after_other(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if len(order) == len(blocks) and args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            above.append((module, args[0], output))

    within = {module for block in blocks for module in block.modules()}
    with ExitStack() as hooks:
        for block in blocks:
            hooks.callback(block.register_forward_hook(after_block).remove)
        for module in model.modules():
            if module not in within and module is not head:
                hooks.callback(module.register_forward_hook(after_other).remove)
        hooks.callback(head.register_forward_pre_hook(lambda _head, args: unembedded.append(args[0])).remove)
        logits = model(input_ids=ids, use_cache=False).logits
    if not unembedded:
        raise UserError(f"{type(model).__name__} makes its logits without its unembedding (get_output_embeddings)")
    return _Trace(order, streams, above, unembedded[0], logits)
