from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedModel

from cocomix import interrupt, progress
from cocomix.activations import collect as module
from cocomix.activations.collect import collect, plan
from cocomix.artifact import Artifact, Work
from cocomix.base import load_base, residual_at
from cocomix.errors import UserError
from cocomix.interrupt import Interrupted
from cocomix.params import ActivationsParams
from cocomix.runtime import runtime
from cocomix.tokens.windows import Tokens
from tests.conftest import CONTEXT

PARAMS = ActivationsParams(layer=2, tokens=1000, validation_tokens=100, shard_tokens=400, row_group_tokens=100, seed=3)


class Setting(NamedTuple):
    tokens: Tokens
    model: PreTrainedModel

    def collect(self, params: ActivationsParams = PARAMS, jobs: int = 1, key: str = "") -> Artifact:
        """The artifact, made by `jobs` processes one after the other."""
        out = Path(f"artifacts/activations{jobs}{key}")
        with Work("activations", out, {}, {"jobs": jobs, "key": key}) as work, pytest.MonkeyPatch.context() as patch:
            for rank in range(jobs):
                patch.setenv("RANK", str(rank))
                patch.setenv("WORLD_SIZE", str(jobs))
                about = collect(work, self.model, self.tokens, params)
            patch.undo()
            work.finish(about)
            work.publish()
        return Artifact(out)


@pytest.fixture
def setting(base_folder: Path, tokens_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setenv("COCOMIX_PRECISION", "fp32")
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")
    monkeypatch.setenv("COCOMIX_MICRO_BATCH", "13")
    runtime.cache_clear()
    return Setting(Tokens(tokens_folder), load_base(Artifact(base_folder), CONTEXT))


def table(artifact: Artifact, prefix: str) -> dict[str, np.ndarray]:
    read = [pq.read_table(artifact.file(name)) for name in artifact.names(prefix)]
    columns = {name: np.concatenate([each[name].to_numpy() for each in read]) for name in read[0].column_names}
    return columns | {"x": np.stack([np.frombuffer(each, np.float16) for each in columns["x"]])}


def test_each_row_is_the_residual_stream_at_its_place_in_the_text(setting: Setting) -> None:
    rows = table(setting.collect(), "train-")
    windows = setting.tokens.windows("train")
    expected = residual_at(setting.model, torch.from_numpy(windows.astype(np.int64)), PARAMS.layer).half().numpy()
    documents = setting.tokens.documents("train", slice(None))
    for x, token, document, position in zip(*(rows[each] for each in rows), strict=True):
        places = np.flatnonzero((windows[:, position] == token) & (documents[:, position] == document))
        assert any(np.allclose(expected[window, position], x, rtol=2e-3, atol=2e-3) for window in places)


def test_as_many_windows_as_hold_the_tokens_are_taken_none_twice(setting: Setting) -> None:
    shards = plan(setting.tokens, "train", 1000, 400, 3)
    windows = np.concatenate([shard.windows for shard in shards])
    assert len(windows) == len(set(windows)) == 63  # 63 * 16 = 1008
    assert [len(shard.windows) for shard in shards] == [25, 25, 13]


def test_the_choice_of_windows_is_a_function_of_the_seed(setting: Setting) -> None:
    def chosen(seed: int) -> list[int]:
        return [window for shard in plan(setting.tokens, "train", 500, 400, seed) for window in shard.windows]

    assert chosen(0) == chosen(0)
    assert chosen(0) != chosen(1)


def test_fewer_tokens_than_asked_for_are_all_taken_and_that_is_said(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = plan(setting.tokens, "validation", 10**6, 400, 0)
    assert sum(len(shard.windows) for shard in shards) == 24
    assert "the validation split holds 384 tokens, fewer than the 1,000,000 asked for" in capsys.readouterr().err


def test_a_row_group_mixes_the_windows_of_its_shard(setting: Setting) -> None:
    whole = PARAMS.model_copy(update={"tokens": 96 * CONTEXT, "shard_tokens": 96 * CONTEXT})
    file = pq.ParquetFile(setting.collect(whole).file("train-00000.parquet"))
    for number in range(file.num_row_groups - 1):
        document = file.read_row_group(number)["document"].to_numpy().astype(float)
        assert abs(np.corrcoef(document[1:], document[:-1])[0, 1]) < 0.35  # 100 rows: 3 standard errors


def test_any_number_of_processes_writes_the_same_artifact(setting: Setting) -> None:
    alone = setting.collect().manifest.files
    assert setting.collect(jobs=3).manifest.files == alone
    assert len(alone) == 4


def test_what_an_interrupted_process_finished_is_kept_and_the_result_is_the_same(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = setting.collect().manifest.files
    advance = progress.Progress.advance
    calls = 0

    def stop_in_the_third_shard(self: progress.Progress, amount: int, **shown: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Interrupted(interrupt.signal.SIGTERM)
        advance(self, amount, **shown)

    monkeypatch.setattr(progress.Progress, "advance", stop_in_the_third_shard)
    with pytest.raises(Interrupted):
        setting.collect(key="stopped")
    monkeypatch.setattr(progress.Progress, "advance", advance)
    written = []
    write = module._write
    monkeypatch.setattr(
        module, "_write", lambda work, shard, *rest: (written.append(shard.name), write(work, shard, *rest))
    )
    resumed = setting.collect(key="stopped").manifest.files
    assert written == ["train-00002.parquet", "validation-00000.parquet"]
    assert {name: each.sha256 for name, each in resumed.items()} == {n: e.sha256 for n, e in expected.items()}


def test_a_disk_that_is_too_small_is_an_error_before_anything_is_computed(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10_000})())
    monkeypatch.setattr(module, "residual_at", lambda *_: pytest.fail("computed"))
    with pytest.raises(UserError, match=r"1 MB are still .* 1 MB are free; lower activations\.tokens"):
        setting.collect()


def test_activations_that_fp16_cannot_hold_are_an_error_that_names_the_layer(setting: Setting) -> None:
    setting.model.transformer.wte.weight.mul_(1e6)
    with pytest.raises(UserError, match=r"activations\.layer: 2: .* exceeds 65504"):
        setting.collect()


def test_a_layer_that_is_not_there_is_an_error(setting: Setting) -> None:
    with pytest.raises(UserError, match="allowed: 1 to 2"):
        setting.collect(PARAMS.model_copy(update={"layer": 3}))
