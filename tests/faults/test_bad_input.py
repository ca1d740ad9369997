"""What people may ask for by mistake: each is one line that says what is wrong, and where."""

import copy
import importlib
import re
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from cocomix.params import Params, load
from cocomix.plumbing.checked import merge, parse, read_yaml
from cocomix.plumbing.errors import UserError
from stages.matrix import matrix_item
from tests.faults.made import MARK, make_all
from tests.stages.project import Project


@pytest.fixture(scope="module")
def project(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    copy = finished.copy(tmp_path_factory.mktemp("bad") / "project")
    make_all(copy.path)
    return copy


@pytest.fixture(scope="module")
def values(project: Project) -> dict[str, Any]:
    """Its parameters."""
    return read_yaml(project.path / "params.yaml")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_WORKERS", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it asks again and again for a minute


def base(name: str) -> tuple[str, dict[str, Any]]:
    return "base", {"base": {"source": "pretrained", "pretrained": f"models/{name}"}}


def tokenizer(name: str) -> tuple[str, dict[str, Any]]:
    return "tokenize", {"tokenize": {"source": "pretrained", "pretrained": f"tokenizers/{name}"}}


def labeller(name: str) -> tuple[str, dict[str, Any]]:
    return "explain", {"explain": {"labeller": "model", "model": {"name": f"models/{name}"}}}


def sae(name: str, format: str = "sae-lens") -> tuple[str, dict[str, Any]]:
    return "sae", {"sae": {"source": "published", "published": {"path": f"autoencoders/{name}", "format": format}}}


def corpus(*paths: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "corpus", {"corpus": {"source": "files", "files": {"paths": list(paths)}, **more}}


def evaluate(**changes: Any) -> tuple[str, dict[str, Any]]:
    return "evaluate ntp 0", {"evaluate": changes}


CASES = [
    (base("nowhere"), "base.pretrained: 'models/nowhere': no model can be loaded from this hub id or folder: "),
    (base("no-config"), "'models/no-config': config.json: no such file"),
    (base("torn-config"), "models/torn-config/config.json: not JSON: "),
    (base("no-type"), "Should have a `model_type` key in its config.json"),
    (base("unknown-type"), "model type `foo`"),
    (base("t5"), "base.pretrained: 'models/t5': a t5 is no causal language model"),
    (base("no-weights"), "no model.safetensors or model.safetensors.index.json there"),
    (base("cut-weights"), "SafetensorError: "),
    (base("other-weights"), "SafetensorError: "),
    (base("empty-weights"), "SafetensorError: "),
    (base("deeper"), "'models/deeper' has no weights for transformer.h.3."),
    (base("wider"), "'models/wider' has weights of other shapes than its config.json says: transformer."),
    (base("one-lost"), "has no weights for transformer.h.1.mlp.c_fc.weight, one of 1: it is damaged, or not whole"),
    (base("not-finite"), "has weights that are not finite: transformer.h.1.mlp.c_fc.weight, one of 1"),
    (base("encoder"), "a BertLMHeadModel sees the tokens that it is to predict"),
    (base("pickled"), "index.json there: other weights are not read"),
    (base("with-code"), "contains custom code"),
    (base("a/b/c d"), "no model can be loaded"),
    (tokenizer("nowhere"), "tokenize.pretrained: 'tokenizers/nowhere': no tokenizer can be loaded from this hub id or"),
    (tokenizer("torn"), "no tokenizer can be loaded from this folder: Expecting property name"),
    (tokenizer("empty"), "no tokenizer can be loaded from this folder: KeyError: "),
    (tokenizer("binary"), "'utf-8' codec"),
    (tokenizer("cut"), "no tokenizer can be loaded from this folder: "),
    (tokenizer("torn-config"), "no tokenizer can be loaded from this folder: "),
    (tokenizer("list-config"), "no tokenizer can be loaded from this folder: AttributeError: "),
    (tokenizer("config-alone"), "no tokenizer can be loaded from this folder: Couldn't instantiate"),
    (tokenizer("../models/with-code"), "contains custom code"),
    (labeller("nowhere"), "explain.model.name: 'models/nowhere': no tokenizer can be loaded"),
    (labeller("cut-weights"), "explain.model.name: 'models/cut-weights': no model can be loaded"),
    (labeller("deeper"), "explain.model.name: 'models/deeper' has no weights for"),
    (labeller("pickled"), "other weights are not read"),
    (labeller("with-code"), "contains custom code"),
    (labeller("no-tokenizer"), "its tokenizer knows no text"),
    (labeller("../artifacts/base"), "explain.model: the model reads 32 tokens, the questions take"),
    (sae("nowhere"), "sae.published.path: autoencoders/nowhere: no such file or folder"),
    (sae("no-config"), "autoencoders/no-config/cfg.json: no such file"),
    (sae("torn-config"), "autoencoders/torn-config/cfg.json: not JSON"),
    (sae("list-config"), "autoencoders/list-config/cfg.json: holds a list where fields with names are expected"),
    (sae("text-width"), "cfg.json: d_in: 'x': must be a whole number above 0"),
    (sae("negative-width"), "cfg.json: d_in: -1: must be a whole number above 0"),
    (sae("few-latents"), "W_enc: must be a tensor of shape [32, 9], not [32, 64]"),
    (sae("text-k"), "cfg.json: k: 'x': must be a whole number above 0"),
    (sae("no-k"), "cfg.json: k: 0: must be a whole number above 0"),
    (sae("unknown-kind"), "architecture: 'foo' cannot be represented; allowed: 'standard', 'topk'"),
    (sae("other-layer"), "is of resid_post_10; the activations are of resid_post_2 (activations.sites)"),
    (sae("number-hook"), "hook_name: 3: cannot be represented"),
    (sae("list-metadata"), "cfg.json: holds a list where fields with names are expected"),
    (sae("cut-weights"), "sae_weights.safetensors: not safetensors: "),
    (sae("pickled-weights"), "sae_weights.safetensors: not safetensors: "),
    (sae("not-finite"), "W_enc: holds numbers that are not finite"),
    (sae("evil.pt", "openai"), "evil.pt: not a file of tensors, or it holds more, which is not read: it could run"),
    (sae("evil-zip.pt", "openai"), "evil-zip.pt: not a file of tensors, or it holds more, which is not read"),
    (sae("empty.pt", "openai"), "empty.pt: not a file of tensors"),
    (sae("list.pt", "openai"), "list.pt: holds a list where fields with names are expected"),
    (sae("no-activation.pt", "openai"), "no-activation.pt: holds a int where fields with names are expected"),
    (sae("number.pt", "openai"), "number.pt: latent_bias: must be a tensor of one dimension"),
    (sae("list-config", "openai"), "autoencoders/list-config: no file, but something else"),
    (sae("evil.pt", "sae-lens"), "evil.pt/cfg.json: no such file"),
    (corpus("bad/empty.txt"), "corpus: nothing is left of files; dropped: {'empty documents': 1}"),
    (corpus("bad/mark.txt"), "corpus: nothing is left of files"),
    (corpus("bad/same.jsonl"), "(1 in all): give more text"),
    (corpus("bad/number.jsonl"), "bad/number.jsonl:1: not readable as JSON: Exceeds the limit"),
    (corpus("bad/deep.jsonl"), "bad/deep.jsonl:1: not readable as JSON: maximum recursion depth"),
    (corpus("bad/nan.jsonl"), "bad/nan.jsonl:1: the field 'text' holds float, not text"),
    (corpus("bad/words.txt.gz"), "bad/words.txt.gz: damaged or unreadable"),
    (corpus("bad/words.txt.zst"), "bad/words.txt.zst: damaged or unreadable"),
    (corpus("bad/empty.parquet"), "bad/empty.parquet: damaged or unreadable"),
    (corpus("bad/folder.txt"), "corpus.files.paths: 'bad/folder.txt' matches no file"),
    (corpus("["), "corpus.files.paths: '[' matches no file"),
    (corpus(""), "corpus.files.paths: '' matches no file"),
    (corpus("a\0b"), "without null and half characters"),
    (corpus("bad/short.txt"), "corpus: no document for the"),
    (corpus("bad/short.txt", validation_share=0.5, test_share=0.5), "validation_share + test_share must be below 1"),
    (("corpus", {"corpus": {"source": "hub"}}), "source is hub, which needs hub.dataset and hub.revision"),
    (("tokenize", {"tokenize": {"context": 10_000_000}}), "too few for one window of tokenize.context (10000000)"),
    (("activations", {"activations": {"drop_tokens": [512]}}), "activations.drop_tokens: 512: no token of the vocabul"),
    (("activations", {"activations": {"drop_tokens": [-1]}}), "activations.drop_tokens: -1: no token of the vocabul"),
    (
        (
            "methods",
            {
                "pretrain": {
                    "match": "flops",
                    "methods": ["kd"],
                    "kd": {"source": "online"},
                    "model": {"d_model": 8, "n_head": 1},
                }
            },
        ),
        "pretrain.match: flops: kd cannot match CoCoMix's training FLOPs",
    ),
    (evaluate(tasks=["foo"]), "evaluate.tasks: 'foo': "),
    (evaluate(tasks=["arc_easy"], tasks_dir="nowhere"), "no such file, which holds the examples of arc_easy"),
    (evaluate(stride=0), "evaluate.stride: 0: input should be greater than 0"),
    (
        evaluate(corpora={"more": {"paths": ["nowhere/*.txt"]}}),
        "evaluate.corpora.more.paths: 'nowhere/*.txt' matc",
    ),
    (evaluate(corpora={"more": {"paths": ["autoencoders/evil.pt"]}}), "evil.pt: not a known kind of file"),
]


@pytest.mark.parametrize(("asked", "message"), CASES, ids=lambda value: value if isinstance(value, str) else value[0])
def test_a_stage_refuses_in_one_line(
    project: Project, values: dict[str, Any], asked: tuple[str, dict[str, Any]], message: str
) -> None:
    (stage, *item), changes = asked[0].split(), asked[1]
    module = importlib.import_module(f"stages.{stage}")
    content = copy.deepcopy(values)
    merge(content, changes)
    with chdir(project.path), pytest.raises(UserError) as error:
        module.run(parse(Params, content, "params.yaml"), *item[:1], *map(int, item[1:]))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (project.path / MARK).exists(), "code of the input was run"


SHIPPED = (Path(__file__).parents[2] / "params.yaml").read_bytes()
LINE_OF_K = SHIPPED[: SHIPPED.index(b"  k: 32")].count(b"\n") + 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\0", "not valid YAML: unacceptable character"),
        (b"!!python/object/apply:os.system ['touch executed']", ":1: the tag tag:yaml.org,2002:python/object/"),
        (b"? [a, b]\n: 1\n" + SHIPPED, ":1: not valid YAML: a key must be a word"),
        (b"? {a: b}\n: 1\n" + SHIPPED, ":1: not valid YAML: a key must be a word"),
        (SHIPPED + b"\n---\n" + SHIPPED, "not valid YAML: but found another document"),
        (b"[" * 20_000, "not valid YAML: "),
        (b"<<: 3\n" + SHIPPED, ":1: <<: readers of YAML take it differently; write '<<' in quotes"),
        (b"a: *x\n", ":1: *x repeats a value of another place; write it out"),
        (
            SHIPPED.replace(b"  k: 32", b"  k: 2020-01-01"),
            f":{LINE_OF_K}: 2020-01-01: readers of YAML take it differently",
        ),
        (
            SHIPPED.replace(b"  k: 32", b"  k: 2020-99-99"),
            f":{LINE_OF_K}: 2020-99-99: readers of YAML take it differently",
        ),
        (
            SHIPPED.replace(b"  k: 32", b"  k: 010"),
            f":{LINE_OF_K}: 010: readers of YAML take it differently; write a number",
        ),
        (SHIPPED.replace(b"model: {", b"model: &m {", 1), "&m names a value to repeat it; write it out"),
        (SHIPPED.replace(b"  k: 32", b"  k: " + b"9" * 30), "sae.k: 9999"),
        (SHIPPED.replace(b"  k: 32", b"  k: " + b"9" * 5000), "not valid YAML: Exceeds the limit"),
        (
            SHIPPED.replace(b"  k: 32", b"  k: !!binary x"),
            f":{LINE_OF_K}: the tag tag:yaml.org,2002:binary: a value has no tag",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_of_parameters_is_refused_in_one_line(folder: Path, content: bytes, message: str) -> None:
    Path("params.yaml").write_bytes(content)
    with pytest.raises(UserError) as error:
        load()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path(MARK).exists()


def test_a_folder_in_the_place_of_parameters_is_refused_in_one_line(folder: Path) -> None:
    Path("params.yaml").mkdir()
    with pytest.raises(UserError, match=r"^params\.yaml: cannot be read: Is a directory$"):
        load()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: METHOD SEED, with a method of ntp, cocomix, cocomix_kd; got ''"),
        (["npt", "0"], "npt: not in pretrain.methods of params.yaml; did you mean 'ntp'?"),
        (["ntp", "-1"], "usage: METHOD SEED"),
        (["ntp", "\u00b2"], "usage: METHOD SEED"),
        (["ntp", "\u0660"], "usage: METHOD SEED"),
        (["ntp", "0_0"], "usage: METHOD SEED"),
        (["ntp", "0" * 5000], "usage: METHOD SEED"),
        (["ntp", "0", "0"], "usage: METHOD SEED"),
        (["ntp", "7"], "ntp 7: not in pretrain.seeds of params.yaml"),
        (["kd", "0"], "kd: not in pretrain.methods of params.yaml; allowed: cocomix, cocomix_kd, ntp"),
    ],
)
def test_a_command_line_is_refused_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        matrix_item(arguments, load(Path(__file__).parents[2] / "params.yaml"))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("COCOMIX_PROCESES", "2", "COCOMIX_PROCESES: unknown key; did you mean 'processes'?"),
        ("COCOMIX_PROCESSES", "x", "COCOMIX_PROCESSES: 'x': input should be a valid integer"),
    ],
)
def test_a_wrong_variable_ends_a_stage_with_one_line(project: Project, name: str, value: str, message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stages.corpus"],
        cwd=project.path,
        env=project.environment | {name: value},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"error: {re.escape(message)}[^\n]*\n", done.stderr)
