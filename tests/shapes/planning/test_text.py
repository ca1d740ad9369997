from tests.shapes.planning.estimates import OWN, TEXT, needs


def test_a_base_model_with_its_own_tokens_takes_disk_for_them_and_for_the_places_of_labels() -> None:
    shared, own = (needs(base={"source": "pretrained", "pretrained": "x"} | each) for each in ({}, OWN))
    assert shared["base_tokens"].disk < 1000
    assert shared["base_tokens"].text == 0
    students = 4 * 1.25e6
    assert students < own["base_tokens"].disk < 2.5 * students
    assert own["base_tokens"].text > sum(TEXT.bytes.values())
    assert own["tokenize"] == shared["tokenize"]
    assert own["pretrain@ntp-0"] == shared["pretrain@ntp-0"]
