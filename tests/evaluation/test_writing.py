from pathlib import Path

import pyarrow.parquet as pq
import torch
from transformers import GPT2LMHeadModel

from cocomix.evaluation.tables import write_writings
from cocomix.evaluation.text import EvaluationText
from cocomix.evaluation.writing import PROMPTS, write_on
from tests.evaluation.conftest import CONTEXT, cocomix


def test_all_models_continue_the_same_beginnings_to_the_end_of_the_window(
    gpt2: GPT2LMHeadModel, text: EvaluationText, tmp_path: Path
) -> None:
    beginnings = text.windows[[0, 3, 6], : CONTEXT // 2].tolist()
    for model in (gpt2, cocomix()):
        torch.manual_seed(1)  # what was drawn before does not matter
        writings = write_on(model, text.windows)
        assert [each.prompt for each in writings] == beginnings
        assert [len(each.written) for each in writings] == [CONTEXT - CONTEXT // 2] * PROMPTS
        assert write_on(model, text.windows) == writings
    path = tmp_path / "writings.parquet"
    assert write_writings(path, writings) == PROMPTS
    assert pq.read_table(path).to_pylist() == [each._asdict() for each in writings]


def test_a_text_of_one_window_has_one_beginning(gpt2: GPT2LMHeadModel, text: EvaluationText) -> None:
    assert len(write_on(gpt2, text.windows[:1])) == 1
