import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.evaluation.text import EvaluationText
from cocomix.modeling import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.tokens.window_data import WindowData, WindowLabels

CONTEXT, VOCAB, CONCEPTS, K_ATTR = 12, 31, 24, 3
SHAPE = {"vocab_size": VOCAB, "n_positions": CONTEXT, "n_embd": 16, "n_layer": 3, "n_head": 2}
SHAPE |= {"initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def cocomix(**changes: object) -> CoCoMixForCausalLM:
    """A random model, whose weights are large enough that the loss depends on all it reads."""
    torch.manual_seed(0)
    fields = {"num_concepts": CONCEPTS, "concept_layer": 1, "concept_k": 5}
    return CoCoMixForCausalLM(CoCoMixConfig(**(SHAPE | fields | changes))).eval()


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**SHAPE)).eval()


@pytest.fixture
def text() -> EvaluationText:
    """7 windows of documents of all lengths, also empty ones; token n stands for n % 5 bytes."""
    ids = np.random.default_rng(0).integers(1, VOCAB, size=(7, CONTEXT)).astype(np.uint16)
    ids[np.random.default_rng(1).random(ids.shape) < 0.15] = 0
    ids[2, 3:6] = 0
    ends = np.append(np.flatnonzero(ids.reshape(-1) == 0) + 1, ids.size + 1)
    groups = [f"group {each % 3}" for each in range(len(ends))]
    return EvaluationText(ids, ends, (np.arange(VOCAB) % 5).astype(float), 0.0, groups)


@pytest.fixture
def data(text: EvaluationText) -> WindowData:
    """The text's windows, with up to K_ATTR different labels a position, and none at the last."""
    generator = np.random.default_rng(2)
    labels = generator.permuted(np.tile(np.arange(CONCEPTS), (*text.windows.shape, 1)), axis=-1)[..., :K_ATTR]
    labels = np.where(np.arange(K_ATTR) < generator.integers(0, K_ATTR + 1, size=(*labels.shape[:2], 1)), labels, 65535)
    labels[:, -1] = 65535
    return WindowData(text.windows, WindowLabels(labels.astype(np.uint16)))
