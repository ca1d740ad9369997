from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cocomix.corpus.splits import Split
from cocomix.distribution.build import make_draws
from cocomix.distribution.draws import Drawn, Draws
from cocomix.distribution.sampling import sample, uniforms
from cocomix.distribution.summary import summarise
from cocomix.params import DistributionParams
from cocomix.plumbing import distributed
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.interrupt import Interrupted
from cocomix.plumbing.progress import Progress
from cocomix.plumbing.runtime import runtime
from tests.conftest import CONTEXT, VOCAB, stopped_beyond
from tests.distribution.conftest import Setting

PARAMS = DistributionParams(draws=50, shard_tokens=640)


def drawn(setting: Setting, jobs: int = 1, key: str = "", **changes: Any) -> Artifact:
    """The artifact, made by `jobs` processes one after the other; the first one, which ends it, comes last."""
    out, params = Path(f"artifacts/distribution{jobs}{key}"), PARAMS.model_copy(update=changes)
    with (
        Work("distribution", out, {}, {"jobs": jobs, "key": key}) as work,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(distributed, "gathered", lambda value: [value])
        for rank in reversed(range(jobs)):
            patch.setenv("RANK", str(rank))
            patch.setenv("WORLD_SIZE", str(jobs))
            make_draws(work, setting.model, setting.tokens, params)
        patch.undo()
        work.finish({"draws": params.draws, "context": CONTEXT, "vocab_size": VOCAB})
        work.publish()
    return Artifact(out)


def whole(setting: Setting, artifact: Artifact, split: Split = "train") -> Drawn:
    """The draws of all windows of a split."""
    folder = artifact.path.with_name(f"{artifact.path.name}-{split}")
    return Draws(artifact).unpack(setting.tokens, split, folder).batch(slice(None))


def logits(setting: Setting, split: Split) -> torch.Tensor:
    with torch.no_grad():
        return setting.model(torch.from_numpy(setting.tokens.windows(split).astype(np.int64))).logits


def test_training_and_validation_windows_are_drawn_from_in_their_order(setting: Setting) -> None:
    artifact = drawn(setting)
    for split, windows in {"train": 96, "validation": 24}.items():
        found, scores = whole(setting, artifact, split), logits(setting, split)
        assert found.ids.shape[:2] == (windows, CONTEXT)
        numbers = torch.from_numpy(uniforms(0, split, range(windows), CONTEXT, 50))
        for window in (0, 23, windows - 1):
            alone = sample(scores[window], numbers[window])
            for position in range(CONTEXT - 1):
                ids, counts = alone.ids[position].unique(return_counts=True)
                there = found.ids[window, position] >= 0
                assert found.ids[window, position][there].tolist() == ids.tolist()
                assert found.shares[window, position][there].tolist() == pytest.approx((counts / 50).tolist())
            assert found.entropies[window, :-1].tolist() == pytest.approx(alone.entropies[:-1].tolist(), rel=1e-3)
        assert (found.ids[:, -1] == -1).all()


def test_test_windows_are_not_drawn_from(setting: Setting) -> None:
    assert drawn(setting).names("test") == []


def test_any_number_of_processes_writes_the_same_artifact(setting: Setting) -> None:
    assert drawn(setting, jobs=3).manifest.files == drawn(setting).manifest.files


def test_shards_and_micro_batches_of_any_size_have_the_same_draws(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(setting, drawn(setting))
    other_shards = whole(setting, drawn(setting, key="shards", shard_tokens=5 * CONTEXT))
    monkeypatch.setenv("COCOMIX_MICRO_BATCH", "3")
    runtime.cache_clear()
    other_batches = whole(setting, drawn(setting, key="batches"))
    for other in (other_shards, other_batches):
        assert other.ids.equal(expected.ids)
        assert other.shares.equal(expected.shares)
        torch.testing.assert_close(other.entropies, expected.entropies, rtol=2e-3, atol=0)  # rounded to fp16


def test_what_an_interrupted_process_finished_is_kept_and_the_result_is_the_same(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = drawn(setting).manifest.files
    with stopped_beyond(50 * CONTEXT), pytest.raises(Interrupted):
        drawn(setting, key="stopped")
    counted = []
    monkeypatch.setattr(Progress, "advance", lambda _, amount: counted.append(amount))
    assert drawn(setting, key="stopped").manifest.files == expected
    assert sum(counted) == (96 + 24 - 40) * CONTEXT


def test_a_seed_gives_other_draws_of_the_same_distribution(setting: Setting) -> None:
    one, other = (whole(setting, drawn(setting, key=f"{seed}", seed=seed)) for seed in (0, 1))
    assert one.ids.shape != other.ids.shape or not one.ids.equal(other.ids)
    assert one.entropies.equal(other.entropies)


def test_a_temperature_divides_the_logits(setting: Setting) -> None:
    flat = whole(setting, drawn(setting, key="flat", temperature=3.0))
    expected = torch.distributions.Categorical(logits=logits(setting, "train") / 3).entropy()
    torch.testing.assert_close(flat.entropies[:, :-1], expected[:, :-1], rtol=1e-3, atol=1e-3)


def test_what_a_base_model_has_beyond_the_tokenizers_vocabulary_is_never_drawn(setting: Setting) -> None:
    expected = whole(setting, drawn(setting))
    head = setting.model.get_output_embeddings()
    padded = nn.Linear(head.in_features, VOCAB + 7)
    with torch.no_grad():
        padded.weight[:VOCAB] = head.weight
        padded.bias.zero_()
        padded.bias[VOCAB:] = 100  # it would be all that is drawn
    setting.model.lm_head = padded.requires_grad_(False)
    found = whole(setting, drawn(setting, key="padded"))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_summary_counts_what_was_drawn(setting: Setting) -> None:
    artifact = drawn(setting)
    found, draws = whole(setting, artifact), Draws(artifact)
    size = sum(artifact.manifest.files[name].bytes for name in artifact.names("train-"))
    summary = summarise(draws.read("train"), size)
    assert summary.positions == 96 * (CONTEXT - 1)
    assert summary.mean_unique == pytest.approx(int((found.ids >= 0).sum()) / summary.positions)
    assert summary.mean_entropy == pytest.approx(float(found.entropies[:, :-1].mean()), rel=1e-4)
    assert summary.bytes_per_token == size / (96 * CONTEXT)
