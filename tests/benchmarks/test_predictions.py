from benchmarks.predictions import Shape, ratios

SHAPE = Shape(d_model=32, layers=4, heads=4, concept_layer=2, vocab=997, concepts=512, context=40)


def test_the_measurement_is_compared_at_about_a_place_per_position() -> None:
    found = ratios(SHAPE, 1)
    assert set(found) == {"over_evaluation", "over_whole_windows", "places_per_position"}
    assert all(ratio > 0 for ratio in found.values())
    assert 0.8 < found["places_per_position"] <= 1
