"""Every parameter that can name something outside the project."""

import json
from pathlib import Path
from typing import Any

import pytest

from cocomix.check import external
from cocomix.corpus import installed
from cocomix.params import Params
from cocomix.plumbing.checked import merge, parse, read_yaml
from cocomix.plumbing.errors import UserError

ROOT = Path(__file__).parents[2]

NAMES: dict[str, tuple[dict[str, Any], str]] = {
    "corpus.files.paths": ({"corpus": {"source": "files", "files": {"paths": ["in/**/*.jsonl"]}}}, "in/deep/a.jsonl"),
    "tokenize.pretrained": ({"tokenize": {"source": "pretrained", "pretrained": "in"}}, "in/tokenizer.json"),
    "base.pretrained": ({"base": {"source": "pretrained", "pretrained": "in"}}, "in/model.safetensors"),
    "sae.published.path": (
        {"sae": {"source": "published", "published": {"path": "in.pt"}}},
        "in.pt",
    ),
    "explain.model.name": ({"explain": {"labeller": "model", "model": {"name": "in"}}}, "in/deep/chat.jinja"),
    "pretrain.init.path": (
        {"pretrain": {"match": "width", "init": {"source": "pretrained", "path": "in"}}},
        "in/model.safetensors",
    ),
    "evaluate.corpora": ({"evaluate": {"corpora": {"more": {"paths": ["in/*.txt"]}}}}, "in/a.txt"),
    "evaluate.tasks": (
        {"evaluate": {"tasks": ["wikitext"], "tasks_dir": "in"}},
        "in/wikitext2_raw/test.jsonl",
    ),
}
"""Parameters that name a file, and the file."""


def params(changes: dict[str, Any]) -> Params:
    content = read_yaml(ROOT / "params.yaml")
    merge(content, changes)
    return parse(Params, content, "params.yaml")


def written(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


@pytest.mark.parametrize("key", NAMES)
def test_the_digest_of_a_key_follows_the_content_of_what_it_names(folder: Path, key: str) -> None:
    changes, path = NAMES[key]
    written(path, "one")
    named = params(changes)
    first = external.digest_of(key, named)
    assert first
    assert external.outside(key, named) == {key: first}
    assert [each for each, digest in external.digests(named).items() if digest and each != "corpus.source"] == [key]
    written(path, "two")
    assert external.digest_of(key, named) != first
    written(path, "one")
    assert external.digest_of(key, named) == first


def test_these_are_all_keys(folder: Path) -> None:
    assert {*NAMES, "corpus.source", "corpus.decontaminate"} == set(external.KEYS)


def test_what_is_looked_for_in_the_corpus_is_known_by_all_that_chooses_it(folder: Path) -> None:
    written("in/wikitext2_raw/test.jsonl", "one")
    written("in/a.txt", "one")
    corpora = {"more": {"paths": ["in/*.txt"]}}

    def digest(option: str | None, **evaluate: Any) -> str | None:
        return external.digest_of(
            "corpus.decontaminate", params({"corpus": {"decontaminate": option}, "evaluate": evaluate})
        )

    assert digest(None, tasks=["wikitext"], tasks_dir="in", corpora=corpora) is None
    found = [
        digest("drop", tasks=["wikitext"], tasks_dir="in"),
        digest("drop", tasks=["wikitext"]),
        digest("drop", corpora=corpora),
        digest("drop", corpora={"other": corpora["more"]}),
        digest("drop", corpora={"more": corpora["more"] | {"megabytes": 1.0}}),
        digest("drop", tasks=["wikitext"], tasks_dir="in", corpora=corpora),
    ]
    assert len({*found, None}) == len(found) + 1
    assert digest("count", corpora=corpora) == found[2]
    for path, number in (("in/wikitext2_raw/test.jsonl", 0), ("in/a.txt", 2)):
        written(path, "two")
        kwargs: dict[str, Any] = {"corpora": corpora} if number else {"tasks": ["wikitext"], "tasks_dir": "in"}
        assert digest("drop", **kwargs) != found[number]


def test_installed_documentation_is_known_by_its_versions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = external.digest_of("corpus.source", params({}))
    monkeypatch.setattr(installed, "needed", dict)
    assert external.digest_of("corpus.source", params({})) != before


@pytest.mark.parametrize(
    "changes",
    [
        {"base": {"source": "pretrained", "pretrained": "gpt2", "revision": "main"}},
        {"base": {"source": "train", "pretrained": "in"}},
        {"corpus": {"source": "hub", "hub": {"dataset": "a/b", "revision": "1"}, "files": {"paths": ["in/*.txt"]}}},
        {"explain": {"model": {"name": "in"}}},
        {"pretrain": {"init": {"source": "scratch", "path": "in"}}},
        {"evaluate": {"tasks_dir": "in"}},
    ],
)
def test_ids_of_the_hub_and_what_is_not_read_have_none(folder: Path, changes: dict[str, Any]) -> None:
    written("in/a.txt", "one")
    assert {each for key, each in external.digests(params(changes)).items() if key != "corpus.source"} == {None}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("corpus.files.paths", "corpus.files.paths: 'in/**/*.jsonl' matches no file"),
        ("evaluate.corpora", "evaluate.corpora.more.paths: 'in/*.txt' matches no file"),
    ],
)
def test_what_is_named_and_not_there_is_refused(folder: Path, key: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        external.digests(params(NAMES[key][0]))
    assert str(error.value).startswith(message)


def test_an_autoencoder_that_is_not_there_yet_has_none_so_that_its_download_can_be_planned(folder: Path) -> None:
    assert external.digests(params(NAMES["sae.published.path"][0]))["sae.published.path"] is None


def test_the_file_has_the_sections_of_the_parameters(folder: Path) -> None:
    content = json.loads(external.to_json(dict.fromkeys(external.KEYS)))
    assert content["sae"] == {"published": {"path": None}}
    assert list(content) == ["corpus", "tokenize", "base", "sae", "explain", "pretrain", "evaluate"]


def test_every_stage_that_reads_outside_depends_on_its_key() -> None:
    stages: dict[str, dict[str, Any]] = read_yaml(ROOT / "dvc.yaml")["stages"]
    named = {
        (key, name)
        for name, stage in stages.items()
        for each in stage["params"]
        if isinstance(each, dict)
        for key in each.get(str(external.FILE), [])
    }
    of_the_section = {(key, key.partition(".")[0]) for key in external.KEYS}
    # The report compares what results of sweeps were made of: validation losses of trained models.
    of_sweeps = {(key, "report") for key in external.KEYS if not key.startswith(("explain.", "evaluate."))}
    others = {("pretrain.init.path", "methods"), ("base.pretrained", "base_tokens")}
    assert named == of_the_section | of_sweeps | others


def test_what_was_noted_is_read_by_parameter(folder: Path) -> None:
    assert external.noted() is None
    found = {key: None if number % 2 else str(number) for number, key in enumerate(external.KEYS)}
    written(str(external.FILE), external.to_json(found).decode())
    assert external.noted() == found
    written(str(external.FILE), "[]")
    assert external.noted() is None
