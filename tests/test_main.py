"""`python -m cocomix`, as typed."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from cocomix.__main__ import main
from cocomix.explore.load import load_extractor, load_labels, load_model
from cocomix.modeling import Set
from cocomix.params import load
from cocomix.plumbing.artifact import Work
from cocomix.shapes.methods import supervision
from cocomix.steering.reading import concepts
from tests.modeling.conftest import tiny
from tests.steering.conftest import artifacts, made_artifacts

__all__ = ["artifacts", "made_artifacts"]

PROJECT = Path(__file__).parents[1]
SHORT = ["--tokens", "6", "--greedy"]


@pytest.fixture(autouse=True)
def _project(artifacts: Path) -> None:
    shutil.copy(PROJECT / "params.yaml", ".")


def atlas(concepts: int = 40, **inputs: str) -> None:
    with Work("explain", Path("artifacts/atlas"), inputs, {"concepts": concepts}) as work:
        with work.write("concepts.parquet") as pending:
            labels = [f"meaning {number}" if number != 3 else "" for number in range(concepts)]
            pq.write_table(pa.table({"concept": range(concepts), "label": labels}), pending.path)
        work.finish({"concepts": concepts})
        work.publish()


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(arguments)
    return capsys.readouterr().out


def refused(*arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    message = str(stop.value.code)
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


def test_concepts_are_listed_with_labels_and_meanings(capsys: pytest.CaptureFixture[str]) -> None:
    atlas()
    found = json.loads(printed(capsys, "concepts", "w5 w9 w2", "--top", "2", "--json"))
    model, tokenizer = load_model(Path("artifacts/models/cocomix-0"))
    extractor = load_extractor(Path("artifacts"), model)
    expected = concepts(model, "w5 w9 w2", tokenizer, extractor, load_labels(Path("artifacts"), model))
    assert [each["gain"] for each in found] == [each.gain for each in expected]
    assert [each["predicted"] for each in found] == [[c._asdict() for c in each.predicted[:2]] for each in expected]
    assert [each["labelled"] for each in found] == [[c._asdict() for c in each.labelled] for each in expected]
    table = printed(capsys, "concepts", "w5 w9 w2", "--top", "2")
    assert [line.split()[0] for line in table.splitlines() if line.split()[0].startswith("w")] == ["w5", "w9", "w2"]
    strongest = expected[0].predicted[0]
    assert f"{strongest.concept} {strongest.label}".strip() in table
    assert "labelled" in table


def test_concepts_are_listed_without_what_only_the_rest_of_the_pipeline_knows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    atlas()
    shutil.rmtree("artifacts/concepts")
    table = printed(capsys, "concepts", "w5 w9 w2")
    assert "predicted" in table
    assert "labelled" not in table
    assert "meaning" in table
    assert "9  meaning 9" in printed(capsys, "steer", "w5 w9", "--edit", "9=20", *SHORT)


def test_a_continuation_is_that_of_generate_with_the_edits(capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load_model(Path("artifacts/models/cocomix-0"))
    ids = tokenizer("w5 w9", return_tensors="pt").input_ids
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    expected = tokenizer.decode(model.generate(ids, **options, concept_edits=[Set(9, 20.0)])[0, 2:])
    shown = printed(capsys, "generate", "w5 w9", "--edit", "9=20", *SHORT)
    assert shown.split() == ["w5", *f"w9{expected}".split()]
    told = json.loads(printed(capsys, "generate", "w5 w9", "--edit", "9=20", *SHORT, "--json"))
    assert told == {"prompt": "w5 w9", "edits": ["9=20"], "continuation": expected}


def test_steering_shows_the_original_beside_the_steered_for_both_models(capsys: pytest.CaptureFixture[str]) -> None:
    atlas()
    arguments = ["steer", "w5 w9", "--edit", "9=20", "3x0@1:", *SHORT, "--base"]
    told = json.loads(printed(capsys, *arguments, "--json"))["continuations"]
    assert list(told) == ["original", "steered", "base", "base steered"]
    assert told["original"] != told["steered"]
    assert told["base"] != told["base steered"]
    plain = json.loads(printed(capsys, "generate", "w5 w9", *SHORT, "--json"))
    assert plain["continuation"] == told["original"]
    shown = printed(capsys, *arguments)
    assert "9  meaning 9" in shown
    assert "base steered" in shown


def test_a_continuation_of_no_given_length_is_at_most_half_of_what_the_model_reads(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["generate", "w5 w9", "--greedy", "--json"]
    assert printed(capsys, *options) == printed(capsys, *options, "--tokens", "24")
    assert "25 tokens and 24 new ones; the model reads at most 48" in refused("generate", "w5 " * 25)


def test_sampling_is_a_function_of_the_seed(capsys: pytest.CaptureFixture[str]) -> None:
    def sample(seed: int) -> str:
        return printed(capsys, "generate", "w5 w9", "--tokens", "9", "--temperature", "2", "--seed", str(seed))

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


@pytest.mark.parametrize(("force", "no_color", "coloured"), [("1", "", True), ("1", "1", False), ("", "", False)])
def test_colour_is_for_terminals_that_want_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, force: str, no_color: str, coloured: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR", force)
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert ("\x1b[36m" in printed(capsys, "concepts", "w5 w9 w2")) == coloured


def test_what_cannot_be_done_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere: no model there" in refused("generate", "w5", "--model", "nowhere")
    GPT2LMHeadModel.from_pretrained("artifacts/base").save_pretrained("gpt2")
    assert "gpt2: a gpt2 model; concepts need" in refused("concepts", "w5", "--model", "gpt2")
    tiny(predicts="hidden").save_pretrained("hidden")
    assert "hidden: a cocomix model that predicts hidden" in refused("concepts", "w5", "--model", "hidden")
    assert "edit '9': write 412x4" in refused("steer", "w5", "--edit", "9")
    assert "no concept 40; the model has 0 to 39" in refused("steer", "w5", "--edit", "40=2")
    assert "2 tokens and 60 new ones; the model reads at most 48" in refused("generate", "w5 w6", "--tokens", "60")
    assert "the text is empty" in refused("concepts", "")
    assert "--top must be 1 or more" in refused("concepts", "w5", "--top", "0")
    assert "--seed must be from 0" in refused("generate", "w5", "--seed", str(2**64))
    for option in (["--greedy"], []):
        assert "predictions overflow" in refused("generate", "w5", "--edit", "9=1e38", "8=-1e38", *option)
    assert "--tokens must be from 1 to a million" in refused("generate", "w5", "--tokens", "0")
    assert "--temperature -1: must be 0, or from 0.01 to 10" in refused("generate", "w5", "--temperature", "-1")
    assert "leave it or --base out" in refused("steer", "w5", "--edit", "9x2", "--before-selection", "--base")
    other = tiny(vocab_size=64, num_concepts=41)
    other.save_pretrained("other")
    PreTrainedTokenizerFast.from_pretrained("artifacts/models/cocomix-0").save_pretrained("other")
    assert "has 40 concepts, the model 41" in refused("concepts", "w5", "--model", "other")
    shutil.rmtree("artifacts/sae")
    assert "artifacts/sae: not there" in refused("steer", "w5", "--edit", "9=2", "--base")
    Path("params.yaml").unlink()
    assert "params.yaml: no such file" in refused("generate", "w5")


def test_a_model_that_mixes_nothing_has_no_edits_but_its_base_model_has(capsys: pytest.CaptureFixture[str]) -> None:
    tiny(vocab_size=64, num_concepts=40, mixing="none").save_pretrained("unmixed")
    PreTrainedTokenizerFast.from_pretrained("artifacts/models/cocomix-0").save_pretrained("unmixed")
    assert "mixes no concepts (mixing: none)" in refused("steer", "w5", "--edit", "9=2", "--base", "--model", "unmixed")
    assert "mixes no concepts (mixing: none)" in refused("generate", "w5", "--edit", "9=2", "--model", "unmixed")
    assert printed(capsys, "generate", "w5", "--edit", "9=2", "--base", "--model", "unmixed", *SHORT)


def test_what_is_of_another_autoencoder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    atlas(sae="another")
    message = "artifacts/atlas, artifacts/concepts: made from different sae; run explain and attribution again"
    assert message in refused("concepts", "w5")
    shutil.rmtree("artifacts/atlas")
    atlas(concepts=41)
    steer = ["steer", "w5", "--edit", "9=20", *SHORT]
    assert "artifacts/atlas: has 41 concepts, the model 40" in refused(*steer)


def test_labels_that_the_model_was_not_trained_on_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    atlas()
    steer = ["steer", "w5 w9", "--edit", "9=20", *SHORT]
    folder = Path("artifacts/models/cocomix-0")
    files = {each.name: each.read_bytes() for each in folder.iterdir()}
    section = load().pretrain.cocomix
    for learned in (supervision(section, Path("artifacts")), "another"):
        shutil.rmtree(folder)
        params = {"cocomix": section.model_dump()}
        with Work("pretrain@cocomix-0", folder, {"supervision.cocomix": learned}, params) as work:
            with work.write_folder() as target:
                for name, content in files.items():
                    (target / name).write_bytes(content)
            work.finish({"method": "cocomix"})
            work.publish()
        if learned != "another":
            assert printed(capsys, "concepts", "w5 w9")
            assert "meaning 9" in printed(capsys, *steer)
    message = (
        "artifacts/models/cocomix-0: made from another supervision.cocomix than the one that is there; run pretrain"
    )
    assert message in refused("concepts", "w5 w9")
    assert message in refused(*steer)
