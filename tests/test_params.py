from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from cocomix.params import ExplainParams, Params, PretrainParams, SaeParams, load
from cocomix.plumbing.checked import parse, read_yaml
from cocomix.plumbing.errors import UserError
from tests.shipped import SHIPPED, paper_form, paper_values

FORMS = {"predicted": {"mixing": "none"}, "taught": {"kd": {"kl_weight": 1.0}}}


def loaded(tmp_path: Path, old: str, new: str) -> str:
    """The message of loading params.yaml with `old` replaced, after the file's name."""
    text = paper_form()
    assert text.count(old) >= 1, old
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        load(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path)).removeprefix(": ")


def test_a_form_that_contradicts_cocomix_is_refused_where_it_is_listed_and_else_left_out() -> None:
    values = paper_values()
    values["pretrain"]["cocomix"]["gate"] = True
    values["pretrain"]["forms"] = {"predicted": {"mixing": "none"}, "added": {"mixing": "add"}}
    assert list(parse(Params, values, "params.yaml").pretrain.forms) == ["added"]
    values["pretrain"]["methods"] = ["ntp", "predicted"]
    with pytest.raises(UserError, match=r"pretrain\.forms\.predicted: gate must be false with mixing: none"):
        parse(Params, values, "params.yaml")


def test_labels_that_know_what_comes_next_are_not_forced() -> None:
    values = paper_values()
    values["pretrain"]["cocomix"]["teacher_forcing"] = 0.5
    with pytest.raises(
        UserError, match=r"pretrain\.cocomix\.teacher_forcing must be 0 with attribution.score: gradient"
    ):
        parse(Params, values, "params.yaml")
    values["attribution"]["score"] = "activation"
    assert parse(Params, values, "params.yaml").pretrain.cocomix.forces_labels
    values["pretrain"]["cocomix"]["label_offsets"] = [1]
    with pytest.raises(UserError, match=r"teacher_forcing needs label_offsets: \[0\]"):
        parse(Params, values, "params.yaml")
    values["pretrain"]["cocomix"]["mixing"] = "none"
    assert not parse(Params, values, "params.yaml").pretrain.cocomix.forces_labels


def test_the_shipped_file_is_valid_and_frozen() -> None:
    params = load(SHIPPED)
    with pytest.raises(ValueError, match="frozen"):
        params.sae.k = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  k: 32", "  k: 3.0", "sae.k: 3.0: input should be a valid integer"),
        ("  k: 32", "  k: '3'", "sae.k: '3': input should be a valid integer"),
        ("  k: 32", "  k: true", "sae.k: True: input should be a valid integer"),
        ("  k: 32", "  k: 0", "sae.k: 0: input should be greater than 0"),
        ("  k: 32", "  k: null", "sae.k: None: input should be a valid integer"),
        ("  k: 32", "  k: [1]", "sae.k: [1]: input should be a valid integer"),
        ("  k: 32", "", "sae.k: missing; it must be given"),
        ("  k: 32", "  kk: 32", "sae.kk: unknown key; did you mean 'k'?"),
        ("  k: 32", "  k: 5000", "sae: k (5000) must not exceed latents (1024)"),
        ("  learning_rate: 1.0e-3", "  learning_rate: .inf", "sae.learning_rate: inf: input should be a finite number"),
        ("  learning_rate: 1.0e-3", "  learning_rate: -1", "sae.learning_rate: -1: input should be greater than 0"),
        (
            "  near_duplicates: null",
            "  near_duplicates: 0.8",
            "corpus: near_duplicates needs source: files or hub; installed-docs drops them by itself",
        ),
        (
            "  near_duplicates: null",
            "  near_duplicates: 80",
            "corpus.near_duplicates: 80: input should be less than or equal to 1",
        ),
        (
            "  decontaminate: null",
            "  decontaminate: drop",
            "corpus.decontaminate (drop): evaluate.tasks and evaluate.corpora are empty: there is nothing to look for",
        ),
        ("  seeds: [0]", "  seeds: 0", "pretrain.seeds: 0: input should be a valid list"),
        ("  seeds: [0]", "  seeds: [0, 0]", "pretrain: seeds lists a value twice: [0, 0]"),
        ("[ntp, cocomix]", "[npt]", "pretrain: methods lists 'npt', which is no method or form; did you mean 'ntp'?"),
        ("[ntp, cocomix]", "[ntp, ntp]", "pretrain: methods lists a value twice: ['ntp', 'ntp']"),
        ("[ntp, cocomix]", "[1]", "pretrain.methods.0: 1: input should be a valid string"),
        ("forms: {}", "forms: [1]", "pretrain.forms: [1]: input should be a valid dictionary"),
        ("forms: {}", "forms: {a: 3}", "pretrain.forms.a: must be a section of 'key: value', not 3"),
        ("forms: {}", "forms: {a: {mixin: add}}", "pretrain.forms.a.mixin: unknown key; did you mean 'mixing'?"),
        (
            "forms: {}",
            "forms: {a: {kd: {weight: 1}}}",
            "pretrain.forms.a.kd.weight: unknown key; did you mean 'kl_weig",
        ),
        ("forms: {}", "forms: {a: {mixing: sum}}", "pretrain.forms.a.mixing: 'sum': input should be 'interleave', 'in"),
        ("forms: {}", "forms: {a: {kd: null}}", "pretrain.forms.a.kd: must be a section of 'key: value', not None"),
        ("forms: {}", "forms: {a: {concept_layer: 4}}", "pretrain: forms.a.concept_layer (4) must be below model.n_la"),
        ("forms: {}", "forms: {a: {concept_k: 2048}}", "pretrain.forms.a.concept_k (2048) must not exceed the conce"),
        (
            "forms: {}",
            "forms: {kd: {}}",
            "pretrain.forms.kd: 'kd': allowed: a small letter, then small letters, digits",
        ),
        ("forms: {}", "forms: {no-mix: {}}", "pretrain.forms.no-mix: 'no-mix': allowed: a small letter, then small"),
        ("mixing: interleave ", "mixing: sum ", "pretrain.cocomix.mixing: 'sum': input should be 'interleave', 'int"),
        ("evaluate:", "evalute:", "evalute: unknown key; did you mean 'evaluate'?"),
        ("report:", "report: 3\nx:", "x: unknown key; allowed: activations, attribution, base, corpus, distribution, "),
        ("  ntp: {}", "  ntp: [1]", "pretrain.ntp: must be a section of 'key: value', not [1]"),
        ("also: {}", "also: {a: {width: 3}}", "sae.also.a.width: unknown key; allowed: "),
        ("also: {}", "also: {a: {k: 5000}}", "sae: also.a: k (5000) must not exceed latents (1024)"),
        ("also: {}", "also: {a: {k: null}}", "sae: also.a.k: Input should be a valid integer"),
        ("also: {}", "also: {a: {architecture: relu}}", "sae: also.a: sparsity_weight (None) is for relu and jumprelu"),
        ("also: {}", "also: {a/b: {k: 5}}", "sae.also.a/b: 'a/b': string should match pattern"),
        ("windows: 64 ", "windows: 1 ", "evaluate.intervention_windows: 1: input should be greater than or equal to 2"),
        ("corpora: {}", "corpora: {a: 3}", "evaluate.corpora.a: must be a section of 'key: value', not 3"),
        ("corpora: {}", "corpora: {a: {}}", "evaluate.corpora.a.paths: missing; it must be given"),
        ("corpora: {}", "corpora: {a: {path: x}}", "evaluate.corpora.a.path: unknown key; did you mean 'paths'?"),
        (
            "corpora: {}",
            "corpora: {test: {paths: [x]}}",
            "evaluate.corpora.test: 'test': allowed: a letter, then lette",
        ),
        ("stride: null", "stride: 128", "evaluate.stride (128) must be below tokenize.context (128): a window's first"),
        (
            "    n_head: 4",
            "    n_head: 5",
            "base.model: d_model (128) must be",
        ),
        ("backbone: gpt2, ", "backbone: gpt3, ", "pretrain.model.backbone: 'gpt3': input should be 'gpt2' or 'llama'"),
        (
            "n_kv_head: null, ",
            "n_kv_head: 2, ",
            "pretrain.model: n_kv_head and qk_norm are of backbone: llama; with gpt2,",
        ),
        (
            "qk_norm: false, ",
            "qk_norm: true, ",
            "pretrain.model: n_kv_head and qk_norm are of backbone: llama; with gpt2,",
        ),
        (
            "gpt2, d_model: 192",
            "llama, d_model: 198",
            "pretrain.model: d_model (198) must be an even multiple of n_head",
        ),
        (
            "{backbone: gpt2, d_model: 192, n_layer: 4, n_head: 6, n_kv_head: null",
            "{backbone: llama, d_model: 192, n_layer: 4, n_head: 6, n_kv_head: 4",
            "pretrain.model: n_head (6) must be a multiple of n_kv_head (4)",
        ),
        (
            "{backbone: gpt2, d_model: 192, n_layer: 4, n_head: 6, n_kv_head: null, qk_norm: false, dropout: 0.0}",
            "{backbone: llama, d_model: 192, n_layer: 4, n_head: 6, dropout: 0.1}",
            "pretrain.model: dropout (0.1) must be 0 with backbone: llama",
        ),
        ("[resid_post_2]", "[resid_post_4]", "activations.sites: the block of resid_post_4 (4) must be below base."),
        ("[resid_post_2]", "[mlp_2]", "activations.sites.0: 'mlp_2': allowed: resid_post, resid_mid, attn_out, "),
        ("[resid_post_2]", "[mlp_out_0]", "activations.sites.0: 'mlp_out_0': allowed: resid_post, resid_mid, "),
        ("[resid_post_2]", "[mlp_out_1, mlp_out_1]", "activations: sites lists a value twice: ['mlp_out_1', 'mlp_out_"),
        ("[resid_post_2]", "[mlp_out_1, attn_out_1]", "sae.site must choose one of activations.sites: mlp_out_1, att"),
        ("site: null", "site: mlp_out_1", "sae.site (mlp_out_1) must be one of activations.sites: resid_post_2"),
        ("also: {}", "also: {a: {site: attn_out_1}}", "sae.also.a.site (attn_out_1) must be one of activations.site"),
        ("keep: true", "keep: false", "activations: keep is false, which needs mixed_shards: as many files as fit"),
        ("drop_tokens: []", "drop_tokens: [1.5]", "activations.drop_tokens.0: 1.5: input should be a valid integer"),
        (
            "architecture: topk",
            "architecture: relu",
            "sae: sparsity_weight (None) is for relu and jumprelu, which need",
        ),
        (
            "sparsity_weight: null",
            "sparsity_weight: 1",
            "sae: sparsity_weight (1.0) is for relu and jumprelu, which ne",
        ),
        ("architecture: topk", "architecture: matryoshka", "sae: prefixes ([]) are for matryoshka, which needs them; "),
        ("prefixes: []", "prefixes: [64]", "sae: prefixes ([64]) are for matryoshka, which needs them; architecture i"),
        ("ema: null", "ema: 1.0", "sae.ema: 1.0: input should be less than 1"),
        (
            "muon_learning_rate: null  #",
            "muon_learning_rate: 2.0e-2  #",
            "base.training: muon_learning_rate (0.02) must be null with optimizer: adamw",
        ),
        (
            "schedule: cosine          #",
            "schedule: linear          #",
            "base.training.schedule: 'linear': input should be 'cosine' or 'warmup_stable_decay'",
        ),
        (
            "optimizer: adamw          #",
            "optimizer: sgd          #",
            "base.training.optimizer: 'sgd': input should be 'adamw' or 'muon'",
        ),
        (
            "betas: [0.9, 0.95]        #",
            "betas: [1.0, 0.95]        #",
            "base.training.betas.0: 1.0: input should be less",
        ),
    ],
)
def test_a_wrong_value_is_one_line_with_the_key_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert loaded(tmp_path, old, new).startswith(message)


@pytest.mark.parametrize("prefixes", ["[256, 64]", "[64, 64]", "[64, 1024]"])
def test_dictionaries_within_must_grow_up_to_the_whole(tmp_path: Path, prefixes: str) -> None:
    path = tmp_path / "params.yaml"
    text = paper_form().replace("architecture: topk", "architecture: matryoshka")
    path.write_text(text.replace("prefixes: []", f"prefixes: {prefixes}"))
    with pytest.raises(UserError, match=r"sae: prefixes \(.*\) must ascend and be below latents \(1024\)"):
        load(path)


@pytest.mark.parametrize(
    ("own", "changes", "expected"),
    [
        ({"architecture": "relu", "sparsity_weight": 0.1}, {"architecture": "topk"}, {"sparsity_weight": None}),
        ({"architecture": "relu", "sparsity_weight": 0.1}, {"k": 8}, {"sparsity_weight": 0.1}),
        ({"architecture": "relu", "sparsity_weight": 0.1}, {"architecture": "relu"}, {"sparsity_weight": 0.1}),
        ({"architecture": "matryoshka", "prefixes": [64]}, {"architecture": "topk"}, {"prefixes": []}),
        ({"architecture": "matryoshka", "prefixes": [64]}, {"prefixes": [8]}, {"prefixes": [8]}),
        ({}, {"architecture": "jumprelu", "sparsity_weight": 1.0}, {"sparsity_weight": 1.0}),
        ({"ema": 0.99}, {"ema": None}, {"ema": None}),
        ({"ema": 0.99}, {}, {"ema": 0.99}),
    ],
    ids=str,
)
def test_another_autoencoder_is_the_first_but_for_what_is_given(
    own: dict[str, Any], changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    shipped = load(SHIPPED).sae
    params = SaeParams.model_validate(shipped.model_dump() | own | {"also": {"other": changes}})
    other = params.others()["other"]
    assert other == SaeParams.model_validate(shipped.model_dump() | own | changes | expected)
    assert SaeParams.model_validate(params.model_dump()).others() == {"other": other}


def formed(methods: list[str], forms: dict[str, Any], **more: Any) -> Params:
    """The shipped parameters with forms."""
    content = paper_values()
    content["pretrain"] |= {"methods": methods, "forms": forms}
    return parse(Params, content | more, "params.yaml")


def test_a_form_is_cocomix_but_for_what_is_given() -> None:
    pretrain = formed(["ntp", "predicted", "taught"], FORMS).pretrain
    cocomix = pretrain.cocomix.model_dump()
    assert pretrain.forms["predicted"].model_dump() == cocomix | {"mixing": "none"}
    assert pretrain.forms["taught"].model_dump() == cocomix | {"kd": cocomix["kd"] | {"kl_weight": 1.0}}
    assert {name: pretrain.kind(name) for name in pretrain.methods} == {
        "ntp": "ntp",
        "predicted": "cocomix",
        "taught": "cocomix",
    }
    assert pretrain.listed == {
        "ntp": pretrain.ntp,
        "predicted": pretrain.forms["predicted"],
        "taught": pretrain.forms["taught"],
    }
    assert PretrainParams.model_validate(pretrain.model_dump()) == pretrain


def test_a_near_miss_of_a_form_is_suggested() -> None:
    with pytest.raises(
        UserError, match="methods lists 'predicte', which is no method or form; did you mean 'predicted'"
    ):
        formed(["predicte"], FORMS)


def test_the_cached_distribution_must_be_there_for_forms_that_are_listed() -> None:
    cached = {"cached": {"kd": {"source": "cached", "kl_weight": 1.0, "temperature": 2.0}}}
    stored = read_yaml(SHIPPED)["distribution"] | {"draws": 50}
    assert formed(["ntp"], cached).pretrain.forms
    with pytest.raises(
        UserError, match=r"pretrain\.forms\.cached\.kd\.source is cached, which needs distribution\.draws"
    ):
        formed(["cached"], cached)
    with pytest.raises(UserError, match=r"pretrain\.forms\.cached\.kd\.temperature \(2\) must be distribution\.temper"):
        formed(["cached"], cached, distribution=stored)
    assert formed(["cached"], cached, distribution=stored | {"temperature": 2.0}).pretrain.listed


def test_a_gradient_that_is_stopped_where_nothing_flows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = paper_form().replace("mixing: interleave ", "mixing: none ")
    path.write_text(text.replace("learned_scale: false", "learned_scale: true"))
    with pytest.raises(
        UserError, match=r"pretrain.cocomix: learned_scale must be false with mixing: none, which mixes nothing"
    ):
        load(path)
    path.write_text(text.replace("concept_weight: 0.3", "concept_weight: 0.0"))
    with pytest.raises(
        UserError, match=r"pretrain.cocomix: concept_weight: 0 with mixing: none or stop_gradient: true"
    ):
        load(path)
    path.write_text(text.replace("stop_gradient: false", "stop_gradient: true"))
    with pytest.raises(UserError, match=r"pretrain.cocomix: stop_gradient must be false with mixing: none"):
        load(path)


def test_what_is_multiplied_by_no_gradient_is_no_choice(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = paper_form().replace("  score: gradient ", "  score: activation ")
    path.write_text(text.replace("scope: sequence", "scope: next_token"))
    with pytest.raises(UserError, match=r"attribution: scope: next_token needs a score that is a change of the loss"):
        load(path)
    path.write_text(text.replace("sign: released", "sign: helpful"))
    with pytest.raises(UserError, match=r"attribution: sign: helpful needs a score that is a change of the loss"):
        load(path)
    path.write_text(text.replace("value: activation", "value: pre_activation"))
    with pytest.raises(UserError, match=r"attribution: value: pre_activation needs score: gradient, not activation"):
        load(path)


def test_of_pre_activations_there_are_as_many_labels_as_latents(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = paper_form().replace("k_attr: 4", "k_attr: 40")
    path.write_text(text)
    with pytest.raises(UserError, match=r"attribution.k_attr \(40\) must not exceed sae.k \(32\)"):
        load(path)
    path.write_text(text.replace("value: activation", "value: pre_activation"))
    assert load(path).attribution.k_attr == 40


def test_as_many_concepts_can_be_mixed_as_there_are_two_of_a_latent_with_signs(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = paper_form().replace("concept_k: 32", "concept_k: 2048")
    path.write_text(text)
    with pytest.raises(UserError, match=r"concept_k \(2048\) must not exceed the concepts of sae \(1024\)"):
        load(path)
    path.write_text(text.replace("architecture: topk", "architecture: abstopk"))
    assert load(path).pretrain.cocomix.concept_k == load(path).sae.concepts == 2048


def test_an_autoencoder_may_have_fewer_latents_than_could_revive(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(paper_form().replace("also: {}", "also: {small: {latents: 32}}"))
    assert load(path).sae.others()["small"].aux_k > 32


def test_a_whole_number_and_a_bare_exponent_are_fine_as_float(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    for text, value in {"1": 1.0, "2e-3": 2e-3, "2.e-3": 2e-3, "+2E-3": 2e-3}.items():
        path.write_text(paper_form().replace("learning_rate: 1.0e-3", f"learning_rate: {text}", 1))
        assert load(path).sae.learning_rate == value


def test_a_key_given_twice_is_an_error_with_its_line(tmp_path: Path) -> None:
    lines = paper_form().splitlines()
    line = next(number for number, each in enumerate(lines, 1) if each.startswith("  k: 32 ")) + 1
    assert loaded(tmp_path, "  k: 32 ", "  k: 32\n  k: 33 ") == f":{line}: not valid YAML: the key 'k' is given twice"


def test_a_tab_is_an_error_with_its_line(tmp_path: Path) -> None:
    assert ": not valid YAML: found character '\\t'" in loaded(tmp_path, "  k: 32", "\tk: 32")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; it must hold sections of 'key: value'"),
        (b"- 1\n", "holds a list; it must hold sections of 'key: value'"),
        (b"\xff\xfe", "not UTF-8 text (byte 0)"),
        (b"a: [\n", "not valid YAML"),
        (b"1: {}\n", "corpus: missing; it must be given"),
    ],
)
def test_a_file_without_sections_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"params\.yaml: no such file; run from the project's folder"):
        load(tmp_path / "params.yaml")


def leaves(model: type[BaseModel], before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The keys of all values, of named sections one."""
    found = []
    for name, field in model.model_fields.items():
        inner = get_args(field.annotation)[1] if get_origin(field.annotation) is dict else field.annotation
        named = ("named",) if inner is not field.annotation else ()
        section = isinstance(inner, type) and issubclass(inner, BaseModel)
        found += leaves(inner, (*before, name, *named)) if section else [(*before, name)]
    return found


def test_every_parameter_is_written_in_the_shipped_file() -> None:
    """DVC knows no default of the code: it would change a result, and rerun nothing."""
    for key in leaves(Params):
        section = read_yaml(SHIPPED)
        for name in key[: key.index("named")] if "named" in key else key:
            assert name in section, f"{'.'.join(key)} is not in params.yaml"
            section = section[name]


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
        ("-10, -5", "1e308, -5", "steer.strengths.0: 1e+308: input should be less than or equal to 1000000"),
        ("-10, -5", ".nan, -5", "steer.strengths.0: nan: input should be a finite number"),
        ("title: Language", 'title: "\\ud800', ":"),
        ("[resid_post_2]", "[resid_post_\u0663]", "activations.sites.0: 'resid_post_\u0663': allowed: resid_post, "),
        ("also: {}", "also: {\u0663: {k: 5}}", "sae.also.\u0663: '\u0663': string should match pattern"),
        ("corpora: {}", "corpora: {a\u0663: {paths: [x]}}", "evaluate.corpora.a\u0663: 'a\u0663': allowed: a letter"),
        ("n_layer: 4", "n_layer: 1000000", "base.model.n_layer: 1000000: input should be less than or equal to 1024"),
        ("    paths: []", '    paths: ["a\\0b"]', "corpus.files.paths: ['a\\x00b']: must be text of at most 4096"),
    ],
)
def test_a_value_beyond_what_computes_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert loaded(tmp_path, old, new).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labeller": "model"}, "labeller is model, which needs model.name: a hub id or a folder"),
        ({"labeller": "words"}, "labeller: 'words': input should be 'tokens' or 'model'"),
        ({"held_out": 9}, r"model.judged \(10\) must not exceed held_out \(9\)"),
        ({"contexts": 9}, r"model.contexts \(10\) must not exceed contexts \(9\)"),
        ({"before": 1}, "before: 1: input should be greater than or equal to 2"),
    ],
)
def test_an_atlas_that_cannot_be_is_an_error_that_names_the_key(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(ExplainParams, read_yaml(SHIPPED)["explain"] | changes, "params.yaml")


OWN = {"source": "pretrained", "pretrained": "gpt2", "revision": "a", "tokenizer": "own"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distribution": {"draws": 50}}, "distribution.draws (50) needs base.tokenizer: shared, not own"),
        (
            {"pretrain": {"methods": ["ntp", "kd"]}},
            "pretrain.kd.kl_weight (1) needs base.tokenizer: shared, not own",
        ),
        (
            {"pretrain": {"methods": ["taught"]}},
            "pretrain.forms.taught.kd.kl_weight (1) needs base.tokenizer: shared, not own",
        ),
        (
            {"pretrain": {"methods": ["hidden"]}},
            "pretrain.forms.hidden.predicts (hidden) needs base.tokenizer: shared, not own",
        ),
        ({"base": {"source": "train"}}, "base: tokenizer: own needs source: pretrained"),
        ({"base": {"context": 8}}, "steer.prompt_tokens (8) and steer.new_tokens (24) together must not exceed base.c"),
        ({"base": {"tokenizer": "shared", "context": 64}}, "base: context (64) needs tokenizer: own"),
    ],
    ids=str,
)
def test_what_needs_the_students_tokenizer_is_refused_with_another(changes: dict[str, Any], message: str) -> None:
    values = paper_values()
    values["base"] |= OWN
    values["pretrain"]["forms"] = {"taught": {"kd": {"kl_weight": 1.0}}, "hidden": {"predicts": "hidden"}}
    assert parse(Params, values, "params.yaml").base.tokenizer == "own", "forms that are not listed need nothing"
    for section, each in changes.items():
        values[section] |= each
    with pytest.raises(UserError) as error:
        parse(Params, values, "params.yaml")
    assert str(error.value).removeprefix("params.yaml: ").startswith(message)
    assert "\n" not in str(error.value)


def test_bf16_is_for_pretrained_base_models_whose_losses_are_not_subtracted() -> None:
    values = paper_values()
    values["base"]["dtype"] = "bf16"
    with pytest.raises(UserError, match="base: dtype: bf16 needs source: pretrained; one that is trained here has fp3"):
        parse(Params, values, "params.yaml")
    values["base"] |= {"source": "pretrained", "pretrained": "gpt2"}
    assert parse(Params, values, "params.yaml").base.dtype == "bf16"
    values["attribution"]["score"] = "ablation"
    with pytest.raises(UserError, match=r"attribution\.score: ablation needs base\.dtype: fp32, not bf16"):
        parse(Params, values, "params.yaml")
