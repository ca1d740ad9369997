from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.modeling import CoCoMixConfig, CoCoMixForCausalLM, CoCoMixLlamaConfig, CoCoMixLlamaForCausalLM
from cocomix.models.accounting import flops_per_token, parameters_of
from cocomix.models.configs import config_of
from cocomix.params import (
    CocomixParams,
    KdParams,
    Match,
    MethodParams,
    ModelParams,
    MtpParams,
    NtpParams,
    PauseParams,
    PretrainParams,
)
from cocomix.plumbing.errors import UserError
from cocomix.shapes.models import (
    Shape,
    TeacherSizes,
    base_flops,
    cocomix_shape,
    deepened,
    dimensions,
    pause_shape,
    plain_shape,
    shape_of,
    shapes,
    swiglu_width,
    training_flops,
    widened,
)
from cocomix.shapes.planning.corpus import Words
from cocomix.tokens.windows import Tokens
from tests.training.test_loop import PARAMS

COCOMIX = CocomixParams(
    predicts="concepts",
    mixing="interleave",
    concept_layer=2,
    concept_k=8,
    concept_head="released",
    concept_init="tied",
    tied_scale=0.5,
    learned_scale=False,
    stop_gradient=False,
    concept_weight=0.3,
    hidden_loss="l2",
)
SOURCES = TeacherSizes(concepts=512, base_width=32, base_flops=500_000, base_flops_to_layer=200_000)


def matched(
    tokens: Tokens,
    match: Match,
    teacher: TeacherSizes = SOURCES,
    forms: Mapping[str, Mapping[str, Any]] | None = None,
    **cocomix: object,
) -> dict[str, Any]:
    return shapes(asked(match, forms, **cocomix), tokens, teacher)


def asked(match: Match, forms: Mapping[str, Mapping[str, Any]] | None = None, **cocomix: object) -> PretrainParams:
    return PretrainParams(
        methods=["ntp"],
        seeds=[0],
        match=match,
        model=ModelParams(d_model=64, n_layer=4, n_head=2),
        training=PARAMS,
        ntp=NtpParams(),
        kd=KdParams(kl_weight=0.1),
        pause=PauseParams(layer=1, mixing="interleave_with_state"),
        mtp=MtpParams(tokens=3, weight=1.0),
        cocomix=COCOMIX.model_copy(update=cocomix),
        forms=forms or {},
    )


@pytest.fixture
def tokens(tokens_folder: object) -> Tokens:
    return Tokens()


@settings(max_examples=200)
@given(st.integers(1, 12), st.sampled_from([8, 16, 24, 32, 64, 72, 128]), st.integers(0, 10**8))
def test_no_other_width_with_heads_of_about_the_size_comes_nearer(n_head: int, dim: int, target: int) -> None:
    model = ModelParams(d_model=n_head * dim, n_layer=2, n_head=n_head)

    def cost(shape: ModelParams) -> int:
        return 12 * shape.d_model**2

    found = widened(model, cost, target)
    head = found.d_model // found.n_head
    assert head % 8 == 0
    assert dim / 2 <= head <= 2 * dim
    for width in range(8, 2 * found.d_model, 8):
        if any(width % each == 0 for each in range(8, 2 * dim + 1, 8) if 2 * each >= dim):
            assert abs(cost(found) - target) <= abs(12 * width**2 - target)


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([8, 16, 32, 64]), st.integers(0, 10**8))
def test_a_widened_llama_has_as_many_heads_of_queries_for_one_of_keys_and_is_the_nearest_such(
    n_kv_head: int, group: int, dim: int, target: int
) -> None:
    n_head = n_kv_head * group
    model = ModelParams(backbone="llama", d_model=n_head * dim, n_layer=2, n_head=n_head, n_kv_head=n_kv_head)

    def cost(shape: ModelParams) -> int:
        return parameters_of(config_of(plain_shape(shape, Words(61, 32)))).stored

    def at(width: int) -> int:
        return cost(model.model_copy(update={"d_model": width, "n_head": group, "n_kv_head": 1}))

    found = widened(model, cost, target)
    head = found.d_model // found.n_head
    assert (head % 8, found.n_head) == (0, group * found.n_kv_head)
    assert dim / 2 <= head <= 2 * dim
    for width in range(8, 2 * found.d_model, 8):
        if any(width % (group * each) == 0 for each in range(8, 2 * dim + 1, 8) if 2 * each >= dim):
            assert abs(cost(found) - target) <= abs(at(width) - target)


@pytest.mark.parametrize("match", ["stored", "active", "flops"])
def test_baselines_on_llama_have_the_size_of_cocomix_to_within_a_step_of_the_width(match: Match) -> None:
    words = Words(512, 64)
    params = asked(match)
    llama = {"backbone": "llama", "n_kv_head": 2, "qk_norm": True, "d_model": 192, "n_head": 4}
    params = params.model_copy(update={"model": params.model.model_copy(update=llama)})
    teacher = SOURCES._replace(concepts=4096)
    found = shapes(params, words, teacher)

    def cost(name: str, section: MethodParams) -> int:
        if match == "flops":
            return training_flops(found[name], section, teacher, words.context)
        return getattr(parameters_of(config_of(found[name])), match)

    assert found["ntp"]["hidden_size"] > 192
    assert found["ntp"]["num_attention_heads"] == 2 * found["ntp"]["num_key_value_heads"]
    assert cost("ntp", params.ntp) == pytest.approx(cost("cocomix", params.cocomix), rel=0.12)
    assert isinstance(config_of(found["cocomix"]), CoCoMixLlamaConfig)
    built = CoCoMixLlamaForCausalLM(config_of(found["cocomix"]))
    assert sum(each.numel() for each in built.parameters()) == parameters_of(built.config).stored


@pytest.mark.parametrize(("d_model", "width"), [(8, 24), (128, 344), (192, 512), (4096, 10928)])
def test_a_swiglu_is_as_wide_as_gives_it_the_parameters_of_an_mlp_of_four_times_the_width(
    d_model: int, width: int
) -> None:
    assert swiglu_width(d_model) == width
    assert 0 <= 3 * d_model * width - 8 * d_model**2 < 3 * 8 * d_model


def test_a_shape_with_more_blocks_is_the_same_otherwise() -> None:
    for backbone in ("gpt2", "llama"):
        shape = plain_shape(ModelParams(backbone=backbone, d_model=64, n_layer=4, n_head=2), Words(61, 32))
        assert dimensions(deepened(shape, 2)) == dimensions(shape)._replace(n_layer=6)


def test_an_unmatched_baseline_is_as_wide_as_the_model(tokens: Tokens) -> None:
    found = matched(tokens, "width")
    assert [found[method]["n_embd"] for method in ("ntp", "kd", "pause", "cocomix")] == [64] * 4


@pytest.mark.parametrize("match", ["stored", "active"])
def test_baselines_have_the_parameters_of_cocomix_to_within_a_step_of_the_width(tokens: Tokens, match: Match) -> None:
    found = matched(tokens, match)
    wanted = getattr(parameters_of(config_of(found["cocomix"])), match)
    for method in ("ntp", "kd"):
        assert found[method]["n_embd"] > 64
        assert getattr(parameters_of(config_of(found[method])), match) == pytest.approx(wanted, rel=0.1)


def test_matched_training_flops_count_the_base_models_forward_pass(tokens: Tokens) -> None:
    found = matched(tokens, "flops")
    wanted = 3 * flops_per_token(config_of(found["cocomix"]), tokens.context)
    costs = {method: 3 * flops_per_token(config_of(found[method]), tokens.context) for method in ("ntp", "kd")}
    assert costs["ntp"] == pytest.approx(wanted, rel=0.12)
    assert costs["kd"] + SOURCES.base_flops == pytest.approx(wanted, rel=0.12)
    assert costs["kd"] < costs["ntp"]
    with_hidden = matched(tokens, "flops", predicts="hidden")
    wanted = 3 * flops_per_token(config_of(with_hidden["cocomix"]), tokens.context) + SOURCES.base_flops_to_layer
    assert 3 * flops_per_token(config_of(with_hidden["ntp"]), tokens.context) == pytest.approx(wanted, rel=0.12)


def test_a_base_model_dearer_than_cocomix_leaves_distillation_no_width_of_equal_flops(tokens: Tokens) -> None:
    dear = SOURCES._replace(
        base_flops=3 * flops_per_token(config_of(matched(tokens, "width")["cocomix"]), tokens.context)
    )
    found = matched(tokens, "flops", dear)
    assert [method for method, shape in found.items() if shape is None] == ["kd"]  # a key for DVC, which misses others
    with pytest.raises(UserError, match=r"^pretrain\.match: flops: kd cannot match CoCoMix's training FLOPs"):
        shape_of("kd", found["kd"])
    assert matched(tokens, "flops", dear._replace(base_flops=dear.base_flops - 1))["kd"]
    assert matched(tokens, "stored", dear)["kd"]


@pytest.mark.parametrize("match", ["width", "stored", "active", "flops"])
def test_forms_are_shaped_by_what_differs_and_leave_the_others_as_they_are(tokens: Tokens, match: Match) -> None:
    forms = {"predicted": {"mixing": "none"}, "early": {"concept_layer": 1, "concept_k": 3}}
    found, without = matched(tokens, match, forms=forms), matched(tokens, match)
    assert {name: found[name] for name in without} == without
    assert found["predicted"] == found["cocomix"] | {"mixing": "none"}
    assert found["early"] == found["cocomix"] | {"concept_layer": 1, "concept_k": 3}


def test_further_tokens_cost_a_block_and_a_head_each_in_training_alone(tokens: Tokens) -> None:
    mtp = MtpParams(tokens=3, weight=1.0)
    shape = matched(tokens, "width")["mtp"]
    assert shape == matched(tokens, "width")["ntp"]
    deeper = shape | {"n_layer": shape["n_layer"] + 2}
    heads = 2 * 2 * shape["n_embd"] * shape["vocab_size"]
    expected = 3 * (flops_per_token(config_of(deeper), tokens.context) + heads)
    assert training_flops(shape, mtp, SOURCES, tokens.context) == expected
    assert matched(tokens, "stored")["mtp"] == matched(tokens, "stored")["ntp"]
    found = matched(tokens, "flops")
    assert training_flops(found["mtp"], mtp, SOURCES, tokens.context) == pytest.approx(
        training_flops(found["cocomix"], COCOMIX, SOURCES, tokens.context), rel=0.12
    )


def test_training_counts_the_base_model_as_long_as_it_runs(tokens: Tokens) -> None:
    params = asked(
        "width",
        {
            "taught": {"kd": {"kl_weight": 1.0}},
            "briefly": {"kd": {"kl_weight": 1.0, "schedule": {"shape": "linear", "until": 0.25}}},
            "cached": {"kd": {"kl_weight": 1.0, "source": "cached"}},
            "regressed": {"predicts": "hidden"},
            "both": {"predicts": "hidden", "kd": {"kl_weight": 1.0}},
        },
    )
    assert {name: base_flops(form, SOURCES) for name, form in params.forms.items()} == {
        "taught": 500_000,
        "briefly": 125_000,
        "cached": 0,
        "regressed": 200_000,
        "both": 700_000,
    }
    assert base_flops(params.cocomix, SOURCES) == base_flops(params.ntp, SOURCES) == 0


def controls(tokens: Tokens, match: Match, **changes: object) -> tuple[Shape, Shape]:
    """Of the control and of what it is a control of."""
    trunk = plain_shape(ModelParams(d_model=64, n_layer=4, n_head=2), tokens)
    both = (COCOMIX.model_copy(update=changes | {"predicts": each}) for each in ("nothing", "concepts"))
    control, concepts = (cocomix_shape(trunk, each, tokens, SOURCES, match) for each in both)
    return control, concepts


@pytest.mark.parametrize("match", ["width", "stored", "active", "flops"])
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("mixing", ["interleave", "interleave_with_state", "add"])
def test_the_control_without_concepts_has_the_size_of_cocomix_as_near_as_a_unit_of_its_mlp_allows(
    tokens: Tokens, match: Match, gate: bool, mixing: str
) -> None:
    control, concepts = controls(tokens, match, gate=gate, mixing=mixing)

    def cost(shape: Shape) -> int:
        if match == "flops":
            return flops_per_token(config_of(shape), tokens.context)
        return getattr(parameters_of(config_of(shape)), "active" if match == "active" else "stored")

    def distance(width: int) -> int:
        return abs(cost(control | {"mlp_width": width}) - cost(concepts))

    found = control["mlp_width"]
    assert distance(found) <= min(distance(found - 1), distance(found + 1))
    assert 2 * distance(found) <= cost(control | {"mlp_width": found + 1}) - cost(control)
    assert (control["gate"], control["mixing"], control["concept_layer"]) == (gate, mixing, 2)
    if match == "stored":
        built = CoCoMixForCausalLM(config_of(control))
        assert sum(each.numel() for each in built.parameters()) == cost(control)


def test_the_mlp_of_the_control_counts_for_the_width_of_the_baselines(tokens: Tokens) -> None:
    assert matched(tokens, "active", predicts="nothing")["ntp"] == matched(tokens, "active")["ntp"]


def test_shapes_are_configurations_of_their_methods(tokens: Tokens) -> None:
    trunk = plain_shape(ModelParams(d_model=64, n_layer=4, n_head=2, dropout=0.1), tokens)
    cocomix = config_of(cocomix_shape(trunk, COCOMIX, tokens, SOURCES, "stored"))
    pause = config_of(pause_shape(trunk, PauseParams(layer=3, mixing="interleave")))
    assert isinstance(cocomix, CoCoMixConfig)
    assert isinstance(pause, CoCoMixConfig)
    assert (cocomix.predicts, cocomix.num_concepts, cocomix.concept_layer) == ("concepts", 512, 2)
    assert (pause.predicts, pause.mixing, pause.concept_layer, pause.resid_pdrop) == ("nothing", "interleave", 3, 0.1)
    assert cocomix.vocab_size == tokens.vocab_size
