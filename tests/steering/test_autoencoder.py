"""Edits through the autoencoder change the activation by what they change in its reconstruction."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from cocomix.base.hooks import residual_edited
from cocomix.modeling import Ablate, Edit, Scale, Set, Swap
from cocomix.modeling.concept_edits import Concepts
from cocomix.sae.autoencoder import Latents, SparseAutoencoder
from cocomix.steering.autoencoder import concepts_edited
from tests.modeling.test_concept_edits import applied, some_edits
from tests.steering.conftest import LAYER, Setting, autoencoder, windows

KINDS = [
    {"normalize": "token"},
    {"normalize": "none"},
    {"normalize": "whiten"},
    {"architecture": "relu"},
    {"architecture": "abstopk", "latents": 20},
]


def written_out(sae: SparseAutoencoder, hidden: Tensor, edits: list[Edit]) -> Tensor:
    """h + decode(edited) - decode(latents), on dense vectors with one entry a concept, one position at a time."""
    rows = []
    for text in hidden:
        for place, h in enumerate(text):
            normalized = sae.normalize(h[None])
            latents = sae.as_concepts(sae.encode(normalized.x))
            z = torch.zeros(sae.config.concepts).index_put((latents.indices[0],), latents.values[0].abs(), True)
            here = [each for each in edits if each.start <= place and (each.stop is None or place < each.stop)]
            both = []
            for dense in (applied(z, here, absent=0.0), z):
                signed = dense[:20] - dense[20:] if sae.config.architecture == "abstopk" else dense
                indices = torch.arange(sae.config.latents)[None]
                both.append(sae.decode(Latents(indices, signed[None])) * normalized.std + normalized.mean)
            rows.append(h + both[0][0] - both[1][0])
    return torch.stack(rows).view_as(hidden)


@pytest.mark.parametrize("kind", KINDS, ids=lambda each: "-".join(map(str, each.values())))
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=some_edits)
def test_the_edited_forward_pass_is_that_of_explicit_encoding_editing_and_decoding(
    setting: Setting, kind: dict[str, object], edits: list[Edit]
) -> None:
    base, sae, ids = setting.extractor.base, autoencoder(**kind), windows(setting, 2)
    edits = [each for each in edits if not getattr(each, "before_selection", False)]
    with concepts_edited(base, sae, edits):
        edited = base(ids).logits
    with residual_edited(base, LAYER, lambda hidden: written_out(sae, hidden, edits)):
        torch.testing.assert_close(edited, base(ids).logits, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("nothing", [[], [[], []], [Scale(3, 1.0)], [Set(3, 9.0, start=16)]], ids=str)
def test_edits_of_nothing_change_no_bit_of_the_base_model(setting: Setting, nothing: list[Edit]) -> None:
    base, sae, *_ = setting.extractor
    plain = base(windows(setting, 2)).logits
    with concepts_edited(base, sae, nothing):
        assert torch.equal(base(windows(setting, 2)).logits, plain)


def test_inside_autocast_latents_are_those_of_fp32(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    base, sae, *_ = setting.extractor
    found: list[Concepts] = []
    monkeypatch.setattr("cocomix.steering.autoencoder.edited", lambda concepts, _: found.append(concepts) or concepts)
    with torch.autocast("cpu", torch.bfloat16), concepts_edited(base, sae, [Set(3, 9.0)]):
        base(windows(setting, 2))
    assert found[0].logits.dtype == found[0].strengths.dtype == torch.float32


def test_the_base_model_is_itself_again_afterwards_also_after_an_error(setting: Setting) -> None:
    base, sae, *_ = setting.extractor
    plain = base(windows(setting, 2)).logits
    with pytest.raises(ValueError, match="no concept 40"), concepts_edited(base, sae, [Set(40, 9.0)]):
        base(windows(setting, 2))
    assert torch.equal(base(windows(setting, 2)).logits, plain)


@pytest.mark.parametrize("beams", [1, 3])
def test_edited_generation_of_the_base_model_with_a_cache_equals_generation_without(
    setting: Setting, beams: int
) -> None:
    base, sae, *_ = setting.extractor
    base.double()
    sae.double()
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "num_beams": beams}
    prompts = windows(setting, 2)[:, :7]
    mask = torch.ones_like(prompts)
    mask[1, :3] = 0
    edits = [Set(9, 8.0, start=5), Ablate(4, stop=9), Swap(3, 8)]
    with concepts_edited(base, sae, edits):
        found = [
            base.generate(prompts, attention_mask=mask, **options, use_cache=each).tolist() for each in (True, False)
        ]
    assert found[0] == found[1]
    assert found[0] != base.generate(prompts, attention_mask=mask, **options).tolist()


def test_rows_of_the_base_model_have_edits_of_their_own(setting: Setting) -> None:
    base, sae, *_ = setting.extractor
    ids, edits = windows(setting, 2), [[Set(9, 8.0)], []]
    with concepts_edited(base, sae, edits):
        together = base(ids).logits
    with concepts_edited(base, sae, edits[0]):
        first = base(ids[:1]).logits
    torch.testing.assert_close(together, torch.cat([first, base(ids[1:]).logits]), atol=1e-4, rtol=1e-4)


def test_beams_have_the_edits_of_their_row(setting: Setting) -> None:
    base, sae, *_ = setting.extractor
    ids, edits = windows(setting, 2)[:, :6], [[Set(9, 8.0)], []]
    options = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    with concepts_edited(base, sae, edits):
        together = base.generate(ids, attention_mask=torch.ones_like(ids), **options)
    for row, each in enumerate(edits):
        with concepts_edited(base, sae, each):
            alone = base.generate(ids[row, None], attention_mask=torch.ones_like(ids[row, None]), **options)
        assert together[row, : alone.shape[1]].tolist() == alone[0].tolist()


def test_embeddings_can_be_given_for_tokens(setting: Setting) -> None:
    base, sae, *_ = setting.extractor
    ids = windows(setting, 2)
    with concepts_edited(base, sae, [Set(9, 8.0, start=3)]):
        torch.testing.assert_close(base(inputs_embeds=base.get_input_embeddings()(ids)).logits, base(ids).logits)


def test_edits_before_the_selection_are_refused(setting: Setting) -> None:
    with (
        pytest.raises(ValueError, match="drop before_selection"),
        concepts_edited(setting.extractor.base, setting.extractor.sae, [[Ablate(3, before_selection=True)]]),
    ):
        pass
