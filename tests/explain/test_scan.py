from collections import Counter

import numpy as np
import pytest
import torch

from cocomix.explain.firings import FiringLimits, ScanResult
from cocomix.explain.scan import ids_around, scan_shard, text_shards
from tests.attribution.conftest import LATENTS, LAYER, Setting
from tests.conftest import CONTEXT

KEEP = FiringLimits(strongest=4, pool=3, sample=10, before=3, after=2, seed=0)


def dense(setting: Setting, windows: np.ndarray) -> torch.Tensor:
    """Every concept's strength at every position, by dense products: [windows, context, concepts]."""
    ids = torch.from_numpy(setting.tokens.windows("train")[windows].astype(np.int64))
    with torch.no_grad():
        x = setting.model(ids, output_hidden_states=True).hidden_states[LAYER]
    x = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5)
    before = (x - setting.sae.pre_bias) @ setting.sae.encoder.T + setting.sae.latent_bias
    kept = before.topk(setting.sae.config.k)
    return torch.zeros_like(before).scatter(2, kept.indices, kept.values.relu())


@pytest.fixture
def looked(setting: Setting) -> tuple[ScanResult, torch.Tensor, np.ndarray]:
    (shard,) = text_shards(setting.tokens, "train", 20 * CONTEXT, 1000 * CONTEXT, seed=0)
    seen = scan_shard(setting.model, setting.sae, setting.tokens, shard, KEEP, lambda _: None)
    return seen, dense(setting, shard.windows), shard.windows


def test_firings_are_counted_and_summed(looked: tuple[ScanResult, torch.Tensor, np.ndarray], setting: Setting) -> None:
    seen, strengths, windows = looked
    assert seen.counts.tolist() == (strengths > 0).sum((0, 1)).tolist()
    torch.testing.assert_close(seen.sums, strengths.double().sum((0, 1)), rtol=1e-5, atol=1e-5)
    counts = Counter(setting.tokens.windows("train")[windows].flatten().tolist())
    assert {token: count for token, count in enumerate(seen.tokens.tolist()) if count} == counts


def test_the_strongest_are_those_of_different_windows_with_their_surroundings(
    looked: tuple[ScanResult, torch.Tensor, np.ndarray],
) -> None:
    seen, strengths, windows = looked
    for concept in range(LATENTS):
        mine = seen.strongest.at((seen.strongest.concepts == concept).nonzero().flatten())
        peaks = strengths[:, :, concept].amax(1)
        expected = peaks[peaks > 0].sort(descending=True).values[: KEEP.strongest]
        torch.testing.assert_close(mine.strengths, expected, rtol=1e-4, atol=1e-5)
        for place, strength, around in zip(mine.places.tolist(), mine.strengths, mine.around, strict=True):
            row, position = int(np.searchsorted(windows, place // CONTEXT)), place % CONTEXT
            assert windows[row] == place // CONTEXT
            assert float(strengths[row, position, concept]) == pytest.approx(float(strength), rel=1e-4)
            for offset, value in zip(range(-KEEP.before, KEEP.after + 1), around.tolist(), strict=True):
                if 0 <= position + offset < CONTEXT:
                    other = float(strengths[row, position + offset, concept])
                    assert value == pytest.approx(other, rel=1e-3, abs=1e-4)
                else:
                    assert np.isnan(value)


def test_the_sample_and_the_background_are_of_the_text(
    looked: tuple[ScanResult, torch.Tensor, np.ndarray],
) -> None:
    seen, strengths, windows = looked
    sizes = seen.sample.concepts.bincount(minlength=LATENTS)
    assert sizes.tolist() == seen.counts.clamp(max=KEEP.sample).tolist()
    rows = np.searchsorted(windows, (seen.sample.places // CONTEXT).numpy())
    found = strengths[rows, seen.sample.places % CONTEXT, seen.sample.concepts]
    torch.testing.assert_close(seen.sample.strengths, found, rtol=1e-4, atol=1e-5)
    assert set(seen.pool.places.tolist()) <= set(seen.sample.places.tolist())
    rows = np.searchsorted(windows, (seen.background // CONTEXT).numpy())
    assert torch.equal(seen.background_fires, strengths[rows, seen.background % CONTEXT] > 0)


def test_a_plan_takes_whole_windows_without_repetition_and_all_if_there_are_too_few(setting: Setting) -> None:
    shards = text_shards(setting.tokens, "train", 30 * CONTEXT - 5, 8 * CONTEXT, seed=0)
    assert [len(each.windows) for each in shards] == [8, 8, 8, 6]
    windows = np.concatenate([each.windows for each in shards])
    assert (np.diff(windows) > 0).all()
    everything = text_shards(setting.tokens, "train", 10**9, 50 * CONTEXT, seed=0)
    assert np.concatenate([each.windows for each in everything]).tolist() == list(range(96))
    for shard in everything:
        assert np.isin(shard.background // CONTEXT, shard.windows).all()


def test_tokens_around_a_place_stay_in_its_window(setting: Setting) -> None:
    windows = setting.tokens.windows("train")
    found = ids_around(setting.tokens, "train", torch.tensor([CONTEXT, 2 * CONTEXT - 1]), 2, 1).tolist()
    assert found == [[-1, -1, *windows[1, :2].tolist()], [*windows[1, -3:].tolist(), -1]]
