import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from cocomix.models.card import Trained, model_card
from cocomix.params import InitParams, Method
from cocomix.tokens.windows import TextOrigin
from tests.modeling.conftest import LLAMA, tiny

DOCS = TextOrigin("installed-docs")
HUB = TextOrigin("hub", "someone/texts", revision="abc123")


def trained(method: Method, text: TextOrigin = DOCS) -> Trained:
    return Trained(f"{method}-0", method, text, context=48, tokens=2_048_000, flops=1.5e12, validation_loss=2.0)


def going_on(path: str, revision: str | None = None) -> str:
    init = InitParams(source="pretrained", path=path, revision=revision)
    return model_card(tiny(), trained("cocomix")._replace(init=init))


def plain() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=61, n_positions=48, n_embd=32, n_layer=2, n_head=4))


def test_the_hub_reads_the_library_the_task_and_the_dataset_from_the_head() -> None:
    head = ModelCard(model_card(tiny(), trained("cocomix", HUB))).data
    assert (head.library_name, head.pipeline_tag) == ("transformers", "text-generation")
    assert "cocomix" in head.tags
    assert head.datasets == ["someone/texts"]
    assert ModelCard(model_card(tiny(), trained("cocomix"))).data.datasets is None


def test_the_card_says_what_the_model_was_trained_on_and_what_came_of_it() -> None:
    text = ModelCard(model_card(tiny(), trained("cocomix", HUB))).text
    for fact in ("someone/texts", "abc123", "2,048,000", "1.5e+12", "2.0000 nats", "perplexity 7.39", "2502.08524"):
        assert fact in text


def test_the_card_says_from_which_model_it_went_on_and_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    card = ModelCard(going_on("someone/model", "abc123"))
    assert card.data.base_model == "someone/model"
    assert "| Went on from | `someone/model`, revision `abc123` |" in card.text
    local = going_on(str(tmp_path))
    assert "| Went on from | a model of a local folder |" in local
    assert str(tmp_path) not in local
    assert "Went on from" not in model_card(tiny(), trained("cocomix"))


def test_each_method_and_ablation_is_described_in_its_own_words() -> None:
    kinds = [tiny(), tiny(mixing="add"), tiny(mixing="none"), tiny(predicts="hidden"), tiny(predicts="nothing")]
    kinds += [tiny(predicts="nothing", mlp_width=8), tiny(**LLAMA)]
    cards = [model_card(model, trained("cocomix")) for model in kinds]
    cards += [model_card(plain(), trained(method)) for method in ("ntp", "kd", "mtp")]
    cards += [model_card(tiny(), trained("cocomix")._replace(distilled=True))]
    cards += [model_card(tiny(), trained("cocomix")._replace(shuffled=True))]
    assert len(set(cards)) == len(cards)
    assert "learned to match the distribution of a base model (knowledge distillation)" in cards[-2]
    assert "learned the concepts of other windows, as a control" in cards[-1]


def test_the_card_names_the_backbone_and_its_heads() -> None:
    card = ModelCard(model_card(tiny(**LLAMA), trained("cocomix")))
    assert "qwen3" in card.data.tags
    assert "A Qwen3 that after block 2 predicts concepts" in card.text
    assert "4 heads of queries, 2 of keys and values" in card.text
    assert "A GPT-2 that after block 2" in model_card(tiny(), trained("cocomix"))
    assert "A Llama that after block 2" in model_card(tiny(**LLAMA | {"qk_norm": False}), trained("cocomix"))


@pytest.mark.parametrize("model", [tiny(), tiny("llama"), plain()], ids=["cocomix", "cocomix-llama", "ntp"])
def test_the_ways_to_load_are_programs_and_only_a_model_of_our_own_needs_our_code(model: PreTrainedModel) -> None:
    text = model_card(model, trained("cocomix"))
    programs = [each.split("```")[0] for each in text.split("```python\n")[1:]]
    for program in programs:
        compile(program, "README.md", "exec")
    ours = "trust_remote_code" in text
    assert ours == (len(programs) == 2) == (model.config.model_type != "gpt2")


@pytest.mark.parametrize(
    ("model", "number"),
    [
        pytest.param(tiny(), 0, id="cocomix-with-the-package"),
        pytest.param(tiny(), 1, marks=pytest.mark.slow, id="cocomix-without-it"),
        pytest.param(plain(), 0, id="ntp"),
    ],
)
def test_a_way_to_load_runs_for_a_user_who_answers_no_question(
    model: PreTrainedModel, number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary = {"<|endoftext|>": 0, "The": 1, "model": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    program = model_card(model, trained("cocomix")).split("```python\n")[1 + number].split("```")[0]
    program = program.replace('path = "..."', f"path = {str(tmp_path / 'model')!r}")
    if number == 0:
        exec(program, {})
        assert capsys.readouterr().out.startswith("The model")
        return
    hidden = "import sys\nsys.modules['cocomix'] = None\n"  # as where it is not installed
    done = subprocess.run(
        [sys.executable, "-c", hidden + program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The model")
