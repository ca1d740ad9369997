from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cocomix.evaluation.examples import choose_examples
from cocomix.evaluation.tables import write_examples
from cocomix.tokens.window_data import WindowData
from tests.evaluation.conftest import K_ATTR, VOCAB, cocomix


@pytest.mark.parametrize("micro_batch", [1, 4, 64])
def test_examples_show_what_is_labelled_and_predicted_at_their_position(
    data: WindowData, tmp_path: Path, micro_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COCOMIX_MICRO_BATCH", str(micro_batch))
    model, read = cocomix(), list[int]()
    model.transformer.wte.register_forward_pre_hook(lambda _, inputs: read.append(len(inputs[0])))
    texts = [str(each) if each % 3 else "\n" for each in range(VOCAB)]
    examples = choose_examples(model, data, texts)
    assert max(read) == min(micro_batch, len(examples))
    assert data.labels is not None
    windows = [int(each) for each in np.linspace(0, len(data.windows) - 1, len(examples))]
    for window, example in zip(windows, examples, strict=True):
        tokens = data.windows[window].tolist()
        position = max(each for each in range(3 * len(tokens) // 4 + 1) if tokens[each] % 3)
        assert [*example.before, example.token, *example.following] == tokens
        assert tokens[position] == example.token
        assert len(example.before) == position
        assert example.labelled == [each for each in data.labels.concepts[window, position].tolist() if each != 65535]
        with torch.no_grad():
            logits = model.transformer(torch.tensor([tokens])).concept_logits[0, position]
        best = logits.softmax(-1).topk(K_ATTR)
        assert example.predicted == best.indices.tolist()
        assert example.probabilities == pytest.approx(best.values.tolist(), rel=1e-5)
    path = tmp_path / "examples.parquet"
    assert write_examples(path, examples) == len(examples)
    assert pq.read_table(path).to_pylist() == [each._asdict() for each in examples]


def test_a_window_without_visible_tokens_is_read_at_three_quarters(data: WindowData) -> None:
    for example in choose_examples(cocomix(), data, [" "] * VOCAB):
        assert len(example.before) == 3 * data.windows.shape[1] // 4
