"""The steering evaluation finds an effect that was built in, and none where there is none."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from cocomix.modeling import Scale, Set
from cocomix.modeling.concept_edits import Edit
from cocomix.plumbing import distributed
from cocomix.plumbing.runtime import runtime
from cocomix.steering.autoencoder import concepts_edited
from cocomix.steering.effect import Bench, EditEffect, Writing, sample_concepts, steering_effects
from tests.steering.conftest import CONCEPTS, Setting, windows

SAMPLE = [3, 9, 17]


@pytest.fixture
def promoted(setting: Setting) -> torch.Tensor:
    """Tokens that the concepts of the sample promote, by construction: the mixed vector goes through to the logits."""
    model = setting.model
    for block in model.transformer.h[model.config.concept_layer :]:
        for part in (block.attn.c_proj, block.mlp.c_proj):
            part.weight.zero_()
            part.bias.zero_()
    rows = F.normalize(model.transformer.mixer.compress.weight[SAMPLE], dim=1)
    return ((rows - rows.mean(1, keepdim=True)) @ model.lm_head.weight.T).topk(4).indices


@pytest.fixture(autouse=True)
def _frozen(setting: Setting) -> None:
    setting.model.requires_grad_(False)


def measure(
    setting: Setting,
    promoted: torch.Tensor,
    model: PreTrainedModel | None = None,
    strengths: tuple[float, ...] = (-20.0, 20.0),
    edit: Callable[[int, float], Edit] = Set,
    kept: Path | None = None,
) -> list[EditEffect]:
    base, sae, *_ = setting.extractor
    bench = Bench(base, sae, SAMPLE, promoted, windows(setting, 7), Writing(4, 5, 0))
    with TemporaryDirectory() as nothing:
        return steering_effects(model or setting.model, bench, strengths, edit, kept or Path(nothing), "steering")


def test_a_concept_that_drives_its_tokens_succeeds_and_its_control_less_often(
    setting: Setting, promoted: torch.Tensor
) -> None:
    effects = measure(setting, promoted)
    assert [(each.concept, each.strength) for each in effects] == [(c, s) for s in (-20.0, 20.0) for c in SAMPLE]
    assert all(each.success for each in effects)
    for each in effects:
        change, control = (x.probability - each.unedited.probability for x in (each.edited, each.control))
        assert change * each.strength > 0
        assert change / each.strength > control / each.strength
        assert each.edited.loss != each.unedited.loss


def test_figures_are_those_of_the_text_and_of_the_written_continuations(
    setting: Setting, promoted: torch.Tensor
) -> None:
    text = windows(setting, 7)
    logits = setting.model(text, concept_edits=[Set(9, 20.0)]).logits[:, :-1]
    found = next(each for each in measure(setting, promoted) if (each.concept, each.strength) == (9, 20.0))
    probability = logits.softmax(-1)[..., promoted[1]].sum(-1).mean()
    loss = F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
    assert found.edited.probability == pytest.approx(float(probability), rel=1e-4)
    assert found.edited.loss == pytest.approx(float(loss), rel=1e-4)
    others = [each for each in measure(setting, promoted, strengths=(20.0,)) if each.concept != 9]
    assert found.control.loss == pytest.approx(sum(each.edited.loss for each in others) / 2)
    assert 0 <= found.edited.read <= 1
    assert 0 < found.edited.distinct <= 1


def test_edits_that_do_nothing_have_no_effect_and_no_success(setting: Setting, promoted: torch.Tensor) -> None:
    for each in measure(setting, promoted, edit=lambda concept, _strength: Scale(concept, 1.0)):
        assert each.edited == each.unedited == each.control
        assert not each.success
        assert each.control_success == 0


def test_the_figures_do_not_depend_on_the_callers_random_numbers_and_leave_them_alone(
    setting: Setting, promoted: torch.Tensor
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = measure(setting, promoted)
    assert torch.equal(torch.rand(3), expected)
    assert measure(setting, promoted) == first


def test_figures_do_not_depend_on_how_many_edits_share_a_batch(
    setting: Setting, promoted: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = measure(setting, promoted)
    monkeypatch.setenv("COCOMIX_MICRO_BATCH", "1")
    runtime.cache_clear()
    for one, other in zip(measure(setting, promoted), together, strict=True):
        for name in ("unedited", "edited", "control"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-4)


def test_the_effects_are_the_same_however_many_processes_share_the_edits(
    setting: Setting, promoted: torch.Tensor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = measure(setting, promoted)
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    monkeypatch.setattr(distributed, "from_first", lambda value: value)
    monkeypatch.setattr(distributed, "see", lambda path: path)
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in (2, 1, 0):  # the first one comes last, and finds what the others kept
        monkeypatch.setenv("RANK", str(rank))
        runtime.cache_clear()
        if rank:
            with pytest.raises(FileNotFoundError):
                measure(setting, promoted, kept=folder / "kept")
    assert measure(setting, promoted, kept=folder / "kept") == alone


def test_the_base_model_is_edited_through_its_autoencoder(setting: Setting, promoted: torch.Tensor) -> None:
    base, sae, *_ = setting.extractor
    text = windows(setting, 7)
    with concepts_edited(base, sae, [Set(9, 20.0)]):
        logits = base(text).logits[:, :-1]
    found = next(x for x in measure(setting, promoted, model=base) if (x.concept, x.strength) == (9, 20.0))
    loss = F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
    assert found.edited.loss == pytest.approx(float(loss), rel=1e-4)
    assert found.unedited.loss != pytest.approx(float(loss), rel=1e-4)


def test_the_sample_is_drawn_from_the_concepts_that_are_mixed(setting: Setting) -> None:
    text = windows(setting, 2)
    mixed = set(setting.model.concepts(text).indices.flatten().tolist())
    sample = sample_concepts([setting.model], text, 5)
    assert len(set(sample)) == 5
    assert set(sample) <= mixed
    assert sample != sample_concepts([setting.model], text, 5, seed=1)
    assert len(sample_concepts([setting.model], text, CONCEPTS + 1)) == len(mixed)
