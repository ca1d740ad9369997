from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cocomix.plumbing import device as device_module
from cocomix.plumbing.device import autocast, bf16, device, most_logits
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import LOGITS


def test_the_device_that_was_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")
    assert device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("asked", "gpus", "local_rank", "taken"),
    [
        ("auto", 0, "0", "cpu"),
        ("auto", 2, "0", "cuda:0"),
        ("cuda", 2, "1", "cuda:1"),
        ("cuda", 2, "2", "cuda:0"),
        ("cuda:1", 2, "0", "cuda:1"),
    ],
)
def test_each_process_of_a_machine_takes_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, asked: str, gpus: int, local_rank: str, taken: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setenv("COCOMIX_DEVICE", asked)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert device() == torch.device(taken)
    assert current == ([torch.device(asked)] if ":" in asked else [])


@pytest.mark.parametrize(("asked", "gpus"), [("cuda", 0), ("cuda:2", 2), ("mps", 0)])
def test_a_device_that_is_not_there_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, asked: str, gpus: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setenv("COCOMIX_DEVICE", asked)
    with pytest.raises(UserError, match=f"finds no {asked} on this machine"):
        device()


@pytest.mark.parametrize(("precision", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_matrix_products_have_the_precision_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, precision: str, kind: torch.dtype
) -> None:
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")
    monkeypatch.setenv("COCOMIX_PRECISION", precision)
    with autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == kind


@pytest.mark.parametrize(("memory", "most"), [(141e9, 141e9 // 64), (4e9, LOGITS)])
def test_an_evaluation_computes_as_many_logits_at_once_as_a_gpu_has_room_for(
    monkeypatch: pytest.MonkeyPatch, memory: float, most: float
) -> None:
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")
    assert most_logits() == LOGITS
    monkeypatch.setattr(device_module, "device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=int(memory)))
    assert most_logits() == most


@pytest.mark.parametrize("vendor", ["GenuineIntel", "AuthenticAMD"])
@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (True, True)])
def test_bf16_is_used_where_the_processor_multiplies_it_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vendor: str, avx512: bool, amx: bool
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")
    monkeypatch.setattr(device_module, "CPU_INFO", info)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert bf16() == (amx or (avx512 and vendor == "AuthenticAMD"))
