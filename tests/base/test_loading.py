import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, GPT2LMHeadModel, MptConfig, XLNetConfig

from cocomix.base.loading import load_base, longest_context, micro_batch
from cocomix.plumbing.artifact import Artifact
from cocomix.pretrained import load_model
from tests.conftest import CONTEXT


def test_the_base_model_is_loaded_frozen_and_computes_what_was_saved(base_folder: Path, ids: torch.Tensor) -> None:
    model = load_base(Artifact(base_folder), CONTEXT)
    assert not model.training
    assert not any(each.requires_grad for each in model.parameters())
    plain = AutoModelForCausalLM.from_pretrained(base_folder).eval()
    torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("asked", "copies"), [(torch.bfloat16, 0), (torch.float32, 2)])
def test_weights_in_the_type_in_which_they_are_stored_are_mapped_and_not_copied(
    folder: Path, asked: torch.dtype, copies: int
) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=2**16, n_embd=512, n_layer=2, n_head=2)).bfloat16()
    stored = 2 * sum(each.numel() for each in model.parameters())  # 77 MB
    model.save_pretrained(folder)
    before = own_memory()
    loaded = load_model("base.pretrained", str(folder), None, asked)
    assert loaded.dtype == asked
    assert (own_memory() - before) / stored == pytest.approx(copies, abs=0.4)


def own_memory() -> int:
    """Bytes of this process that are no mapped file."""
    return 1024 * int(re.findall(r"RssAnon:\s+([0-9]+)", Path("/proc/self/status").read_text())[0])


def test_the_longest_context_is_what_a_configuration_states_by_any_name_or_none() -> None:
    configs = (GPT2Config(n_positions=7), MptConfig(max_seq_len=7), BloomConfig(), XLNetConfig())
    assert [longest_context(each) for each in configs] == [7, 7, None, None]


def test_the_windows_of_a_forward_pass_are_a_runtime_knob(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_MICRO_BATCH", "3")
    assert micro_batch(CONTEXT) == 3


def test_a_window_longer_than_the_automatic_batch_is_read_alone() -> None:
    assert micro_batch(10**6) == 1
