"""The training forward: through each objective, compiled, in bf16, checkpointed."""

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.modeling import CoCoMixForCausalLM
from cocomix.tokens.window_data import NO_LABEL
from cocomix.training.losses import concept_loss, hidden_loss, next_token_loss
from cocomix.training.objectives import ConceptMixing, HiddenMixing, Objective, Weighted
from tests.modeling.conftest import LLAMA, MAIN, ids, named, tiny

ABLATIONS = [
    *MAIN,
    {"mixing": "none"},
    {"mixing": "none", "concept_head": "equations"},
    {"predicts": "hidden"},
    {"backbone": "llama"},
]
TOKENS = ids(2, 9)


def base() -> GPT2LMHeadModel:
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=61, n_positions=48, n_embd=24, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval().requires_grad_(False)


def labels() -> Tensor:
    chosen = torch.randint(0, 40, (2, 9, 3), generator=torch.Generator().manual_seed(2))
    chosen[0, 4], chosen[1, 2, 1:] = NO_LABEL, NO_LABEL
    return chosen


def without_dropout(model: CoCoMixForCausalLM) -> CoCoMixForCausalLM:
    for each in model.modules():
        if isinstance(each, nn.Dropout):
            each.p = 0.0
    return model.train()


def objective_of(model: CoCoMixForCausalLM, weight: float = 0.3) -> tuple[Objective, tuple[Tensor, ...]]:
    match model.config.predicts:
        case "concepts":
            return ConceptMixing(model, Weighted(weight)), (TOKENS, labels())
        case "hidden":
            return HiddenMixing(model, base(), 1, "l2", Weighted(weight)), (TOKENS,)
        case _:
            return Objective(model), (TOKENS,)


def total(objective: Objective, inputs: tuple[Tensor, ...]) -> Tensor:
    losses = objective(*inputs)
    return losses.tokens + sum(objective.weights[name].weight * loss for name, loss in losses.auxiliary.items())


def gradients(loss: Tensor, model: nn.Module) -> tuple[Tensor, ...]:
    """An error where a parameter has none: data-parallel training would wait for it."""
    return torch.autograd.grad(loss, list(model.parameters()))


def assert_all_close(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    for each, other in zip(got, expected, strict=True):
        torch.testing.assert_close(each, other, atol=tolerance, rtol=tolerance)


def plain_total(model: CoCoMixForCausalLM) -> Tensor:
    output = model(TOKENS, use_cache=False)
    tokens = next_token_loss(output.logits, TOKENS)
    match model.config.predicts:
        case "concepts":
            return tokens + 0.3 * concept_loss(output.concept_logits, labels())
        case "hidden":
            wanted = base()(TOKENS, output_hidden_states=True).hidden_states[1]
            return tokens + 0.3 * hidden_loss(output.base_hidden, wanted, "l2")
        case _:
            return tokens


def test_an_objective_gives_the_plain_losses_and_reaches_every_parameter(variant: dict[str, object]) -> None:
    model = without_dropout(tiny(**variant))
    loss, expected = total(*objective_of(model)), plain_total(model)
    torch.testing.assert_close(loss, expected)
    assert_all_close(gradients(loss, model), gradients(expected, model), 1e-3)


def test_without_a_weight_on_the_concepts_every_parameter_still_has_a_gradient(variant: dict[str, object]) -> None:
    model = tiny(**variant).train()
    gradients(total(*objective_of(model, weight=0.0)), model)


@pytest.mark.parametrize(
    ("change", "attention"),
    [
        ({}, "eager"),
        ({}, "sdpa"),
        ({"mixing": "add"}, "sdpa"),
        ({"predicts": "hidden"}, "sdpa"),
        ({"backbone": "llama"}, "eager"),
    ],
)
def test_the_models_training_forward_compiles_to_one_graph_and_gives_the_same(
    change: dict[str, object], attention: str
) -> None:
    torch._dynamo.reset()
    model = without_dropout(tiny(**change, n_layer=2, concept_layer=1, attn_implementation=attention))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    loss, expected = compiled(TOKENS, labels=TOKENS, use_cache=False).loss, model(TOKENS, labels=TOKENS).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    got = [each.grad for each in model.parameters()]
    model.zero_grad()
    expected.backward()
    for each, other in zip(got, (parameter.grad for parameter in model.parameters()), strict=True):
        if other is not None:
            torch.testing.assert_close(each, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("change", [*MAIN, {"mixing": "none"}, LLAMA], ids=named)
def test_the_objective_compiles_to_one_graph_and_gives_the_same(change: dict[str, object]) -> None:
    torch._dynamo.reset()
    model = without_dropout(tiny(**change, n_layer=2, concept_layer=1))
    objective, inputs = objective_of(model)
    compiled = torch.compile(objective, backend="aot_eager", fullgraph=True)
    loss, expected = total(compiled, inputs), total(objective, inputs)
    torch.testing.assert_close(loss, expected)
    assert_all_close(gradients(loss, model), gradients(expected, model), 1e-3)


@pytest.mark.parametrize("change", ABLATIONS, ids=named)
@pytest.mark.parametrize("automatic", [False, True], ids=["weights", "autocast"])
def test_in_bf16_losses_and_gradients_are_finite_and_near_those_in_fp32(
    change: dict[str, object], automatic: bool, attention: str
) -> None:
    model = without_dropout(tiny(**change, initializer_range=0.05, attn_implementation=attention))
    expected = total(*objective_of(model))
    expected_gradients = gradients(expected, model)
    if not automatic:
        model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=automatic):
        loss = total(*objective_of(model))
    torch.testing.assert_close(loss.float(), expected, rtol=0.02, atol=0.0)
    for got, wanted in zip(gradients(loss, model), expected_gradients, strict=True):
        assert got.isfinite().all()
        assert nn.functional.cosine_similarity(got.float().flatten(), wanted.flatten(), dim=0) > 0.95


@pytest.mark.parametrize("change", MAIN, ids=named)
def test_generation_works_in_bf16(change: dict[str, object], attention: str) -> None:
    model = tiny(**change, attn_implementation=attention).to(torch.bfloat16)
    assert model.generate(ids(2, 5), max_new_tokens=4, do_sample=False, eos_token_id=None).shape == (2, 9)


def test_activation_checkpointing_changes_neither_loss_nor_gradient(variant: dict[str, object]) -> None:
    model = without_dropout(tiny(**variant))
    expected = total(*objective_of(model))
    expected_gradients = gradients(expected, model)
    model.activation_checkpointing_enable()
    loss = total(*objective_of(model))
    torch.testing.assert_close(loss, expected)
    assert_all_close(gradients(loss, model), expected_gradients, 1e-4)


@pytest.mark.parametrize("change", [{}, LLAMA], ids=named)
def test_activation_checkpointing_recomputes_each_block_and_keeps_no_cache(change: dict[str, object]) -> None:
    model, runs = without_dropout(tiny(**change)), []
    model.activation_checkpointing_enable()
    for number, block in enumerate(model.base_model.blocks):
        block.mlp.register_forward_pre_hook(lambda *_, number=number: runs.append(number))
    output = model(TOKENS, labels=TOKENS, use_cache=True)
    output.loss.backward()
    assert runs == [0, 1, 2, 3, 3, 2, 1, 0]
    assert output.past_key_values is None
