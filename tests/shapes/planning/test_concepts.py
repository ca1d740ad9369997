from typing import Any

import pytest

from tests.shapes.planning.estimates import OWN, needs, params


def test_activations_that_are_not_kept_take_no_disk_and_are_computed_in_the_autoencoders_training() -> None:
    kept, not_kept = needs(), needs(activations={"keep": False, "mixed_shards": 2})
    assert not_kept["activations"].disk < 0.1 * kept["activations"].disk
    assert not_kept["sae"].flops > 2 * kept["sae"].flops
    assert not_kept["attribution"] == kept["attribution"]


@pytest.mark.parametrize("section", [{}, {"source": "published", "published": {"path": "x", "format": "openai"}}])
def test_activations_that_are_not_stored_need_the_base_model_up_to_their_site_beside_the_whole_one(
    section: dict[str, Any],
) -> None:
    stored, low, high = (
        needs(activations={"keep": keep, "mixed_shards": 2, "sites": [site]}, sae=section)["sae"].memory
        for keep, site in ((True, "resid_post_3"), (False, "resid_post_1"), (False, "resid_post_3"))
    )
    assert stored < low < high


def test_a_published_autoencoder_takes_no_training() -> None:
    found = needs(sae={"source": "published", "published": {"path": "x", "format": "openai"}})
    assert found["sae"].flops == 0 < found["sae"].disk


def test_where_no_block_above_the_layer_is_needed_none_takes_memory() -> None:
    taken = {"source": "pretrained", "pretrained": "x"}
    loss, activation = (
        needs(base=taken, attribution={"score": each})["attribution"] for each in ("gradient", "activation")
    )
    assert activation.memory < loss.memory


def test_labels_cost_what_the_base_models_tokens_cost_and_take_the_disk_of_the_students() -> None:
    short, long = (needs(base=OWN | {"context": context}) for context in (128, 1024))
    assert short["attribution"].disk == long["attribution"].disk
    assert short["attribution"].flops < long["attribution"].flops


def test_latents_with_two_signs_are_twice_as_many_concepts_and_no_more_work() -> None:
    one, two = needs(), needs(sae={"architecture": "abstopk"})
    twice = needs(sae={"latents": 2 * params().sae.latents})
    for models in ("pretrain@ntp-0", "pretrain@cocomix-0", "evaluate@cocomix-0"):
        assert two[models] == twice[models] != one[models]
    assert two["explain"].disk == twice["explain"].disk
    for stage in ("sae", "attribution", "explain"):
        assert two[stage].flops == one[stage].flops < twice[stage].flops
