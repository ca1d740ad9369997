"""Stage sae with an autoencoder from elsewhere: our own, written in another project's format."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

from cocomix.activations.collect import collect
from cocomix.base.loading import load_base
from cocomix.params import ActivationsParams, Architecture, Params, SaeFormat, Site, load
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.errors import UserError
from cocomix.sae.autoencoder import SparseAutoencoder, load_sae
from cocomix.sae.export import main as export
from cocomix.sae.formats import is_same_model, load_published, model_named, save_for
from cocomix.tokens.windows import Tokens
from stages.sae import run

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs/concepts.md").read_text().partition("## The autoencoder")[2]
SNIPPETS: list[dict[str, Any]] = [yaml.safe_load(each) for each in re.findall(r"```yaml\n(.*?)```", DOCS, re.S)]
SITES = ["resid_post_2", "mlp_out_2"]
SMALL = {"site": SITES[0], "latents": 64, "k": 4, "aux_k": 8, "batch_size": 64, "epochs": 8}


@pytest.fixture
def project(base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with activations of 32 dimensions, and our autoencoder of them in the folder `theirs`."""
    tokens = Tokens(Path("artifacts/tokens"))
    params = ActivationsParams(sites=SITES, tokens=1200, validation_tokens=320, shard_tokens=400, row_group_tokens=100)
    with Work("activations", Path("artifacts/activations"), {}, params.model_dump()) as work:
        work.finish(collect(work, load_base(Artifact(base_folder), tokens.context), tokens, params))
        work.publish()
    run(params_with())
    monkeypatch.setattr(sys, "argv", ["export", "artifacts/sae", "theirs", "--format", "sae-lens"])
    export()
    return Path.cwd()


def params_with(**changes: Any) -> Params:
    content = load(ROOT / "params.yaml").model_dump()
    content["activations"]["sites"] = SITES
    content["sae"] |= SMALL | changes
    content["pretrain"]["cocomix"]["concept_k"] = 4
    return Params.model_validate(content)


def published(path: str = "theirs", **changes: Any) -> Params:
    return params_with(source="published", published={"path": path, "format": "sae-lens"}, **changes)


def test_a_published_autoencoder_becomes_the_artifact_that_it_was(project: Path) -> None:
    trained, measured = (
        SparseAutoencoder.load(project / "artifacts/sae"),
        json.loads(Path("metrics/sae.json").read_text()),
    )
    run(published())
    again = SparseAutoencoder.load(Artifact(project / "artifacts/sae").verified())
    assert again.config == trained.config
    assert all(torch.equal(trained.state_dict()[name], each) for name, each in again.state_dict().items())
    metrics = json.loads(Path("metrics/sae.json").read_text())
    assert metrics.keys() == measured.keys()
    assert metrics["fvu"] == pytest.approx(measured["fvu"])
    assert Path("plots/sae.csv").read_text().count("\n") == 1


def test_the_dead_are_those_that_never_fire_in_held_out_text_however_short_the_training(project: Path) -> None:
    run(params_with(latents=256, epochs=1, dead_tokens=200_000))
    metrics = json.loads((project / "metrics/sae.json").read_text())
    assert metrics["dead_share"] == metrics["firing"]["0"] / 256 > 0
    assert (project / "plots/sae.csv").read_text().splitlines()[-1].split(",")[4] == "0.0"


@pytest.mark.parametrize(
    ("artifact", "out", "says"),
    [
        (
            "artifacts/activations",
            "out",
            "artifacts/activations: of stage activations; allowed: the folder of stage sae",
        ),
        ("artifacts/sae", "params.yaml", "params.yaml: File exists"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, artifact: str, out: str, says: str
) -> None:
    Path("params.yaml").touch()
    monkeypatch.setattr(sys, "argv", ["export", artifact, out, "--format", "sae-lens"])
    with pytest.raises(SystemExit, match=f"^error: {says}$"):
        export()


def test_a_further_autoencoder_is_exported_by_its_name(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(params_with(also={"narrow": {"latents": 48, "normalize": "none"}}))
    narrow = load_sae(Artifact(project / "artifacts/sae"), "narrow")
    monkeypatch.setattr(sys, "argv", ["export", "artifacts/sae", "out", "--format", "sparsify", "--also", "narrow"])
    export()
    exported = load_published(project / "out", "sparsify", Site.parse(SITES[0]), k=1)
    assert exported.config == narrow.config
    x = torch.randn(5, 32)
    torch.testing.assert_close(exported(x), narrow(x))
    monkeypatch.setattr(sys, "argv", ["export", "artifacts/sae", "out", "--format", "sparsify", "--also", "wide"])
    with pytest.raises(SystemExit, match=r"sae: .wide.: no such autoencoder; sae\.also has narrow"):
        export()


def test_the_documented_commands_and_program_take_the_documented_autoencoders(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (also,) = (each["sae"]["also"] for each in SNIPPETS if "also" in each["sae"])
    run(params_with(also=also, epochs=1))
    commands = re.findall(r"^python -m (cocomix\.sae\.export .*)$", DOCS, re.M)
    for command in commands:
        monkeypatch.setattr(sys, "argv", command.split())
        export()
        assert (project / command.split()[2] / "cfg.json").exists()
    assert len(commands) == 2
    (program,) = re.findall(r"```python\n(.*?)```", DOCS, re.S)
    found = dict[str, Any]()
    exec(program, found)
    assert found["latents"].values.shape == (len(found["x"]), load_sae(Artifact(project / "artifacts/sae")).config.k)


def test_every_key_of_the_metrics_is_documented(project: Path) -> None:
    documented = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", DOCS.partition("| key |")[2], re.M)))
    assert documented == [*dict.fromkeys(documented)]
    assert {*documented, "artifact", "plots", "usage"} == json.loads(Path("metrics/sae.json").read_text()).keys()


def test_every_architecture_and_format_is_documented_with_valid_parameters() -> None:
    assert sorted(re.findall(r"^\| `(\w+)` \|", DOCS.partition("| key |")[0], re.M)) == sorted(get_args(Architecture))
    formats = []
    for snippet in SNIPPETS:
        content = load(ROOT / "params.yaml").model_dump()
        content["base"] |= {"source": "pretrained", "pretrained": "gpt2"}
        for section, given in snippet.items():
            content[section] |= given
        params = Params.model_validate(content)
        formats += [params.sae.published.format] if params.sae.source == "published" else []
    assert sorted(formats) == sorted(get_args(SaeFormat))


def test_a_changed_file_is_taken_anew(project: Path) -> None:
    run(published())
    before = Artifact(project / "artifacts/sae").digest
    other = SparseAutoencoder.load(project / "artifacts/sae")
    with torch.no_grad():
        other.pre_bias += 0.01
    save_for(other, project / "theirs", "sae-lens")
    run(published())
    assert Artifact(project / "artifacts/sae").digest != before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"latents": 128}, "sae.latents: 128: .* has 64"),
        ({"k": 5}, "sae.k: 5: .* has 4"),
        ({"normalize": "none"}, "sae.normalize: 'none': .* has 'token'"),
        ({"architecture": "abstopk"}, "sae.architecture: 'abstopk': .* has 'topk'"),
        ({"site": "mlp_out_2"}, "theirs is of resid_post_2; the activations are of mlp_out_2"),
        ({"path": "nowhere"}, "nowhere: no such file"),
    ],
)
def test_what_does_not_fit_is_one_line(project: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        run(published(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "fvu"),
    [
        (lambda sae: sae.decoder.neg_(), "[1-9]"),
        (lambda sae: (sae.encoder.mul_(1e38), sae.pre_bias.mul_(1e38)), "nan"),
    ],
    ids=["other", "overflow"],
)
def test_an_autoencoder_that_explains_nothing_is_refused(
    project: Path, change: Callable[[SparseAutoencoder], object], fvu: str
) -> None:
    other = SparseAutoencoder.load(project / "artifacts/sae")
    with torch.no_grad():
        change(other)
    save_for(other, project / "theirs", "sae-lens")
    with pytest.raises(UserError, match=rf"explains nothing of these activations \(variance unexplained: {fvu}"):
        run(published())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rate": 1e3}, r"sae explains nothing of .*: learning_rate \(1000\)"),
        ({"also": {"hot": {"learning_rate": 1e3}}}, r"sae\.also\.hot explains nothing"),
    ],
    ids=["first", "also"],
)
def test_a_trained_autoencoder_that_explains_nothing_is_refused(
    project: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        run(params_with(**changes))


def test_a_published_source_needs_a_path() -> None:
    with pytest.raises(ValueError, match=r"needs published\.path"):
        params_with(source="published")


NAMES = [
    ("gpt2-small", "openai-community/gpt2", True),
    ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped", True),
    ("mistral-7b", "mistralai/Mistral-7B-v0.1", True),
    ("pythia-70m", "EleutherAI/pythia-70m-deduped", False),
    ("gpt2-small", "openai-community/gpt2-medium", False),
    ("gemma-2-2b", "google/gemma-2b", False),
]


@pytest.mark.parametrize(("theirs", "ours", "same"), NAMES)
def test_an_autoencoder_of_another_model_is_known_by_its_name(folder: Path, theirs: str, ours: str, same: bool) -> None:
    assert is_same_model(theirs, ours) is same
    for config in ({"model_name": theirs}, {"metadata": {"model_name": theirs}}):
        Path("cfg.json").write_text(json.dumps(config))
        assert model_named(folder, "sae-lens") == theirs


def test_an_autoencoder_of_another_model_than_the_base_model_is_refused(project: Path) -> None:
    path, config = Path("artifacts/base/manifest.json"), Path("theirs/cfg.json")
    content = json.loads(config.read_text())
    content["metadata"]["model_name"] = "model-b"
    config.write_text(json.dumps(content))
    manifest = json.loads(path.read_text())

    def taken_from(name: str) -> None:
        path.write_text(json.dumps(manifest | {"params": {"source": "pretrained", "pretrained": name}}))
        run(published())

    with pytest.raises(UserError, match=r"theirs is of the model 'model-b'; the base model is 'org/model-a'"):
        taken_from("org/model-a")
    taken_from("theirs")  # a folder may be called anything
