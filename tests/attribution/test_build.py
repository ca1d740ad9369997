from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from cocomix.attribution.build import at_places, make_labels, windows_of
from cocomix.attribution.labelling import gradient_scores, loss_gradient, strongest
from cocomix.attribution.labels import ConceptLabels, Labels
from cocomix.base.loading import prepared
from cocomix.params import AttributionParams
from cocomix.plumbing import distributed
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.interrupt import Interrupted
from cocomix.plumbing.progress import Progress
from cocomix.tokens.shards import window_shards
from tests.attribution.conftest import LAYER, Setting
from tests.conftest import CONTEXT, VOCAB, stopped_beyond

PARAMS = AttributionParams(k_attr=3, score="gradient", sign="released", shard_tokens=640)


def labelled(setting: Setting, jobs: int = 1, key: str = "", **changes: Any) -> Artifact:
    """The artifact, made by `jobs` processes one after the other; the first one, which ends it, comes last."""
    out = Path(f"artifacts/concepts{jobs}{key}")
    with (
        Work("attribution", out, {"base": "of the base model"}, {"jobs": jobs, "key": key}) as work,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(distributed, "gathered", lambda value: [value])
        for rank in reversed(range(jobs)):
            patch.setenv("RANK", str(rank))
            patch.setenv("WORLD_SIZE", str(jobs))
            facts = make_labels(work, setting.model, setting.sae, setting.tokens, PARAMS.model_copy(update=changes))
        patch.undo()
        work.finish(facts)
        work.publish()
    return Artifact(out)


def test_training_and_validation_windows_are_labelled_in_their_order(setting: Setting, tmp_path: Path) -> None:
    labels = ConceptLabels(labelled(setting))
    for split, windows in {"train": 96, "validation": 24}.items():
        unpacked = labels.unpack(setting.tokens, split, tmp_path / f"{split}.npy")
        assert unpacked.shape == (windows, CONTEXT, 3)
        ids = setting.tokens.windows(split).astype(np.int64)
        for window in (0, 23, windows - 1):
            alone = gradient_scores(setting.sae, loss_gradient(setting.model, torch.from_numpy(ids[[window]]), LAYER))
            expected = strongest(*alone, 3, "released").concepts.numpy()
            given = unpacked[window].astype(np.int64)
            np.testing.assert_array_equal(np.where(given == labels.no_label, -1, given), expected)


def test_labels_can_be_the_most_active_concepts_of_all(setting: Setting, tmp_path: Path) -> None:
    labels = ConceptLabels(labelled(setting, key="active", score="activation"))
    given = labels.unpack(setting.tokens, "validation", tmp_path / "validation.npy").astype(np.int64)
    ids = torch.from_numpy(setting.tokens.windows("validation").astype(np.int64))
    with torch.no_grad():
        residual = setting.model(ids, output_hidden_states=True).hidden_states[LAYER]
        centred = residual - residual.mean(-1, keepdim=True)
        x = centred / (centred.std(-1, keepdim=True) + 1e-5)
        active = ((x - setting.sae.pre_bias) @ setting.sae.encoder.T + setting.sae.latent_bias).relu()
    np.testing.assert_array_equal(given[:, :-1], active.topk(3).indices[:, :-1].numpy())
    assert (given[:, -1] == labels.no_label).all()


def test_test_windows_are_not_labelled(setting: Setting) -> None:
    assert labelled(setting).names("test") == []


def test_any_number_of_processes_writes_the_same_artifact(setting: Setting) -> None:
    alone = labelled(setting)
    assert labelled(setting, jobs=3).manifest.files == alone.manifest.files
    planned = [shard.name for shard in window_shards(setting.tokens, 40 * CONTEXT)]
    assert planned == alone.names("train") + alone.names("validation")


def test_what_an_interrupted_process_finished_is_kept_and_the_result_is_the_same(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = labelled(setting).manifest.files
    with stopped_beyond(50 * CONTEXT), pytest.raises(Interrupted):
        labelled(setting, key="stopped")
    counted = []
    monkeypatch.setattr(Progress, "advance", lambda _, amount: counted.append(amount))
    assert labelled(setting, key="stopped").manifest.files == expected
    assert sum(counted) == (96 + 24 - 40) * CONTEXT


def test_an_autoencoder_of_another_width_is_an_error_that_names_both(setting: Setting) -> None:
    setting.sae.config = setting.sae.config.model_copy(update={"d_model": 64})
    with pytest.raises(UserError, match="is for width 64, the base model's is 32"):
        labelled(setting)


def test_an_autoencoder_of_another_location_is_an_error(setting: Setting) -> None:
    setting.sae.config = setting.sae.config.model_copy(update={"location": "mlp_out"})
    with pytest.raises(UserError, match=r"sae\.site: is a mlp_out; .* choose a resid_post"):
        labelled(setting)


def test_a_base_model_without_the_scope_is_an_error_before_anything_is_labelled(setting: Setting) -> None:
    shape = {"hidden_size": 32, "n_layer": 3, "n_head": 2}
    bloom = prepared(BloomForCausalLM(BloomConfig(vocab_size=VOCAB, **shape)))
    with pytest.raises(UserError, match=r"attribution\.scope: next_token: in BloomForCausalLM"):
        labelled(setting._replace(model=bloom), scope="next_token")
    assert labelled(setting._replace(model=bloom), score="activation").names()


def test_labels_are_taken_from_their_places_in_the_windows_that_these_lie_in() -> None:
    concepts = np.arange(4 * 5 * 2, dtype=np.uint16).reshape(4, 5, 2)
    places = np.array([[-1, 7, 7], [8, 13, -1]], np.int32)
    windows = windows_of(places, 5)
    assert windows == range(1, 3)
    read = Labels(concepts[1:3], concepts[1:3].astype(np.float16))
    found = at_places(read, places - 5)
    assert found.concepts.tolist() == [[[65535] * 2, [14, 15], [14, 15]], [[16, 17], [26, 27], [65535] * 2]]
    assert found.scores.tolist() == [[[0, 0], [14, 15], [14, 15]], [[16, 17], [26, 27], [0, 0]]]


def test_places_without_labels_alone_still_name_a_window() -> None:
    none = np.full((2, 3), -1)
    assert windows_of(none, 5) == range(1)
    assert (at_places(Labels(np.zeros((1, 5, 2), np.uint16), np.ones((1, 5, 2), np.float16)), none).scores == 0).all()
