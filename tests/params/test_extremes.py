from pathlib import Path

import pytest

from cocomix.params import Params
from cocomix.plumbing.checked import parse
from cocomix.plumbing.errors import UserError
from tests.params.changed import leaves, refusal
from tests.shipped import paper_values

EXTREMES = [
    *(0, -1, 1, 2**31, 2**53, 2**63, 2**64, -(2**64), 10**400),
    *(0.0, -0.0, 5e-324, 1e308, -1e308, float("inf"), float("-inf"), float("nan")),
    *("", "x", "\ud800", "a\0b", "x" * 10_000, "\u0663", "resid_post_\u0663", "resid_post_" + "9" * 5000, "\n"),
    *(None, True, [], {}, "010", "yes"),
]


@pytest.mark.parametrize("key", leaves(Params), ids=".".join)
def test_an_extreme_value_is_refused_in_one_line_or_is_in_the_range_of_what_computes(key: tuple[str, ...]) -> None:
    content = paper_values()
    content["evaluate"]["corpora"] = {"named": {"paths": ["x"]}}
    content["sae"]["also"] = {"named": {}}
    content["pretrain"]["forms"] = {"named": {"concept_schedule": {}, "kd": {"schedule": {}}}}
    section = content
    for name in key[:-1]:
        section = section[name]
    for value in (wrapped for each in EXTREMES for wrapped in (each, [each], [each, each])):
        section[key[-1]] = value
        try:
            params = parse(Params, content, "params.yaml")
        except UserError as error:
            message = str(error)
            assert message.startswith(f"params.yaml: {key[0]}") or key[-1] in message, message
            assert message.isprintable()
            assert len(message) < 1000
        else:
            check_computes(params.model_dump())


def check_computes(value: object) -> None:
    match value:
        case bool() | None:
            pass
        case int():
            assert -(2**63) <= value < 2**63
        case float():
            assert abs(value) <= 1e30  # of which fp32 and bf16 can still take a product with some more
        case str():
            value.encode()
            assert "\0" not in value
            assert len(value) <= 4096
        case dict():
            for each in (*value, *value.values()):
                check_computes(each)
        case list() | tuple():
            for each in value:
                check_computes(each)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  seed: 0", "  seed: 18446744073709551616", "base.seed: 18446744073709551616: input should be less than"),
        (
            "  seeds: [0]",
            "  seeds: [9223372036854775808]",
            "pretrain.seeds.0: 9223372036854775808: input should be less",
        ),
        ("  seeds: [0]", "  seeds: [-1]", "pretrain.seeds.0: -1: input should be greater than or equal to 0"),
        ("-25, -10", "1e308, -10", "steer.strengths.0: 1e+308: input should be less than or equal to 1000000"),
        ("-25, -10", ".nan, -10", "steer.strengths.0: nan: input should be a finite number"),
        (
            "[-25, -10, -5, 5, 10, 25]",
            "[5, 10]",
            "steer.strengths: [5, 10]: must have a negative and",
        ),
        ("[-25, -10, -5, 5, 10, 25]", "[-5]", "steer.strengths: [-5]: must have a negative and a"),
        ("title: Language", 'title: "\\ud800', ":"),
        ("[resid_post_2]", "[resid_post_\u0663]", "activations.sites.0: 'resid_post_\u0663': allowed: resid_post, "),
        ("also: {}", "also: {\u0663: {k: 5}}", "sae.also.\u0663: '\u0663': string should match pattern"),
        ("corpora: {}", "corpora: {a\u0663: {paths: [x]}}", "evaluate.corpora.a\u0663: 'a\u0663': allowed: a letter"),
        ("n_layer: 4", "n_layer: 1000000", "base.model.n_layer: 1000000: input should be less than or equal to 1024"),
        ("    paths: []", '    paths: ["a\\0b"]', "corpus.files.paths: ['a\\x00b']: must be text of at most 4096"),
    ],
)
def test_a_value_beyond_what_computes_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert refusal(tmp_path, old, new).startswith(message)
