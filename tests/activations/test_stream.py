from pathlib import Path
from typing import Any

import pytest
import torch

from cocomix.activations import stream
from cocomix.activations.store import ActivationStore
from cocomix.activations.stream import ActivationStream, open_activations
from cocomix.params import SaeParams
from cocomix.plumbing import checkpoint, distributed, interrupt
from cocomix.plumbing.interrupt import Interrupted
from cocomix.sae.training import SaeTraining, Wanted
from tests.activations.conftest import Setting, but

SAE = SaeParams(
    latents=48, k=4, epochs=2, batch_size=64, learning_rate=1e-3, aux_k=4, dead_tokens=300, checkpoint_every=5
)


def both(setting: Setting, **changes: Any) -> tuple[ActivationStore, ActivationStore]:
    """The same activations, stored and computed."""
    opened = []
    for keep in (True, False):
        artifact = setting.collect(but(keep=keep, mixed_shards=2, **changes), key=str(keep))
        opened.append(open_activations(artifact, "resid_post_2", setting.tokens, lambda _layers: setting.model))
    stored, streamed = opened
    assert not isinstance(stored, ActivationStream)
    assert isinstance(streamed, ActivationStream)
    return stored, streamed


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize(("epoch", "start"), [(0, 0), (1, 0), (1, 7)])
def test_batches_are_those_of_the_store(setting: Setting, dtype: str, epoch: int, start: int) -> None:
    stored, streamed = both(setting, dtype=dtype, drop_first=True, sites=["mlp_out_1", "resid_post_2"])
    assert stored.rows("train") == streamed.rows("train")
    for split in ("train", "validation"):
        batches = [list(each.batches(split, 64, seed=5, epoch=epoch, start=start)) for each in (stored, streamed)]
        assert len(batches[0]) == stored.rows(split) // 64 - start if split == "train" else True
        torch.testing.assert_close(*batches, rtol=0, atol=0)


def test_the_autoencoder_trained_without_keeping_the_store_has_the_same_bytes(setting: Setting, tmp_path: Path) -> None:
    saved = []
    for number, each in enumerate(both(setting)):
        training = SaeTraining([Wanted(each, SAE)], tmp_path / str(number))
        training.run()
        training.learners[0].finish().save(tmp_path / str(number))
        saved.append((tmp_path / str(number) / "sae.safetensors").read_bytes())
    assert saved[0] == saved[1]


def test_only_held_out_activations_are_kept_and_few_shards_are_held(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = setting.collect(but(keep=False, mixed_shards=2, tokens=96 * 16, shard_tokens=256))
    assert artifact.names() == ["resid_post_2/validation-00000.parquet"]
    assert artifact.about["tokens"] == {"train": 96 * 16, "validation": 112}
    streamed = ActivationStream(artifact, None, setting.tokens, setting.model)
    made: list[str] = []
    make = stream.make
    monkeypatch.setattr(stream, "make", lambda *args: (made.append(args[2].name), make(*args))[1])
    for _ in streamed.batches("train", 64, seed=0):
        assert streamed._made.cache_info().currsize <= 2
    assert sorted(made) == [f"train-{number:05d}.parquet" for number in range(6)]
    assert made != sorted(made)


def test_a_stop_does_not_wait_for_a_shard_and_loses_no_step(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streamed = both(setting)[1]
    whole = SaeTraining([Wanted(streamed, SAE)], tmp_path / "whole")
    whole.run()
    batches = streamed.batches

    def stopped(*args: Any, **order: Any) -> Any:
        for number, batch in enumerate(batches(*args, **order)):
            if number == 3:
                raise Interrupted(interrupt.signal.SIGTERM)
            yield batch

    monkeypatch.setattr(streamed, "batches", stopped)
    with pytest.raises(Interrupted):
        SaeTraining([Wanted(streamed, SAE)], tmp_path / "stopped").run()
    monkeypatch.setattr(streamed, "batches", batches)
    steps: list[int] = []
    resumed = SaeTraining([Wanted(streamed, SAE)], tmp_path / "stopped")
    (learner,) = resumed.learners
    learn = learner.learn
    monkeypatch.setattr(learner, "learn", lambda x: (steps.append(1), learn(x))[1])
    resumed.run()
    assert len(steps) == whole._steps - 3
    torch.testing.assert_close(learner.sae.state_dict(), whole.learners[0].sae.state_dict(), rtol=0, atol=0)


def test_a_stop_while_a_batch_is_computed_is_told_to_the_other_processes(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streamed = both(setting)[1]
    told: list[int] = []
    monkeypatch.setattr(distributed, "maximum", lambda value: (told.append(value), value)[1])
    monkeypatch.setattr(interrupt, "_received", interrupt.signal.SIGTERM)
    with pytest.raises(Interrupted):
        SaeTraining([Wanted(streamed, SAE)], tmp_path).run()
    assert told == [interrupt.signal.SIGTERM]


def test_a_process_stops_before_the_batch_that_another_has_not_got(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streamed = both(setting)[1]
    # Asked for the sample that begins it, then for each step before and after.
    answers = iter([0, *[0, 0] * 3, interrupt.signal.SIGINT])
    monkeypatch.setattr(distributed, "maximum", lambda value: max(value, next(answers)))
    training = SaeTraining([Wanted(streamed, SAE)], tmp_path)
    with pytest.raises(Interrupted) as stop:
        training.run()
    assert stop.value.received == interrupt.signal.SIGINT
    assert training.learners[0].step == 3
    assert checkpoint.load(tmp_path)["learners"][0]["step"] == 3


def test_a_signal_ends_the_computing_of_a_shard(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = both(setting)[1]
    monkeypatch.setattr(interrupt, "_received", interrupt.signal.SIGTERM)
    with pytest.raises(Interrupted):
        next(streamed.batches("train", 64, seed=0))
