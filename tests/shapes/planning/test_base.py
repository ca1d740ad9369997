from tests.shapes.planning.estimates import TEXT, needs


def test_each_site_is_stored() -> None:
    one, two = needs(), needs(activations={"sites": ["resid_post_2", "mlp_out_1"]}, sae={"site": "resid_post_2"})
    assert two["activations"].disk == 2 * one["activations"].disk


def test_no_more_activations_are_stored_than_there_are_tokens() -> None:
    few = TEXT._replace(tokens={"train": 12_800.0, "validation": 1280.0, "test": 1280.0})
    bytes_of_a_row = 2 * 128 + 5
    assert needs(few)["activations"].disk == bytes_of_a_row * (12_800 + 1280)
