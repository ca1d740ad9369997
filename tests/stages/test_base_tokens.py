"""A base model that keeps its own tokenizer: the stages from the corpus to the steering, one after the other."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from pydoc_data.topics import topics
from threading import Event
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ruamel.yaml import YAML
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import stages.activations
import stages.attribution
import stages.base
import stages.base_tokens
import stages.corpus
import stages.distribution
import stages.evaluate
import stages.explain
import stages.methods
import stages.pretrain
import stages.report
import stages.sae
import stages.steer
import stages.tokenize
from cocomix.__main__ import main as command
from cocomix.attribution.labelling import label_windows
from cocomix.attribution.labels import ConceptLabels
from cocomix.base.loading import load_base
from cocomix.explain.atlas import Atlas
from cocomix.explore.calls import Continuation
from cocomix.explore.session import Session
from cocomix.params import Params
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.checked import merge, parse, read_yaml
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import runtime
from cocomix.sae.autoencoder import load_sae
from cocomix.tokens.alignment import aligned
from cocomix.tokens.base_tokens import BaseTokens
from cocomix.tokens.encoding import ids_of, plain, spans_of
from tests.conftest import write_files
from tests.stages.test_dvc_yaml import ROOT

DOCS = (ROOT / "docs/concepts.md").read_text().partition("## A teacher with another tokenizer")[2]
OWN: dict[str, Any] = YAML(typ="safe").load(DOCS.split("```yaml")[1].split("```")[0])
SMALL: dict[str, Any] = {
    "corpus": {"source": "files", "files": {"paths": ["texts/*.txt"]}, "validation_share": 0.2, "test_share": 0.2},
    "tokenize": {"vocab_size": 300, "context": 16},
    "activations": {"tokens": 4096, "validation_tokens": 1024, "shard_tokens": 1024, "row_group_tokens": 256},
    "sae": {"latents": 48, "k": 6, "batch_size": 128, "aux_k": 8, "dead_tokens": 2000},
    "attribution": {"k_attr": 3, "shard_tokens": 1000},
    "explain": {"tokens": 2048, "held_out_tokens": 1024, "sample": 32, "held_out": 10, "shard_tokens": 1024},
    "pretrain": {
        "methods": ["cocomix"],
        "model": {"d_model": 32, "n_layer": 3, "n_head": 2},
        "training": {"steps": 2, "batch_size": 8, "eval_windows": 8},
        "pause": {"layer": 1},
        "cocomix": {"concept_layer": 1, "concept_k": 6},
        "forms": {"predicted": {"mixing": "none"}},
    },
    "steer": {
        "concepts": 2,
        "strengths": [-5, 5],
        "windows": 2,
        "prompt_tokens": 4,
        "new_tokens": 3,
        "read_windows": 2,
    },
}


def parameters(**changes: Any) -> Params:
    content = read_yaml(ROOT / "params.yaml")
    for each in (changes, SMALL):
        merge(content, each)
    return parse(Params, content, "params.yaml")


def unigram(texts: list[str]) -> PreTrainedTokenizerFast:
    """With a normaliser, a piece for white space before a word, and special tokens around each text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "</s>", "<s>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    around = {"single": "<s> $A </s>", "special_tokens": [("<s>", 2), ("</s>", 1)]}
    tokenizer.post_processor = processors.TemplateProcessing(**around)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def run(*names: str, params: Params) -> None:
    for name in names:
        getattr(stages, name).run(params)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project up to the labels, with a random base model that has a tokenizer of its own."""
    with chdir(tmp_path_factory.mktemp("own")), pytest.MonkeyPatch.context() as patch:
        for name, value in {"DEVICE": "cpu", "PRECISION": "fp32", "WORKERS": "1", "MICRO_BATCH": "4"}.items():
            patch.setenv(f"COCOMIX_{name}", value)
        runtime.cache_clear()
        shutil.copytree(ROOT / "presets", "presets")
        texts = [text[:1200] for text in list(topics.values())[:24]]
        texts[0] += " cafe\u0301 \U0001f600\U0001f468\u200d\U0001f469 \u654f\u6377 </s> <|endoftext|> \u2167 end"
        write_files(Path(), {f"texts/{number}.txt": text for number, text in enumerate(texts)})
        tokenizer = unigram(texts)
        tokenizer.save_pretrained("teacher")
        torch.manual_seed(0)
        shape = {
            "bos_token_id": 1,
            "eos_token_id": 1,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 2,
            "n_positions": 24,
            "initializer_range": 0.2,
        }
        GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)).save_pretrained("teacher")
        params = parameters(**OWN)
        run("corpus", "tokenize", "base_tokens", "base", "activations", "sae", "attribution", params=params)
        yield Path("artifacts").absolute()
    runtime.cache_clear()


@pytest.fixture
def project(made: Path, monkeypatch: pytest.MonkeyPatch) -> BaseTokens:
    """The working directory is that of `made`."""
    monkeypatch.chdir(made.parent)
    for name, value in {"DEVICE": "cpu", "PRECISION": "fp32", "WORKERS": "1", "MICRO_BATCH": "4"}.items():
        monkeypatch.setenv(f"COCOMIX_{name}", value)
    runtime.cache_clear()
    return BaseTokens(made)


def test_the_base_model_reads_the_same_documents_in_its_own_tokens(project: BaseTokens) -> None:
    assert not project.shared
    assert (project.context, project.students.context) == (24, 16)
    tokenizer = plain(project.tokenizer().backend_tokenizer)
    for split in ("train", "validation", "test"):
        texts = pq.read_table(f"artifacts/corpus/{split}.parquet")["text"].to_pylist()
        expected = [each for ids in ids_of(tokenizer, texts, "") for each in [*ids, project.eos_id]]
        windows = project.windows(split)
        assert windows.flatten().tolist() == expected[: windows.size]
        assert len(expected) - windows.size < project.context
        assert 2 not in expected, "the special token that begins a text"
        assert len(project.ends(split)) == len(project.students.ends(split)) == len(texts)


def test_a_teacher_that_is_too_short_is_refused_with_the_parameter_that_says_the_windows(project: BaseTokens) -> None:
    project.context = 40
    for context, parameter in ((40, "base.context"), (None, "tokenize.context")):
        params = parameters(**OWN | {"base": OWN["base"] | {"context": context}})
        with pytest.raises(UserError) as error:
            stages.base._load(params, project)
        expected = f"a GPT2LMHeadModel with a context of 24; the tokens need 40 ({parameter})"
        assert str(error.value) == f"base.pretrained: 'teacher': {expected}"


def test_places_are_those_of_each_document_alone(project: BaseTokens) -> None:
    for split in ("train", "validation"):
        texts = pq.read_table(f"artifacts/corpus/{split}.parquet")["text"].to_pylist()
        expected: list[int] = []
        first = 0
        for text in texts:
            student, base = (
                spans_of(plain(each.tokenizer().backend_tokenizer), [text], "")[0]
                for each in (project.students, project)
            )
            expected += [first + at if at >= 0 else -1 for at in aligned(text, student, base)]
            first += len(base) + 1
            expected.append(first - 1)  # EOS
        beyond = project.windows(split).size
        expected = [at if at < beyond else -1 for at in expected]
        places = project.places(split)
        assert places.dtype == np.int32
        assert places.flatten().tolist() == expected[: places.size]


def test_a_students_position_has_the_labels_of_its_place(project: BaseTokens, tmp_path: Path) -> None:
    labels, params = ConceptLabels(Artifact(Path("artifacts/concepts"))), parameters(**OWN).attribution
    model, sae = load_base(Artifact(Path("artifacts/base")), 24), load_sae(Artifact(Path("artifacts/sae")))
    without = []
    for split in ("train", "validation"):
        ids = torch.from_numpy(project.windows(split).astype(np.int64))
        known = [each.reshape(-1, 3) for each in label_windows(model, sae, ids, params)]
        places = project.places(split)
        for what, theirs, none in zip(("concepts", "scores"), known, (labels.no_label, 0), strict=True):
            given = labels.unpack(project.students, split, tmp_path / f"{split}-{what}.npy", what)
            has = places[:, :-1] >= 0
            np.testing.assert_allclose(given[:, :-1][has], theirs[places[:, :-1][has]], rtol=1e-3)
            assert (given[:, :-1][~has] == none).all()
            assert (given[:, -1] == none).all()
        concepts = labels.unpack(project.students, split, tmp_path / f"{split}-concepts.npy")
        without.append(float((concepts[:, :-1, 0] == labels.no_label).mean()))
    metrics = json.loads(Path("metrics/attribution.json").read_bytes())
    about = Artifact(Path("artifacts/concepts")).about
    assert metrics["unlabelled_share"] == about["unlabelled_share"] == pytest.approx(without[0])
    assert 0 < without[0] < 0.5


def test_students_learn_and_are_measured_and_read(
    project: BaseTokens, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = parameters(**OWN)
    run("distribution", "explain", "methods", params=params)
    stages.pretrain.run(params, "cocomix", 0)
    stages.evaluate.run(params, "cocomix", 0)
    run("steer", params=params)
    atlas = Atlas()
    assert len(atlas.texts) == project.vocab_size
    assert len(atlas.student_texts) == project.students.vocab_size
    assert "</s>" in atlas.texts
    assert "<|endoftext|>" in atlas.student_texts
    effects = pq.read_table("artifacts/steering/effects.parquet").to_pylist()
    assert {each["sweep"] for each in effects} == {"cocomix_set", "cocomix_scale", "base_set"}
    assert all(0 < each["probability"] < 1 and 0 <= each["read"] <= 1 for each in effects)
    run("report", params=params)
    assert "without any;" in Path("artifacts/report/index.html").read_text()

    shutil.copy(ROOT / "params.yaml", "params.yaml")
    text = "The caf\u00e9 \U0001f600 statement"
    command(["concepts", text, "--json"])
    positions = json.loads(capsys.readouterr().out)
    student, base = (
        spans_of(plain(each.tokenizer().backend_tokenizer), [text], "")[0] for each in (project.students, project)
    )
    assert len(positions) == len(student)
    alone = label_windows(
        load_base(Artifact(Path("artifacts/base")), 24),
        load_sae(Artifact(Path("artifacts/sae"))),
        torch.tensor(ids_of(plain(project.tokenizer().backend_tokenizer), [text], "")),
        params.attribution,
    )
    for position, place in zip(positions, aligned(text, student, base).tolist(), strict=True):
        expected = [] if place < 0 else [each for each in alone.concepts[0, place].tolist() if each < 48]
        assert [each["concept"] for each in position["labelled"]] == expected
    command(["generate", "The file", "--base", "--tokens", "3", "--json"])
    written = json.loads(capsys.readouterr().out)["continuation"]
    assert written
    command(["steer", "The file", "--base", "--tokens", "3", "--edit", "1=2", "--json"])
    assert json.loads(capsys.readouterr().out)["continuations"]["base"] == written
    session = Session(Path("artifacts/models/cocomix-0"), Path("artifacts"))
    asked, pieces = Continuation(text="The file", base=True, tokens=3), list[str]()
    session.write(asked, say=pieces.append, stop=Event())
    assert "".join(pieces) == written
    exec(session.calls(asked).python, {})
    assert capsys.readouterr().out == f"{written}\n"


def test_with_a_shared_tokenizer_the_artifact_has_no_files_and_stands_for_the_students_tokens(
    tokens_folder: Path,
) -> None:
    stages.base_tokens.run(parameters())
    tokens = BaseTokens()
    assert Artifact(Path("artifacts/base_tokens")).manifest.files == {}
    assert tokens.shared
    assert tokens.artifact.path == tokens_folder
    assert json.loads(Path("metrics/base_tokens.json").read_bytes()).keys() == {"artifact", "usage"}


def test_with_a_shared_tokenizer_the_stage_waits_for_no_library() -> None:
    heavy = "torch", "transformers", "tokenizers"
    code = f"import sys; sys.modules |= dict.fromkeys({heavy!r}); import stages.base_tokens"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
