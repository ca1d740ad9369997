import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from cocomix.activations import collect as module
from cocomix.activations.shards import activation_shards
from cocomix.activations.store import ActivationStore
from cocomix.base.hooks import residual_at
from cocomix.params import Site
from cocomix.plumbing import interrupt, progress
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.interrupt import Interrupted
from tests.activations.conftest import PARAMS, SITE, Setting, but
from tests.conftest import CONTEXT, VOCAB


def table(artifact: Artifact, prefix: str) -> dict[str, np.ndarray]:
    read = [pq.read_table(artifact.file(name)) for name in artifact.names(prefix)]
    columns = {name: np.concatenate([each[name].to_numpy() for each in read]) for name in read[0].column_names}
    return columns | {"x": np.stack([np.frombuffer(each, np.float16) for each in columns["x"]])}


def test_each_row_is_the_residual_stream_at_its_place_in_the_text(setting: Setting) -> None:
    rows = table(setting.collect(), SITE + "train-")
    windows = setting.tokens.windows("train")
    expected = residual_at(setting.model, torch.from_numpy(windows.astype(np.int64)), 2).half().numpy()
    documents = setting.tokens.documents("train", slice(None))
    for x, token, document, position in zip(*(rows[each] for each in rows), strict=True):
        places = np.flatnonzero((windows[:, position] == token) & (documents[:, position] == document))
        assert any(np.allclose(expected[window, position], x, rtol=2e-3, atol=2e-3) for window in places)


def test_as_many_windows_as_hold_the_tokens_are_taken_none_twice(setting: Setting) -> None:
    shards = activation_shards(setting.tokens, "train", PARAMS)
    windows = np.concatenate([shard.windows for shard in shards])
    assert len(windows) == len(set(windows)) == 63  # 63 * 16 = 1008
    assert [len(shard.windows) for shard in shards] == [25, 25, 13]


def test_the_choice_of_windows_is_a_function_of_the_seed(setting: Setting) -> None:
    def chosen(seed: int) -> list[int]:
        return [
            window
            for shard in activation_shards(setting.tokens, "train", but(tokens=500, seed=seed))
            for window in shard.windows
        ]

    assert chosen(0) == chosen(0)
    assert chosen(0) != chosen(1)


def test_fewer_tokens_than_asked_for_are_all_taken_and_that_is_said(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = activation_shards(setting.tokens, "validation", but(validation_tokens=10**6))
    assert sum(len(shard.windows) for shard in shards) == 24
    assert "the validation split holds 384 tokens, fewer than the 1,000,000 asked for" in capsys.readouterr().err


def test_neighbours_in_a_row_group_are_no_neighbours_in_the_text(setting: Setting) -> None:
    whole = but(tokens=96 * CONTEXT, shard_tokens=96 * CONTEXT)
    file = pq.ParquetFile(setting.collect(whole).file(SITE + "train-00000.parquet"))
    groups = [file.read_row_group(number)["document"].to_numpy() for number in range(file.num_row_groups - 1)]
    for lag in (1, 2, 5):
        assert autocorrelation(np.sort(np.concatenate(groups)), lag) > 0.9
        # 15 groups of 100 rows: 3 standard errors.
        assert abs(np.mean([autocorrelation(each, lag) for each in groups])) < 0.08


def autocorrelation(values: np.ndarray, lag: int) -> float:
    centered = values - values.mean()
    return float((centered[lag:] * centered[:-lag]).mean() / centered.var())


def test_several_sites_are_stored_in_one_pass_and_row_by_row_of_the_same_places(setting: Setting) -> None:
    alone = {site: setting.collect(but(sites=[site]), key=site) for site in ("resid_post_2", "mlp_out_1")}
    together = setting.collect(but(sites=["resid_post_2", "mlp_out_1"]), key="both")
    assert len(together.names()) == 8
    for site, artifact in alone.items():
        for name in artifact.names():
            assert together.manifest.files[name] == artifact.manifest.files[name]
        assert ActivationStore(together, site).site == Site.parse(site)
    places = [
        pq.read_table(together.file(f"{site}/train-00000.parquet"), columns=["token", "document", "position"])
        for site in alone
    ]
    assert places[0].equals(places[1])


@pytest.mark.parametrize(("dtype", "error"), [("bf16", 2**-8), ("int8", None)])
def test_other_types_read_as_what_was_stored_but_for_rounding(
    setting: Setting, dtype: str, error: float | None
) -> None:
    exact, artifact = (setting.collect(but(dtype=each), key=each) for each in ("fp16", dtype))
    expected, read = (torch.cat(list(ActivationStore(each).in_order("train"))) for each in (exact, artifact))
    assert read.dtype == torch.float32
    if error:
        torch.testing.assert_close(read, expected, rtol=error, atol=1e-3)
        return
    fvu = float((read - expected).square().sum() / (expected - expected.mean(0)).square().sum())
    assert 0 < fvu < 1e-3
    assert artifact.about["rounding_fvu"]["resid_post_2"] == pytest.approx(fvu, rel=0.1)
    batches = [torch.cat(list(ActivationStore(each).batches("train", 64, seed=0))) for each in (exact, artifact)]
    torch.testing.assert_close(*batches, rtol=0, atol=float((read - expected).abs().max()))


@pytest.mark.parametrize(("dtype", "bits"), [("fp16", "<f2"), ("bf16", "<u2"), ("int8", "<i1")])
def test_a_file_says_how_its_numbers_are_to_be_read(setting: Setting, dtype: str, bits: str) -> None:
    file = setting.collect(but(dtype=dtype), key=dtype).file(SITE + "train-00000.parquet")
    says = json.loads(pq.read_schema(file).metadata[b"cocomix"])
    assert (says["dtype"], says["d_model"]) == (dtype, 32)
    x = np.frombuffer(pq.read_table(file)["x"][0].as_py(), bits)
    if dtype == "bf16":
        x = (x.astype(np.uint32) << 16).view(np.float32)
    if dtype == "int8":
        x = x * np.array(says["step"], np.float32) + np.array(says["middle"], np.float32)
    exact = setting.collect(but(dtype="fp16"), key="exact").file(SITE + "train-00000.parquet")
    np.testing.assert_allclose(x, np.frombuffer(pq.read_table(exact)["x"][0].as_py(), "<f2"), rtol=0.01, atol=0.05)


def test_bf16_holds_what_fp16_cannot(setting: Setting) -> None:
    setting.model.transformer.wte.weight.mul_(1e6)
    largest = torch.cat(list(ActivationStore(setting.collect(but(dtype="bf16"))).in_order("train"))).abs().max()
    assert 65504 < largest < float("inf")


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int8"])
def test_activations_that_are_not_finite_are_an_error_that_names_the_site(setting: Setting, dtype: str) -> None:
    setting.model.transformer.wte.weight.fill_(torch.nan)
    with pytest.raises(UserError, match=r"activations\.sites: resid_post_2: .* not finite"):
        setting.collect(but(dtype=dtype))


def test_a_shard_of_which_nothing_is_kept_is_no_file(setting: Setting) -> None:
    dropped = np.unique(setting.tokens.windows("train")[0]).tolist()
    artifact = setting.collect(but(tokens=10**6, dtype="int8", shard_tokens=CONTEXT, drop_tokens=dropped))
    files = artifact.names(SITE + "train-")
    assert 0 < len(files) < 96
    assert all(pq.read_metadata(artifact.file(each)).num_rows for each in files)
    assert artifact.about["tokens"]["train"] == (~np.isin(setting.tokens.windows("train"), dropped)).sum()


def test_dropped_positions_and_tokens_are_not_stored_and_the_others_are_as_before(setting: Setting) -> None:
    whole = but(tokens=96 * CONTEXT, shard_tokens=96 * CONTEXT)
    drop = but(tokens=96 * CONTEXT, shard_tokens=96 * CONTEXT, drop_first=True, drop_tokens=[7, "w9"])
    rows, left = (table(setting.collect(each, key=str(each.drop_first)), SITE + "train-") for each in (whole, drop))
    keep = (rows["position"] > 0) & ~np.isin(rows["token"], [7, 9])
    assert 0.8 < keep.mean() < 0.95

    def in_text(columns: dict[str, np.ndarray], chosen: np.ndarray | slice) -> np.ndarray:
        table = np.column_stack([columns["document"], columns["position"], columns["token"], columns["x"]])[chosen]
        return table[np.lexsort(table.T[::-1])]

    np.testing.assert_array_equal(in_text(left, slice(None)), in_text(rows, keep))


def test_as_many_positions_are_stored_as_asked_for_also_where_some_are_dropped(setting: Setting) -> None:
    params = but(tokens=1000, drop_first=True, drop_tokens=[7])
    artifact = setting.collect(params)
    assert 1000 <= ActivationStore(artifact).rows("train") < 1000 + CONTEXT
    assert artifact.about["tokens"]["train"] == ActivationStore(artifact).rows("train")
    assert sum(pq.read_metadata(artifact.file(each)).num_rows for each in artifact.names(SITE + "train-")) >= 1000


@pytest.mark.parametrize("token", ["nothing", -1, VOCAB])
def test_a_token_to_drop_that_is_not_in_the_vocabulary_is_an_error(setting: Setting, token: int | str) -> None:
    with pytest.raises(UserError, match=rf"activations\.drop_tokens: {token!r}: no token of the vocabulary of 64"):
        setting.collect(but(drop_tokens=[token]))


def test_a_split_of_which_nothing_is_left_is_an_error(setting: Setting) -> None:
    with pytest.raises(UserError, match="the train split has no positions to store"):
        setting.collect(but(drop_tokens=list(range(VOCAB))))


def test_documents_kept_apart_have_the_activations_of_a_window_of_their_own(setting: Setting) -> None:
    rows = table(setting.collect(but(tokens=96 * CONTEXT, separate_documents=True)), SITE + "train-")
    windows, documents = setting.tokens.windows("train"), setting.tokens.documents("train", slice(None))
    checked = 0
    for window, numbers in zip(windows, documents, strict=True):
        for document in np.unique(numbers)[1:]:
            ids = torch.from_numpy(window[numbers == document].astype(np.int64))[None]
            expected = residual_at(setting.model, ids, 2)[0].numpy()
            start = int(np.argmax(numbers == document))
            for place, x in enumerate(expected, start):
                found = rows["x"][(rows["document"] == document) & (rows["position"] == place)].astype(np.float32)
                assert any(np.allclose(each, x, rtol=2e-3, atol=2e-3) for each in found)
                checked += 1
    assert checked > 100


def test_documents_that_the_model_cannot_keep_apart_are_an_error(setting: Setting) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 3}
    sliding = MistralForCausalLM(MistralConfig(**shape, vocab_size=VOCAB, sliding_window=3)).requires_grad_(False)
    with pytest.raises(UserError, match=r"activations\.separate_documents: MistralForCausalLM"):
        setting._replace(model=sliding.eval()).collect(but(separate_documents=True))


@pytest.mark.parametrize("separate", [False, True])
def test_the_first_position_is_that_of_a_window_or_of_each_document_kept_apart(
    setting: Setting, separate: bool
) -> None:
    params = but(tokens=96 * CONTEXT, drop_first=True, separate_documents=separate)
    rows = table(setting.collect(params), SITE + "train-")
    windows, documents = setting.tokens.windows("train"), setting.tokens.documents("train", slice(None))
    first = np.zeros(windows.shape, bool)
    first[:, 0] = True
    if separate:
        first[:, 1:] = windows[:, :-1] == setting.tokens.eos_id
    expected = [(int(documents[at]), at[1]) for at in zip(*np.nonzero(~first), strict=True)]
    assert sorted(zip(rows["document"], rows["position"], strict=True)) == sorted(expected)


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
    monkeypatch.setattr(module, "make", lambda *_: pytest.fail("computed"))
    with pytest.raises(UserError, match=r"1 MB are still .* 1 MB are free; lower activations\.tokens"):
        setting.collect()


def test_activations_that_fp16_cannot_hold_are_an_error_that_suggests_bf16(setting: Setting) -> None:
    setting.model.transformer.wte.weight.mul_(1e6)
    with pytest.raises(UserError, match=r"activations\.dtype: fp16: .* resid_post_2 exceed 65504, .* choose bf16"):
        setting.collect()


def test_a_row_group_that_parquet_cannot_hold_is_an_error_before_anything_is_computed(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "make", lambda *_: pytest.fail("computed"))
    with pytest.raises(
        UserError, match=r"activations\.row_group_tokens: 200000000: allowed: at most 33554431 of 32 dim"
    ):
        setting.collect(PARAMS.model_copy(update={"row_group_tokens": 200_000_000, "shard_tokens": 200_000_000}))


def test_a_layer_that_is_not_there_is_an_error(setting: Setting) -> None:
    with pytest.raises(UserError, match="allowed: 1 to 2"):
        setting.collect(but(sites=["resid_post_3"]))
