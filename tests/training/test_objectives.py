import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from cocomix.base.hooks import residual_at
from cocomix.base.loading import prepared
from cocomix.modeling import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.modeling.concept_edits import Concepts
from cocomix.models.configs import config_of
from cocomix.params import KdParams, ModelParams, MtpParams
from cocomix.shapes.models import plain_shape
from cocomix.shapes.planning.corpus import Words
from cocomix.tokens.window_data import NO_LABEL
from cocomix.training.distillation import Distillation
from cocomix.training.losses import concept_loss, distillation_loss, hidden_loss
from cocomix.training.objectives import ConceptMixing, HiddenMixing, Losses, MultiToken, Objective, Weighted

SHAPE = {"vocab_size": 32, "n_positions": 8, "n_embd": 16, "n_layer": 3, "n_head": 2, "bos_token_id": 0}
CONCEPTS = {"num_concepts": 24, "concept_layer": 1, "concept_k": 4}


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")
    torch.manual_seed(0)


def gpt2(**shape: Any) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(**SHAPE | shape)).eval()


def llama() -> PreTrainedModel:
    params = ModelParams(backbone="llama", d_model=16, n_layer=3, n_head=2, n_kv_head=1, qk_norm=True)
    return AutoModelForCausalLM.from_config(config_of(plain_shape(params, Words(32, 8)))).eval()


def cocomix(**options: Any) -> CoCoMixForCausalLM:
    return CoCoMixForCausalLM(CoCoMixConfig(**SHAPE, **CONCEPTS | options)).eval()


def assert_same(losses: Losses, expected: Losses, model: torch.nn.Module) -> None:
    """In value, and in the gradient of a sum in which each has a factor of its own."""
    torch.testing.assert_close(losses, expected)
    one, other = (
        0.7 * each.tokens + sum(0.2 * loss for loss in each.auxiliary.values()) for each in (losses, expected)
    )
    assert_same_gradient(one, other, model)


def assert_same_gradient(one: torch.Tensor, other: torch.Tensor, model: torch.nn.Module) -> None:
    gradients = (torch.autograd.grad(each, list(model.parameters()), materialize_grads=True) for each in (one, other))
    for pair in zip(*gradients, strict=True):
        torch.testing.assert_close(*pair, atol=1e-5, rtol=1e-4)


def token_loss(logits: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten(), reduction="sum")


@pytest.mark.parametrize("pause", [False, True])
def test_next_token_prediction_is_the_cross_entropy_of_the_models_logits(pause: bool) -> None:
    model = cocomix(predicts="nothing") if pause else gpt2()
    windows = torch.randint(0, 32, (3, 8))
    assert_same(Objective(model)(windows), Losses(token_loss(model(windows).logits, windows), {}), model)


@pytest.mark.parametrize(
    ("mixing", "stop_gradient"),
    [("interleave", False), ("interleave", True), ("interleave_with_state", True), ("add", False), ("none", False)],
)
@pytest.mark.parametrize("head", ["released", "equations"])
def test_concept_mixing_adds_the_concept_loss_of_the_models_concept_logits(
    mixing: str, stop_gradient: bool, head: str
) -> None:
    model = cocomix(mixing=mixing, concept_head=head, stop_gradient=stop_gradient)
    windows, labels = torch.randint(0, 32, (3, 8)), torch.randint(0, 24, (3, 8, 3))
    labels[torch.rand(labels.shape) < 0.4] = NO_LABEL
    output = model(windows)
    expected = Losses(token_loss(output.logits, windows), {"concept": concept_loss(output.concept_logits, labels)})
    assert_same(ConceptMixing(model, Weighted(0.3))(windows, labels), expected, model)


@pytest.mark.parametrize("mixing", ["interleave", "interleave_with_state", "add"])
def test_in_forced_windows_the_labels_are_mixed_first_with_the_strengths_of_the_places_that_they_take(
    mixing: str,
) -> None:
    model = cocomix(mixing=mixing)
    windows, labels = (
        torch.randint(0, 32, (3, 8)),
        torch.stack([torch.randperm(24)[:3] for _ in range(24)]).view(3, 8, 3),
    )
    labels[torch.rand(labels.shape) < 0.4] = NO_LABEL
    forced = torch.tensor([True, False, True])
    found = ConceptMixing(model, Weighted(0.3))(windows, labels, forced_rows=forced)

    def labels_first(concepts: Concepts) -> Concepts:
        strengths, order = concepts.strengths.sort(-1, descending=True)
        indices = concepts.indices.gather(-1, order).clone()
        for row, position in itertools.product([0, 2], range(8)):
            wanted = [each for each in labels[row, position].tolist() if each >= 0]
            others = [each for each in indices[row, position].tolist() if each not in wanted]
            indices[row, position] = torch.tensor([*wanted, *others][:4])
        return concepts._replace(strengths=strengths, indices=indices)

    output = model(windows, concept_edits=[labels_first])
    concept = concept_loss(output.concept_logits, labels)
    expected = Losses(token_loss(output.logits, windows), {"concept": concept})
    assert_same(found, expected, model)
    assert not torch.allclose(found.tokens, ConceptMixing(model, Weighted(0.3))(windows, labels).tokens)


def test_distillation_adds_the_divergence_from_the_base_model_whose_vocabulary_may_be_padded() -> None:
    model, base = gpt2(), prepared(gpt2(vocab_size=40))
    windows = torch.randint(0, 32, (3, 8))
    logits, wanted = model(windows).logits, base(windows).logits[..., :32]
    found = Objective(model, Distillation(KdParams(kl_weight=0.5), base))(windows, kl_weight=torch.tensor(0.5))
    tokens, divergence = token_loss(logits, windows), distillation_loss(logits[:, :-1], wanted[:, :-1])
    torch.testing.assert_close(found, Losses(tokens, {"distillation": divergence}))
    assert_same_gradient(found.tokens, tokens + 0.5 * divergence, model)


def test_a_base_model_in_bf16_teaches_about_the_same() -> None:
    student, plain, base = cocomix(predicts="hidden", base_width=24), gpt2(), prepared(gpt2(n_embd=24))
    windows = torch.randint(0, 32, (3, 8))

    def taught() -> list[torch.Tensor]:
        distilled = Objective(plain, Distillation(KdParams(kl_weight=0.5), base))(windows, kl_weight=torch.tensor(0.5))
        hidden = HiddenMixing(student, base, 2, "l2", Weighted(0.1))(windows)
        return [distilled.tokens, distilled.auxiliary["distillation"], hidden.auxiliary["hidden"]]

    exact = taught()
    base.bfloat16()
    torch.testing.assert_close(taught(), exact, rtol=0.05, atol=0)


def test_hidden_mixing_adds_the_distance_to_the_base_models_hidden_state() -> None:
    model, base = cocomix(predicts="hidden", base_width=24), prepared(gpt2(n_embd=24))
    windows = torch.randint(0, 32, (3, 8))
    output = model(windows)
    distance = hidden_loss(output.base_hidden, residual_at(base, windows, 2), "l2")
    expected = Losses(token_loss(output.logits, windows), {"hidden": distance})
    assert_same(HiddenMixing(model, base, 2, "l2", Weighted(0.1))(windows), expected, model)


def test_distillation_beside_concepts_adds_both_losses() -> None:
    model, base = cocomix(mixing="none"), prepared(gpt2())
    windows, labels = torch.randint(0, 32, (3, 8)), torch.randint(0, 24, (3, 8, 3))
    output, wanted = model(windows), base(windows).logits
    distillation = Distillation(KdParams(kl_weight=0.5), base)
    objective = ConceptMixing(model, Weighted(0.3), distillation)
    found = objective(windows, labels, kl_weight=torch.tensor(0.5))
    tokens, divergence = token_loss(output.logits, windows), distillation_loss(output.logits[:, :-1], wanted[:, :-1])
    concept = concept_loss(output.concept_logits, labels)
    torch.testing.assert_close(found, Losses(tokens, {"distillation": divergence, "concept": concept}))
    whole = found.tokens + 0.3 * found.auxiliary["concept"]
    assert_same_gradient(whole, tokens + 0.5 * divergence + 0.3 * concept, model)
    assert objective.positions(windows, labels) == {"distillation": 3 * 7, "concept": 3 * 8}


def test_without_its_weight_distillation_is_left_out_and_the_base_model_does_not_run() -> None:
    model, base = gpt2(), prepared(gpt2())
    base.register_forward_pre_hook(lambda *_: pytest.fail("the base model runs"))
    windows = torch.randint(0, 32, (3, 8))
    assert Objective(model, Distillation(KdParams(kl_weight=0.5), base))(windows).auxiliary == {}


@pytest.mark.parametrize("make", [gpt2, llama])
def test_multi_token_prediction_adds_the_mean_loss_of_each_further_token_through_a_block_of_its_own(
    make: Callable[[], PreTrainedModel],
) -> None:
    model = make()
    objective = MultiToken(model, MtpParams(tokens=3, weight=0.5)).eval()
    windows = torch.randint(0, 32, (3, 8))
    body, given = model.base_model, {"attention_mask": torch.full((8, 8), -torch.inf).triu(1)[None, None]}
    if make is gpt2:
        trunk = body.drop(body.wte(windows) + body.wpe(torch.arange(8)))
        blocks, norm = body.h, body.ln_f
    else:
        trunk = body.embed_tokens(windows)
        blocks, norm = body.layers, body.norm
        given["position_embeddings"] = body.rotary_emb(trunk, torch.arange(8)[None])
    for block in blocks[:-1]:
        trunk = block(trunk, **given)
    further = 0.0
    for skipped, block in enumerate(objective.blocks, start=1):
        logits = model.lm_head(norm(block(trunk, **given)))[:, : -1 - skipped]
        each = F.cross_entropy(logits.flatten(0, 1), windows[:, 1 + skipped :].flatten(), reduction="none")
        further = further + each.mean()
    found = objective(windows)
    expected = Losses(token_loss(model(windows).logits, windows), {"further_tokens": further * 3 * 7})
    assert objective.positions(windows) == {"further_tokens": 3 * 7}
    assert_same(found, expected, objective)
    assert objective.training_flops(8) > Objective(model).training_flops(8)
    assert all(each.grad is not None for each in _with_gradient(objective, windows))


@pytest.mark.parametrize("make", [gpt2, llama])
def test_multi_token_prediction_compiles_to_one_graph_and_gives_the_same(make: Callable[[], PreTrainedModel]) -> None:
    torch._dynamo.reset()
    objective, windows = MultiToken(make(), MtpParams(tokens=2, weight=0.5)).eval(), torch.randint(0, 32, (3, 8))
    compiled = torch.compile(objective, backend="eager", fullgraph=True)
    assert_same(compiled(windows), objective(windows), objective)


def _with_gradient(objective: Objective, windows: torch.Tensor) -> list[torch.nn.Parameter]:
    losses = objective(windows)
    (losses.tokens + losses.auxiliary["further_tokens"]).backward()
    return list(objective.parameters())
