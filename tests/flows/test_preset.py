import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from dvc.utils.serialize import loads_yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cocomix.params import load
from cocomix.plumbing.checked import mapping
from cocomix.plumbing.errors import UserError
from cocomix.shapes.models import TeacherSizes, parameters_of, shapes
from flows.preset import main, switch, with_values
from flows.workspace import alone
from tests.flows.conftest import ROOT

PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


class Words(NamedTuple):
    """A vocabulary."""

    vocab_size: int
    context: int
    eos_id: int


def shipped() -> bytes:
    """params.yaml as it is committed: a person may have changed the file."""
    command = ["git", "-C", str(ROOT), "show", "HEAD:params.yaml"]
    shown = subprocess.run(command, capture_output=True, check=False)
    return shown.stdout if shown.returncode == 0 else (ROOT / "params.yaml").read_bytes()


@pytest.fixture
def params(folder: Path) -> Path:
    """A project of parameters and presets only."""
    shutil.copytree(ROOT / "presets", "presets")
    Path("params.yaml").write_bytes(shipped())
    return folder / "params.yaml"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_gives_valid_parameters_keeps_every_comment_and_default_goes_back_to_the_shipped_bytes(
    params: Path, name: str
) -> None:
    before, forms = params.read_text(), load().pretrain.forms
    switch(name)
    added = load().pretrain.forms.keys() - forms
    assert params.read_text().count("#") == before.count("#")
    assert params.read_text().count("\n") == before.count("\n") + len(added)
    switch("default")
    assert params.read_text() == before


def test_default_is_a_copy_of_the_shipped_parameters() -> None:
    assert (ROOT / "presets/default.yaml").read_bytes() == shipped()


def test_default_restores_what_a_preset_of_ones_own_sets(params: Path) -> None:
    before = params.read_bytes()
    Path("presets/mine.yaml").write_text("report: {title: mine}\nsae: {learning_rate: 2.0e-3}\n")
    switch("mine")
    assert load().report.title == "mine"
    switch("default")
    assert params.read_bytes() == before


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=5)
@given(seed=st.integers(0, 10**6), rate=st.floats(1e-5, 1e-1))
def test_what_no_preset_sets_stays_as_it_is(params: Path, seed: int, rate: float) -> None:
    own = shipped().decode().replace("  seed: 0\n  checkpoint", f"  seed: {seed}\n  checkpoint")
    own = own.replace("  learning_rate: 1.0e-3", f"  learning_rate: {rate!r}")
    params.write_text(own)
    for name in ("smoke", "modern", "default"):
        switch(name)
        assert (load().sae.seed, load().sae.learning_rate) == (seed, rate)


NAMED = """
sae: {also: {wide: {latents: 2048}}}
evaluate: {corpora: {books: {paths: ["books/*.txt"]}}}
pretrain: {forms: {added: {mixing: add}}}
"""
"""Entries whose names are free, which no shipped preset has."""


def test_entries_with_free_names_go_with_the_preset_that_set_them(params: Path) -> None:
    switch("smoke")
    smoke = params.read_bytes()
    Path("presets/mine.yaml").write_text(NAMED)
    switch("mine")
    assert load().sae.others().keys() == {"wide"}
    assert load().evaluate.corpora.keys() == {"books"}
    assert "added" in load().pretrain.forms
    switch("smoke")
    assert params.read_bytes() == smoke
    switch("mine")
    switch("default")
    assert params.read_text() == shipped().decode()


BROKEN = ["sae: [", "", "sae: &a {k: 16}", "sae: {k: many}", "sae: {latnts: 64}", "sae: 16"]


@pytest.mark.parametrize(("name", "contents"), [("smoke", BROKEN), ("default", BROKEN[:1])])
def test_only_the_chosen_preset_needs_to_be_valid(params: Path, name: str, contents: list[str]) -> None:
    switch(name)
    before = params.read_bytes()
    for content in contents:
        Path("presets/broken.yaml").write_text(content)
        switch(name)
        assert params.read_bytes() == before
        with pytest.raises(UserError, match=r"^presets/broken\.yaml"):
            switch("broken")


def test_a_comment_that_a_long_value_pushed_aside_comes_back(params: Path) -> None:
    before = params.read_bytes()
    long = with_values(before, [{"tokenize": {"pretrained": "a-long-name/of-a-tokenizer"}}], "test")
    assert long.count(b"#") == before.count(b"#")
    assert with_values(long, [{"tokenize": {"pretrained": None}}], "test") == before


@pytest.mark.parametrize("value", [[], ["a"], ["a", "b"]])
def test_a_list_written_line_by_line_can_be_replaced(params: Path, value: list[str]) -> None:
    before = params.read_bytes()
    lines = before.replace(b"paths: []      ", b"paths:         ").replace(
        b"    text_field", b"    - a  # b\n    text_field", 1
    )
    assert yaml.safe_load(lines)["corpus"]["files"]["paths"] == ["a"]
    after = with_values(lines, [{"corpus": {"files": {"paths": value}}}], "test")
    assert yaml.safe_load(after)["corpus"]["files"]["paths"] == value
    assert with_values(after, [{"corpus": {"files": {"paths": []}}}], "test") == before


def test_a_section_of_free_names_can_be_set(params: Path) -> None:
    Path("params.yaml").write_bytes(with_values(params.read_bytes(), [{"sae": {"also": {"wide": {"k": 16}}}}], "test"))
    assert load().sae.others()["wide"].k == 16


@pytest.mark.parametrize(
    ("name", "size", "tokens", "millions"),
    [
        ("paper-69m", (512, 8, 8, 3), 20.97e9, 68.3),
        ("paper-386m", (1024, 24, 16, 5), 20.97e9, 388.4),
        ("paper-1.38b", (2048, 24, 16, 5), 20.97e9, 1380.8),
    ],
)
def test_the_papers_presets_have_the_papers_figures(
    params: Path, name: str, size: tuple[int, ...], tokens: float, millions: float
) -> None:
    switch(name)
    chosen = load()
    model, training, cocomix = chosen.pretrain.model, chosen.pretrain.training, chosen.pretrain.cocomix
    assert (model.d_model, model.n_layer, model.n_head, cocomix.concept_layer) == size
    assert training.steps * training.batch_size * chosen.tokenize.context == pytest.approx(tokens, rel=1e-3)
    assert (chosen.sae.latents, chosen.sae.k, chosen.attribution.k_attr, cocomix.concept_k) == (32768, 32, 4, 32)
    assert (cocomix.concept_weight, chosen.pretrain.kd.kl_weight, training.betas) == (0.1, 0.1, (0.9, 0.95))
    vocabulary = Words(50257, chosen.tokenize.context, 50256)
    found = shapes(chosen.pretrain, vocabulary, TeacherSizes(chosen.sae.latents, 768, 0, 0))
    assert parameters_of(found["cocomix"]).active / 1e6 == pytest.approx(millions, abs=0.1)
    assert parameters_of(found["ntp"]).active == pytest.approx(parameters_of(found["cocomix"]).active, rel=0.03)


def test_the_base_model_of_the_papers_presets_is_one_commit_of_gpt2(params: Path) -> None:
    for name in ("paper-69m", "paper-386m", "paper-1.38b"):
        switch(name)
        chosen = load()
        assert chosen.base.pretrained == chosen.tokenize.pretrained == "openai-community/gpt2"
        assert chosen.base.revision == chosen.tokenize.revision
        for revision in (chosen.base.revision, chosen.corpus.hub.revision):
            assert re.fullmatch("[0-9a-f]{40}", revision or "")


def test_weak_to_strong_has_a_base_model_smaller_than_its_students(params: Path) -> None:
    shipped_params = load()
    switch("weak-to-strong")
    chosen = load()
    assert chosen.base.model.d_model < chosen.pretrain.model.d_model / 2
    assert chosen.pretrain.model == shipped_params.pretrain.model
    assert chosen.pretrain.methods == ["ntp", "kd", "pause", "cocomix"]


def test_larger_base_has_a_base_model_larger_than_its_students(params: Path) -> None:
    shipped_params = load()
    switch("larger-base")
    chosen = load()
    assert chosen.base.model.d_model > chosen.pretrain.model.d_model
    assert chosen.pretrain.model == shipped_params.pretrain.model
    assert chosen.pretrain.methods == ["ntp", "predicted", "cocomix", "kd", "cocomix_kd"]


def test_an_unknown_preset_is_refused_with_a_suggestion(params: Path) -> None:
    with pytest.raises(UserError, match="smoky: no such preset in presets; did you mean 'smoke'"):
        switch("smoky")


def test_an_unknown_key_is_refused_and_nothing_is_written(params: Path) -> None:
    before = params.read_bytes()
    Path("presets/mine.yaml").write_text("sae: {latnts: 64}\n")
    with pytest.raises(UserError, match=r"presets/mine\.yaml: sae\.latnts: unknown key; did you mean 'latents'"):
        switch("mine")
    assert params.read_bytes() == before


def test_values_that_contradict_each_other_are_refused(params: Path) -> None:
    Path("presets/mine.yaml").write_text("sae: {k: 5000}\n")
    with pytest.raises(UserError, match=r"k \(5000\) must not exceed latents"):
        switch("mine")


def test_help_names_the_presets(
    params: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["preset", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert {"default", "smoke", "rivals"} <= set(re.findall(r"[\w-]+", capsys.readouterr().out))


def test_a_preset_is_not_written_underneath_a_flow_or_sweep(params: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = params.read_bytes()
    monkeypatch.setattr("sys.argv", ["preset", "smoke"])
    with alone(), pytest.raises(SystemExit, match=r"^error: another run is at work in this folder \(process .*; wait"):
        main()
    assert params.read_bytes() == before
    main()
    assert params.read_bytes() != before


@pytest.mark.parametrize(
    "text", ["010", "yes", "1:30", "a:b", "<<", "2020-01-01", "a\u2028b", "\ufeffx", "null", "1e3", "'"]
)
def test_text_is_written_so_that_every_reader_takes_it_for_text(text: str) -> None:
    values = {"report": {"title": text}, "evaluate": {"corpora": {"more": {"paths": [text, text]}}}}
    written = with_values(shipped(), [values], "test")
    for read in (mapping(written, "params.yaml"), loads_yaml(written)):
        assert read["report"]["title"] == text
        assert read["evaluate"]["corpora"]["more"]["paths"] == [text, text]


def test_one_value_given_for_two_keys_is_written_out_at_each() -> None:
    betas = [0.8, 0.9]
    values = {"base": {"training": {"betas": betas}}, "pretrain": {"training": {"betas": betas}}}
    written = with_values(shipped(), [values], "test")
    assert b"&" not in written
    changed = mapping(with_values(written, [{"base": {"training": {"betas": [0.1, 0.2]}}}], "test"), "params.yaml")
    assert changed["pretrain"]["training"]["betas"] == betas


def test_parameters_that_share_a_value_by_an_alias_are_refused_by_all_who_would_write_them(params: Path) -> None:
    text = params.read_text().replace("  training:\n", "  training: &t\n", 1)
    params.write_text(text)
    with pytest.raises(UserError, match=r"^params\.yaml:\d+: &t names a value to repeat it; write it out"):
        switch("smoke")
    params.write_bytes(shipped())
    Path("presets/mine.yaml").write_text("base: {model: &m {n_head: 2}}\npretrain: {model: *m}\n")
    with pytest.raises(UserError, match=r"^presets/mine\.yaml:1: &m names a value to repeat it; write it out"):
        switch("mine")
    Path("presets/mine.yaml").unlink()
    os.mkfifo("presets/pipe.yaml")
    with pytest.raises(UserError, match=r"^presets/pipe\.yaml: no regular file$"):
        switch("pipe")
    assert params.read_bytes() == shipped()
