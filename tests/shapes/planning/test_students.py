from cocomix.predictions import measure
from cocomix.shapes.planning.needs import StageNeeds
from cocomix.shapes.planning.students import DOUBLED
from tests.shapes.planning.estimates import TEXT, needs, params


def test_forms_are_planned_by_their_own_parameters() -> None:
    forms = {
        "predicted": {"mixing": "none"},
        "taught": {"kd": {"kl_weight": 1.0}},
        "control": {"predicts": "nothing"},
        "added": {"mixing": "add"},
    }
    found = needs(pretrain={"methods": ["ntp", "cocomix", *forms], "forms": forms})
    alone = needs(pretrain={"methods": ["ntp", "cocomix"]})
    assert {name: need for name, need in found.items() if name in alone and name != "steer"} == {
        name: need for name, need in alone.items() if name != "steer"
    }
    assert found["pretrain@predicted-0"].flops < found["pretrain@cocomix-0"].flops
    assert found["pretrain@taught-0"].flops > found["pretrain@cocomix-0"].flops
    assert found["pretrain@taught-0"].memory > found["pretrain@cocomix-0"].memory
    assert found["pretrain@control-0"].scratch < found["pretrain@cocomix-0"].scratch  # it unpacks no labels
    assert found["evaluate@control-0"].disk == found["evaluate@ntp-0"].disk
    without = needs(pretrain={"methods": ["ntp", "cocomix", "predicted", "control"], "forms": forms})
    assert without["steer"] == alone["steer"]
    assert found["steer"].flops > alone["steer"].flops
    assert needs(pretrain={"methods": ["ntp", "predicted"], "forms": forms})["steer"] == StageNeeds()


def test_multi_token_prediction_costs_further_blocks_and_heads_in_training_alone() -> None:
    found = needs(pretrain={"methods": ["ntp", "mtp"], "match": "width"})
    assert found["pretrain@mtp-0"].flops > 1.5 * found["pretrain@ntp-0"].flops
    assert found["pretrain@mtp-0"].memory > found["pretrain@ntp-0"].memory
    assert found["pretrain@mtp-0"].disk == found["pretrain@ntp-0"].disk
    assert found["evaluate@mtp-0"] == found["evaluate@ntp-0"]


def test_muon_keeps_one_moment_less_for_each_number_in_a_matrix_of_a_block_and_multiplies_matrices() -> None:
    changes = {"methods": ["ntp", "mtp"], "match": "width"}
    training = params().pretrain.training.model_dump() | {"optimizer": "muon"}
    adamw, muon = needs(pretrain=changes), needs(pretrain=changes | {"training": training})
    shape = params().pretrain.model
    matrices = 12 * shape.d_model**2
    for name, blocks in (("ntp", shape.n_layer), ("mtp", shape.n_layer + params().pretrain.mtp.tokens - 1)):
        one, other = adamw[f"pretrain@{name}-0"], muon[f"pretrain@{name}-0"]
        assert one.memory - other.memory == 4 * blocks * matrices
        assert one.scratch - other.scratch == 2 * 4 * blocks * matrices
        # 30 d^3 for each of four square matrices, 90 d^3 for each of two that are four times as long.
        assert other.flops - one.flops == training["steps"] * blocks * 300 * shape.d_model**3
        assert other.disk == one.disk
    assert adamw["base"] == muon["base"]


def test_distillation_costs_the_base_models_forward_pass_too() -> None:
    changes = {"methods": ["ntp", "kd"], "match": "width"}
    found, training = needs(pretrain=changes), params().pretrain.training
    base_training = params().base.training
    forward = found["base"].flops / (3 * base_training.steps * base_training.batch_size)
    more = found["pretrain@kd-0"].flops - found["pretrain@ntp-0"].flops
    assert more == forward * training.steps * training.batch_size


def test_draws_that_are_read_cost_disk_in_place_of_the_base_models_forward_pass() -> None:
    methods = {"methods": ["ntp", "kd", "cocomix"], "match": "width"}
    kd = params().pretrain.kd.model_dump()
    cached = {"kd": kd | {"source": "cached"}}
    none, drawn = needs(pretrain=methods), needs(pretrain=methods, distribution={"draws": 50})
    read = needs(pretrain=methods | cached, distribution={"draws": 50})
    assert none["distribution"] == StageNeeds()
    tokens = TEXT.tokens["train"] // 128 * 128 + TEXT.tokens["validation"] // 128 * 128
    assert 20 * tokens < drawn["distribution"].disk < 70 * tokens
    assert drawn["distribution"].flops < drawn["attribution"].flops
    assert read["pretrain@kd-0"].flops == read["pretrain@ntp-0"].flops < drawn["pretrain@kd-0"].flops
    assert read["pretrain@kd-0"].scratch > drawn["pretrain@kd-0"].scratch + 30 * tokens
    both = params().pretrain.cocomix.model_dump() | {"kd": kd | {"source": "cached"}}
    read_too = needs(pretrain=methods | {"cocomix": both}, distribution={"draws": 50})["pretrain@cocomix-0"]
    assert read_too.scratch > drawn["pretrain@cocomix-0"].scratch + 30 * tokens
    assert read_too.flops == drawn["pretrain@cocomix-0"].flops


def test_steering_costs_a_token_for_each_place_at_which_a_concept_is_doubled() -> None:
    assert DOUBLED == measure.DOUBLED
    context, concepts = params().tokenize.context, params().sae.concepts
    edits = {"concepts": 2, "strengths": [-5, 5], "windows": 1, "prompt_tokens": 1, "new_tokens": 2}
    few, many = (needs(steer=edits | {"read_windows": windows})["steer"] for windows in (1, 101))
    per_token = (many.flops - few.flops) / (100 * 2 * context)
    places = few.flops / per_token - 2 * context
    edited = 4 * (context + 3)  # by two models and the base model
    assert DOUBLED * concepts < places < DOUBLED * concepts + 3 * edited
    hidden = 4 * 2 * DOUBLED * concepts * params().pretrain.model.d_model
    assert hidden < few.scratch < many.scratch < 2 * hidden
