"""The forward pass, in double precision against the equations written out."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, Trainer, TrainingArguments

from cocomix.modeling import AnyCoCoMixConfig, CoCoMixCache, CoCoMixConfig, CoCoMixForCausalLM, CoCoMixLanguageModel
from cocomix.modeling.mixers import ConceptHead
from tests.modeling.conftest import LLAMA, MAIN, ids, named, precise, tiny, tolerance

INTERLEAVING = [
    *({}, {"mixing": "interleave_with_state"}, {"predicts": "hidden"}, {"predicts": "nothing"}),
    {"predicts": "nothing", "mixing": "interleave_with_state"},
    LLAMA,
    {"backbone": "llama"},
]


def reference(model: CoCoMixLanguageModel, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits, and what is predicted: dense top-K mask, dense compress, interleaving by a loop."""
    body, config, places = model.base_model, model.config, torch.arange(tokens.shape[1])
    hidden = body.get_input_embeddings()(tokens)
    if config.model_type == "cocomix":
        hidden = hidden + body.wpe(places)
    for block in body.blocks[: config.concept_layer]:
        hidden = plain_block(block, hidden, config, places)
    vector, predicted = mixture(body.mixer, config, hidden)
    if config.mixing == "add":
        hidden = hidden + vector
    elif config.interleaves:
        second = vector + hidden if config.mixing == "interleave_with_state" else vector
        pairs = [each for t in range(tokens.shape[1]) for each in (hidden[:, t], second[:, t])]
        hidden, places = torch.stack(pairs, dim=1), torch.tensor([t for t in places.tolist() for _ in range(2)])
    for block in body.blocks[config.concept_layer :]:
        hidden = plain_block(block, hidden, config, places)
    read = hidden[:, 1::2] if config.interleaves else hidden
    return F.linear(body.final_norm(read), model.lm_head.weight), predicted


def mixture(mixer: nn.Module, config: AnyCoCoMixConfig, hidden: Tensor) -> tuple[Tensor | None, Tensor | None]:
    vector, predicted = ungated(mixer, config, hidden)
    return (mixer.gate.weight * vector if config.gate else vector), predicted


def ungated(mixer: nn.Module, config: AnyCoCoMixConfig, hidden: Tensor) -> tuple[Tensor | None, Tensor | None]:
    if config.predicts == "nothing" and config.mlp_width:
        norm, first, _, second = mixer.mlp
        normed = F.layer_norm(hidden, hidden.shape[-1:], norm.weight, norm.bias, config.layer_norm_epsilon)
        return second(F.gelu(first(normed), approximate="tanh")), None
    if config.predicts == "nothing":
        return mixer.vector.repeat(*hidden.shape[:2], 1), None
    shelter = torch.detach if config.stop_gradient else nn.Identity()
    if config.predicts == "hidden":
        first, _, second = mixer.predictor
        normed = F.layer_norm(hidden, hidden.shape[-1:], mixer.norm.weight, mixer.norm.bias, config.layer_norm_epsilon)
        predicted = second(F.gelu(first(normed), approximate="tanh"))
        return (None if config.mixing == "none" else mixer.compress(shelter(predicted))), predicted
    released = config.concept_head == "released"
    mean, std = hidden.mean(-1, keepdim=True), hidden.var(-1, unbiased=True, keepdim=True).sqrt() + 1e-5
    z = mixer.predictor((hidden - mean) / std - mixer.pre_bias if released else hidden)
    if config.mixing == "none":
        return None, z
    kept = torch.zeros_like(z).scatter(-1, z.topk(config.concept_k).indices, 1.0) * shelter(z)
    concept = kept @ mixer.compress.weight * (mixer.scale if config.learned_scale else 1) + mixer.pre_bias
    return (concept * std + mean if released else concept), z


def plain_block(block: nn.Module, hidden: Tensor, config: AnyCoCoMixConfig, places: Tensor) -> Tensor:
    if config.model_type == "cocomix":
        q, k, v = (heads(x, config.n_head) for x in block.attn.c_attn(block.ln_1(hidden)).chunk(3, dim=-1))
        hidden = hidden + block.attn.c_proj(attended(q, k, v))
        return hidden + block.mlp(block.ln_2(hidden))
    attention, mlp, count = block.self_attn, block.mlp, config.num_attention_heads
    x = rms_norm(hidden, block.input_layernorm.weight)
    q = heads(attention.q_proj(x), count)
    k, v = (heads(project(x), config.num_key_value_heads) for project in (attention.k_proj, attention.v_proj))
    if config.qk_norm:
        q, k = rms_norm(q, attention.q_norm.weight), rms_norm(k, attention.k_norm.weight)
    k, v = (x.repeat_interleave(count // config.num_key_value_heads, dim=1) for x in (k, v))
    hidden = hidden + attention.o_proj(attended(rotated(q, places), rotated(k, places), v))
    x = rms_norm(hidden, block.post_attention_layernorm.weight)
    return hidden + mlp.down_proj(F.silu(mlp.gate_proj(x)) * mlp.up_proj(x))


def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return (scores.masked_fill(future, float("-inf")).softmax(-1) @ v).transpose(1, 2).flatten(2)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def rotated(x: Tensor, places: Tensor) -> Tensor:
    """Pairs of numbers, half a head apart, turned as complex numbers by place / 10000^(2i / dim)."""
    half = x.shape[-1] // 2
    angle = places[:, None] * 10000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=-1)


def randomised(**changes: object) -> CoCoMixLanguageModel:
    """With no parameter at a value that would hide an error, as zeros and ones do."""
    model = precise(tiny(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def test_by_default_the_concepts_and_the_hidden_state_are_those_of_gpt2() -> None:
    """The autoencoder: resid_post_mlp_v5_32k of openai/sparse_autoencoder."""
    config = CoCoMixConfig()
    assert (config.num_concepts, config.concept_k) == (32768, 32)
    assert config.base_width == GPT2Config().n_embd


@pytest.mark.parametrize("length", [1, 11])
def test_values_and_gradients_equal_the_equations_written_out(attending: dict[str, object], length: int) -> None:
    model, tokens = randomised(**attending), ids(3, length)
    output = model(tokens)
    predicted = output.base_hidden if model.config.predicts == "hidden" else output.concept_logits
    expected_logits, expected = reference(model, tokens)
    close = tolerance(model)
    torch.testing.assert_close(output.logits, expected_logits, **close)
    assert (predicted is None) == (expected is None)
    weight, other_weight = torch.randn_like(expected_logits), None if expected is None else torch.randn_like(expected)

    def gradients(logits: Tensor, predicted: Tensor | None) -> tuple[Tensor, ...]:
        loss = (logits * weight).sum()
        if predicted is not None:
            torch.testing.assert_close(predicted, expected, **close)
            loss = loss + (predicted * other_weight).sum()
        return torch.autograd.grad(loss, list(model.parameters()))  # an error where a parameter has no part

    for got, wanted in zip(gradients(output.logits, predicted), gradients(expected_logits, expected), strict=True):
        torch.testing.assert_close(got, wanted, **close)


@pytest.mark.parametrize("head", ["released", "equations"])
def test_a_sheltered_prediction_has_no_gradient_from_the_language_model(head: str) -> None:
    for stop in (False, True):
        model, tokens = tiny(concept_head=head, stop_gradient=stop), ids(2, 8)
        model(tokens, labels=tokens).loss.backward()
        reached = model.transformer.mixer.predictor.weight.grad is not None
        assert reached != stop
        assert model.transformer.mixer.compress.weight.grad.any()


class Half(nn.Module):
    """A block of the library, of whose output the concept positions are kept."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *arguments: object, **keywords: object) -> Tensor:
        return self.block(*arguments, **keywords)[:, 1::2]


def with_a_whole_last_block(model: CoCoMixLanguageModel) -> CoCoMixLanguageModel:
    whole = copy.deepcopy(model)
    blocks = whole.base_model.blocks
    block = type(blocks[0])(whole.config, layer_idx=len(blocks) - 1).to(model.dtype).eval()
    if whole.config.model_type == "cocomix_llama" and not whole.config.qk_norm:
        block.self_attn.q_norm = block.self_attn.k_norm = nn.Identity()
    block.load_state_dict(blocks[-1].state_dict())
    blocks[-1] = Half(block)
    return whole


@pytest.mark.parametrize("change", [*INTERLEAVING, {"reorder_and_upcast_attn": True}], ids=named)
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("padding", [0, 3])
def test_the_last_block_computes_the_concept_rows_of_a_whole_block(
    change: dict[str, object], attention: str, cached: bool, padding: int
) -> None:
    change = change if "backbone" in change else change | {"scale_attn_by_inverse_layer_idx": True}
    model = randomised(**change, attn_implementation=attention)
    close = tolerance(model)
    if "reorder_and_upcast_attn" in change:
        model, close = model.float(), {"atol": 1e-3, "rtol": 1e-3}
    whole, tokens = with_a_whole_last_block(model), ids(2, 9)
    mask = torch.ones_like(tokens)
    mask[1, :padding] = 0
    rows, gradients = [], []
    for each in (model, whole):
        cache = CoCoMixCache(each.config) if cached else None
        chunks = tokens.split([5, 1, 3], dim=1) if cached else [tokens]
        outputs, seen = [], 0
        for chunk in chunks:
            seen += chunk.shape[1]
            attended = mask[:, :seen] if padding else None
            outputs.append(each(chunk, attention_mask=attended, past_key_values=cache, use_cache=cached).logits)
        logits = torch.cat(outputs, dim=1)[mask.bool()]
        rows.append(logits)
        gradients.append(torch.autograd.grad(logits.square().sum(), list(each.parameters()), allow_unused=True))
    torch.testing.assert_close(rows[0], rows[1], **close)
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, **close) if wanted is not None else None


class Adapter(nn.Module):
    """What adapter libraries put in a layer's place."""

    def __init__(self, layer: nn.Module, change: Tensor) -> None:
        super().__init__()
        self.layer, self.change = layer, change

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.change


@pytest.mark.parametrize("wrapped", [True, False], ids=["adapter", "hook"])
@pytest.mark.parametrize(
    ("backbone", "name"), [("gpt2", "attn.c_attn"), ("llama", "self_attn.q_proj"), ("llama", "self_attn.k_proj")]
)
def test_an_adapter_or_a_hook_of_the_last_attention_counts_as_if_it_were_merged(
    backbone: str, name: str, wrapped: bool, attention: str
) -> None:
    model, merged = (precise(tiny(backbone, attn_implementation=attention)) for _ in range(2))
    last, tokens = model.base_model.blocks[-1], ids(2, 9)
    layer = last.get_submodule(name)
    change = torch.randn_like(layer.weight)
    merged.base_model.blocks[-1].get_submodule(name).weight.data += change
    added = change if backbone == "gpt2" else change.T
    if wrapped:
        last.set_submodule(name, Adapter(layer, added))
    else:
        layer.register_forward_hook(lambda _, inputs, output: output + inputs[0] @ added)
    torch.testing.assert_close(model(tokens).logits, merged(tokens).logits, **tolerance(model))


@pytest.mark.parametrize("mixing", ["interleave", "interleave_with_state", "add", "none"])
@pytest.mark.parametrize("change", [{}, {"predicts": "hidden"}, LLAMA], ids=named)
def test_what_is_mixed_before_the_last_block_alone_follows_the_equations_too(
    change: dict[str, object], mixing: str, attention: str
) -> None:
    model = randomised(**change, mixing=mixing, concept_layer=3, attn_implementation=attention)
    tokens, cache = ids(2, 9), CoCoMixCache(model.config)
    expected, _ = reference(model, tokens)
    close = tolerance(model)
    torch.testing.assert_close(model(tokens).logits, expected, **close)
    rows = [model(some, past_key_values=cache, use_cache=True).logits for some in tokens.split([4, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(rows, dim=1), expected, **close)
    wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()), allow_unused=True)
    found = torch.autograd.grad(model(tokens).logits.square().sum(), list(model.parameters()), allow_unused=True)
    for got, each in zip(found, wanted, strict=True):
        assert (got is None) == (each is None)
        loose = close | {"atol": 100 * close["atol"]}  # of squares
        torch.testing.assert_close(got, each, **loose) if each is not None else None


def test_there_is_one_row_of_logits_a_text_token_and_no_row_sees_the_future(
    attending: dict[str, object],
) -> None:
    model, tokens = tiny(**attending), ids(2, 9)
    changed = tokens.clone()
    changed[:, 6:] = ids(2, 3, seed=5)
    first, second = model(tokens).logits, model(changed).logits
    assert first.shape == (2, 9, 61)
    torch.testing.assert_close(first[:, :6], second[:, :6], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(first[:, 6:], second[:, 6:], atol=1e-2)


def test_left_padding_changes_no_row_of_logits(attending: dict[str, object]) -> None:
    model, tokens = precise(tiny(**attending)), ids(1, 6)
    mask = F.pad(torch.ones_like(tokens), (4, 0))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    padded = model(F.pad(tokens, (4, 0), value=7), attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(padded.logits[:, 4:], model(tokens).logits, **tolerance(model))


def test_documents_whose_positions_begin_anew_do_not_see_each_other(attending: dict[str, object]) -> None:
    model, tokens = precise(tiny(**attending)), ids(2, 9)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0, 1]]).expand(2, -1)
    packed = model(tokens, position_ids=positions, use_cache=False).logits
    for document in (slice(0, 3), slice(3, 7), slice(7, 9)):
        torch.testing.assert_close(packed[:, document], model(tokens[:, document]).logits, **tolerance(model))


def test_the_librarys_trainer_collects_the_logits_alone(tmp_path: Path) -> None:
    rows = [{"input_ids": row, "labels": row} for row in ids(3, 8).tolist()]
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True)
    predicted = Trainer(tiny(), arguments).predict(rows)
    assert predicted.predictions.shape == (3, 8, 61)


def test_embeddings_can_be_given_instead_of_tokens() -> None:
    model, tokens = tiny(), ids(2, 8)
    embedded = model(inputs_embeds=model.get_input_embeddings()(tokens))
    torch.testing.assert_close(embedded.logits, model(tokens).logits, atol=0, rtol=0)


def test_a_window_of_the_whole_context_works_and_a_longer_one_does_not_where_positions_are_learned(
    attending: dict[str, object],
) -> None:
    model = tiny(**attending)
    assert model(ids(1, 48)).logits.isfinite().all()
    if model.config.model_type == "cocomix":
        with pytest.raises(IndexError):
            model(ids(1, 49))


def test_the_loss_is_the_librarys_for_the_same_logits() -> None:
    model, tokens = tiny(), ids(2, 8)
    output = model(tokens, labels=tokens)
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)


def test_only_the_last_logits_are_made_on_request() -> None:
    model, tokens = tiny(), ids(2, 8)
    torch.testing.assert_close(model(tokens, logits_to_keep=3).logits, model(tokens).logits[:, -3:])


@pytest.mark.parametrize("change", [{}, LLAMA], ids=named)
def test_hidden_states_are_given_on_request_with_two_positions_a_token_above_the_concept_layer(
    change: dict[str, object],
) -> None:
    model, tokens = tiny(**change, attn_implementation="eager"), ids(2, 8)
    output = model(tokens, output_hidden_states=True, output_attentions=True)
    assert [each.shape[1] for each in output.hidden_states] == [8, 8, 8, 16, 8]
    torch.testing.assert_close(output.hidden_states[-1], output.last_hidden_state, atol=0, rtol=0)
    torch.testing.assert_close(
        model.base_model.mixer(output.hidden_states[2]).concept_logits, output.concept_logits, atol=0, rtol=0
    )
    assert [tuple(each.shape[2:]) for each in output.attentions] == [(8, 8), (8, 8), (16, 16), (8, 16)]
    assert model(tokens).hidden_states is None


@pytest.mark.parametrize("asked", ["argument", "configuration"])
def test_a_tuple_is_given_on_request(asked: str) -> None:
    model, tokens = tiny(), ids(2, 8)
    expected = model(tokens).logits
    if asked == "configuration":
        model.config.return_dict = False
    output = model(tokens) if asked == "configuration" else model(tokens, return_dict=False)
    assert isinstance(output, tuple)
    torch.testing.assert_close(output[0], expected)


def test_the_tied_start_has_unit_rows_and_their_scaled_transpose_and_the_normal_start_has_neither() -> None:
    tied = tiny(initializer_range=0.02, tied_scale=0.5).transformer.mixer
    normal = tiny(initializer_range=0.02, concept_init="normal").transformer.mixer
    torch.testing.assert_close(tied.predictor.weight.norm(dim=1), torch.ones(40))
    torch.testing.assert_close(tied.compress.weight, 0.5 * tied.predictor.weight)
    assert normal.predictor.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert normal.compress.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    "change",
    [{}, {"concept_head": "equations"}, {"predicts": "hidden"}, {"predicts": "nothing", "mlp_width": 20}],
    ids=named,
)
@pytest.mark.parametrize("mixing", ["interleave", "interleave_with_state", "add"])
def test_behind_a_new_gate_the_vector_is_zero_and_the_first_step_opens_the_gate(
    mixing: str, change: dict[str, object]
) -> None:
    model, tokens = CoCoMixForCausalLM(tiny(**change, mixing=mixing, gate=True).config).eval(), ids(2, 8)
    mixer, without = model.transformer.mixer, tiny(mixing="none")
    assert not mixer(torch.randn(2, 8, 32)).vector.any()
    if mixing == "add":
        without.load_state_dict(model.state_dict(), strict=False)
        torch.testing.assert_close(model(tokens).logits, without(tokens).logits, atol=0, rtol=0)

    def reached() -> set[str]:
        model.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        return {name for name, each in mixer.named_parameters() if each.grad.any()}

    assert reached() == {"gate.weight"}
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert mixer.gate.weight.item() != 0
    assert reached() == {name for name, _ in mixer.named_parameters()}


def test_a_concept_head_that_does_not_mix_has_no_parameter_for_it() -> None:
    names = {
        head: {name for name, _ in ConceptHead(tiny(mixing="none", concept_head=head).config).named_parameters()}
        for head in ("released", "equations")
    }
    assert names["released"] == {"predictor.weight", "predictor.bias", "pre_bias"}
    assert names["equations"] == {"predictor.weight", "predictor.bias"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"concept_layer": 0}, "concept_layer .* must be from 1 to"),
        ({"concept_layer": 4}, "concept_layer .* must be from 1 to"),
        ({"concept_k": 41}, "concept_k .* must be from 1 to"),
        ({"predicts": "nothing", "mixing": "add"}, "mixing .* must be interleave"),
        (
            {"predicts": "nothing", "mixing": "none", "mlp_width": 8},
            "mixing .* must be interleave .* or add with an MLP",
        ),
        ({"predicts": "nothing", "mlp_width": -1}, "mlp_width .* must be 0, or at least 1 with predicts"),
        ({"mlp_width": 8}, "mlp_width .* must be 0, or at least 1 with predicts"),
        ({"predicts": "nothing", "stop_gradient": True}, "stop_gradient must be false"),
        ({"mixing": "none", "stop_gradient": True}, "stop_gradient must be false"),
        ({"mixing": "none", "gate": True}, "gate must be false"),
        ({"add_cross_attention": True}, "add_cross_attention must be false"),
        ({"backbone": "llama", "mlp_bias": True}, "mlp_bias must be false"),
        ({"backbone": "llama", "concept_layer": 4}, "concept_layer .* must be from 1 to"),
        ({"mixing": "multiply"}, "mixing"),
    ],
)
def test_a_configuration_that_cannot_work_or_would_be_ignored_is_refused(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(Exception, match=message):  # the library wraps some in its own
        tiny(**change)


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.sampled_from(["interleave", "add", "none"]))
def test_weighted_concept_labels_give_the_weighted_loss(seed: int, mixing: str) -> None:
    model, tokens, generator = tiny(mixing=mixing), ids(2, 9), torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 40, (2, 9, 3), generator=generator)
    weights = torch.rand(labels.shape, generator=generator) * (labels >= 0)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)
    found = model(tokens, concept_labels=labels, concept_label_weights=weights)
    assert found.concept_logits is None
    negative = -model(tokens).concept_logits.log_softmax(-1)
    torch.testing.assert_close(found.concept_loss, (weights * negative.gather(-1, labels.clamp(min=0))).sum())


@pytest.mark.parametrize(
    ("labels", "weights", "message"),
    [
        ((2, 9), None, r"concept_labels: \[2, 9\]; must be \[2, 9, k_attr\]"),
        ((2, 8, 3), None, r"concept_labels: \[2, 8, 3\]; must be \[2, 9, k_attr\]"),
        ((2, 9, 3), (2, 9), r"concept_label_weights: \[2, 9\]; must be \[2, 9, 3\], as concept_labels"),
        ((2, 9, 3), (2, 9, 1), r"concept_label_weights: \[2, 9, 1\]; must be \[2, 9, 3\], as concept_labels"),
        (None, (2, 9, 3), r"concept_label_weights: \[2, 9, 3\]; must be None, as concept_labels"),
    ],
)
def test_labels_and_weights_of_another_shape_are_refused(
    labels: tuple[int, ...] | None, weights: tuple[int, ...] | None, message: str
) -> None:
    model = tiny()
    for call in (model, model.transformer):
        with pytest.raises(ValueError, match=message):
            call(
                ids(2, 9),
                concept_labels=None if labels is None else torch.zeros(labels, dtype=torch.int64),
                concept_label_weights=None if weights is None else torch.ones(weights),
            )


def as_given(allowed: Tensor, kind: str) -> Tensor:
    return (
        allowed if kind == "bool" else torch.zeros(allowed.shape).masked_fill_(~allowed, torch.finfo(torch.float).min)
    )


@pytest.mark.parametrize("variant", [*MAIN, LLAMA], ids=named)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["bool", "added"])
def test_a_mask_of_who_looks_at_whom_keeps_documents_apart(
    variant: dict[str, object], attention: str, kind: str
) -> None:
    model, tokens = tiny(**variant), ids(2, 9)
    model.set_attn_implementation(attention)
    second = torch.arange(9) >= 4
    allowed = (torch.ones(9, 9).tril().bool() & (second[:, None] == second))[None, None]
    position_ids = torch.cat([torch.arange(4), torch.arange(5)])[None]
    found = model(tokens, attention_mask=as_given(allowed, kind), position_ids=position_ids, use_cache=False).logits
    alone = torch.cat([model(part, use_cache=False).logits for part in (tokens[:, :4], tokens[:, 4:])], 1)
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", [*MAIN, LLAMA], ids=named)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_mask_of_all_that_came_before_changes_nothing_also_with_a_cache(
    variant: dict[str, object], attention: str
) -> None:
    model, tokens = tiny(**variant), ids(2, 9)
    model.set_attn_implementation(attention)
    expected, causal = model(tokens).logits, torch.ones(9, 9).tril().bool()[None, None]
    torch.testing.assert_close(model(tokens, attention_mask=causal).logits, expected, rtol=1e-4, atol=1e-4)
    cache = model(tokens[:, :5]).past_key_values
    later = model(tokens[:, 5:], attention_mask=causal[:, :, 5:], past_key_values=cache).logits
    torch.testing.assert_close(later, expected[:, 5:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "shape", [(9,), (2, 8), (3, 9), (2, 1, 9), (2, 9, 9), (3, 1, 9, 9), (2, 4, 9, 9), (2, 1, 9, 8), (2, 1, 18, 18)]
)
def test_a_mask_of_another_shape_is_an_error_that_says_what_it_must_be(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"attention_mask: \[.*\]; must be \[2, "):
        tiny()(ids(2, 9), attention_mask=torch.ones(shape))
