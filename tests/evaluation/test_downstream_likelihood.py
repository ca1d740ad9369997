"""Log-likelihoods of continuations, against one plain forward pass for each text."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from cocomix.evaluation import downstream_likelihood
from cocomix.evaluation.downstream_likelihood import Likelihood, Request, log_likelihoods
from tests.evaluation import downstream_project
from tests.evaluation.downstream_processes import REQUESTS
from tests.modeling.conftest import MAIN, named, tiny

CONTEXT = 48
TOKENS = st.lists(st.integers(1, 60), min_size=1, max_size=12).map(tuple)


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=CONTEXT, vocab_size=61, initializer_range=0.2)
    config.bos_token_id = config.eos_token_id = 0
    return GPT2LMHeadModel(config).eval()


@torch.no_grad()
def plainly(model: PreTrainedModel, request: Request) -> Likelihood:
    """What the model gives each token of the continuation, in one pass over the whole text."""
    count = len(request.continuation)
    text = torch.tensor([*request.context, *request.continuation])[-(CONTEXT + 1) :]
    rows = model(text[None, :-1]).logits[0, -count:].log_softmax(-1)
    total = rows.gather(-1, text[-count:, None]).double().sum()
    return Likelihood(float(total), bool((rows.argmax(-1) == text[-count:]).all()))


def agree(found: list[Likelihood], expected: list[Likelihood]) -> None:
    assert [each.log_likelihood for each in found] == pytest.approx([e.log_likelihood for e in expected], abs=1e-4)
    assert [each.is_greedy for each in found] == [each.is_greedy for each in expected]


MODELS = {"gpt2": gpt2(), **{named(change): tiny(**change) for change in MAIN}}


@settings(max_examples=20)
@given(
    questions=st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=4)), min_size=1, max_size=6),
    batch_tokens=st.sampled_from([1, 40, 1000]),
    name=st.sampled_from(sorted(MODELS)),
)
def test_questions_with_any_number_of_choices_are_scored_as_each_text_by_itself(
    questions: list[tuple[tuple[int, ...], list[tuple[int, ...]]]], batch_tokens: int, name: str
) -> None:
    requests = [Request(context, choice) for context, choices in questions for choice in choices]
    found = log_likelihoods(MODELS[name], requests, CONTEXT, batch_tokens, "test")
    agree(found, [plainly(MODELS[name], each) for each in requests])


@pytest.mark.parametrize("name", MODELS)
def test_a_text_that_is_too_long_loses_the_beginning_of_its_context(name: str) -> None:
    text = torch.randint(1, 61, (100,), generator=torch.Generator().manual_seed(1)).tolist()
    requests = [Request(tuple(text[:70]), tuple(text[70 : 70 + count])) for count in (1, 5, 30)]
    requests.append(Request(tuple(text[:10]), tuple(text[10 : 10 + CONTEXT])))
    agree(log_likelihoods(MODELS[name], requests, CONTEXT, 200, "test"), [plainly(MODELS[name], r) for r in requests])


def test_a_continuation_that_is_too_long_by_itself_is_predicted_in_windows_side_by_side() -> None:
    text = torch.randint(1, 61, (120,), generator=torch.Generator().manual_seed(2)).tolist()
    (found,) = log_likelihoods(MODELS["gpt2"], [Request(tuple(text[:10]), tuple(text[10:]))], CONTEXT, 200, "test")
    windows = [Request((text[s - 1],), tuple(text[s : s + CONTEXT])) for s in range(10, 120, CONTEXT)]
    expected = [plainly(MODELS["gpt2"], each).log_likelihood for each in windows]
    assert found.log_likelihood == pytest.approx(sum(expected), abs=1e-4)


def test_the_likeliest_continuation_is_recognised() -> None:
    model, context = MODELS["gpt2"], (5, 9, 2)
    ids = model.generate(torch.tensor([context]), max_new_tokens=4, do_sample=False, eos_token_id=None)[0].tolist()
    likeliest = tuple(ids[3:])
    others = (*likeliest[:3], likeliest[3] % 60 + 1)
    found = log_likelihoods(model, [Request(context, likeliest), Request(context, others)], CONTEXT, 99, "test")
    assert [each.is_greedy for each in found] == [True, False]


def test_a_context_is_read_once_and_the_head_computes_what_is_asked_for() -> None:
    read, computed = [], []
    model = gpt2()
    model.transformer.wte.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].numel()))
    model.lm_head.register_forward_hook(lambda *call: computed.append(len(call[-1])))
    context, choices = tuple(range(1, 31)), [(1, 2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12)]
    log_likelihoods(model, [Request(context, choice) for choice in choices], CONTEXT, 1000, "test")
    assert read == [29, 4 * 3]
    assert computed == [4 * 3]


@pytest.mark.parametrize("choices", [1, 3])
def test_a_large_vocabulary_predicts_fewer_tokens_at_a_time_and_gives_the_same(
    choices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [
        Request((n, 9, 2, 7), tuple(range(3 + choice, 8 + choice + n % 4)))
        for n in range(1, 8)
        for choice in range(choices)
    ]
    model, computed = gpt2(), list[int]()
    model.lm_head.register_forward_hook(lambda *call: computed.append(len(call[-1])))
    whole = log_likelihoods(model, requests, CONTEXT, 1000, "test")
    assert computed == [sum(len(each.continuation) for each in requests)]
    computed.clear()
    monkeypatch.setattr(downstream_likelihood, "most_logits", lambda: 20 * model.config.vocab_size)
    agree(log_likelihoods(model, requests, CONTEXT, 1000, "test"), whole)
    assert 10 < max(computed) <= 20


def test_a_large_dictionary_of_concepts_reads_fewer_tokens_at_a_time_and_gives_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, read = tiny(num_concepts=200), list[int]()
    model.transformer.wte.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].numel()))
    requests = [Request((n, 9, 2, 7), (3, 8, n)) for n in range(1, 30)]
    whole = log_likelihoods(model, requests, CONTEXT, 1000, "test")
    assert read == [29 * 6]
    read.clear()
    monkeypatch.setattr(downstream_likelihood, "most_logits", lambda: 200 * 60)
    agree(log_likelihoods(model, requests, CONTEXT, 1000, "test"), whole)
    assert read == [60, 60, 54]


@pytest.mark.slow
def test_several_processes_share_the_work_and_all_know_all_of_it(tmp_path: Path) -> None:
    program = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program += ["-m", "tests.evaluation.downstream_processes", str(tmp_path)]
    knobs = {"OMP_NUM_THREADS": "1", "COCOMIX_DEVICE": "cpu"}
    subprocess.run([sys.executable, *program], check=True, capture_output=True, env=os.environ | knobs, timeout=120)
    alone = log_likelihoods(downstream_project.gpt2(), REQUESTS, downstream_project.CONTEXT, 8, "test")
    assert [(tmp_path / str(rank)).read_text().splitlines() for rank in range(2)] == [[str(alone), "3"]] * 2
