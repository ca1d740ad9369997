from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cocomix.explain.atlas import CONCEPTS, CONTEXTS, Atlas
from cocomix.explain.build import AtlasSummary, make_atlas
from cocomix.explain.search import Found
from cocomix.params import ExplainParams
from cocomix.plumbing import distributed
from cocomix.plumbing.artifact import Work
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.interrupt import Interrupted
from cocomix.plumbing.progress import Progress
from tests.attribution.conftest import LATENTS, Setting
from tests.conftest import CONTEXT, VOCAB, stopped_beyond

PARAMS = ExplainParams(
    tokens=60 * CONTEXT,
    held_out_tokens=10_000,
    contexts=3,
    quantiles=4,
    before=5,
    after=2,
    sample=50,
    shown=6,
    label_tokens=3,
    held_out=20,
    shard_tokens=256,
    model={"contexts": 3},
)


def made(setting: Setting, jobs: int = 1, key: str = "", params: ExplainParams = PARAMS) -> tuple[Atlas, AtlasSummary]:
    """The atlas, made by `jobs` processes one after the other; the first one, which ends it, comes last."""
    out = Path(f"artifacts/atlas{jobs}{key}")
    with (
        Work("explain", out, {}, {"jobs": jobs, "key": key}) as work,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(distributed, "barrier", lambda: None)
        patch.setattr(distributed, "from_first", lambda value: value)
        patch.setattr(distributed, "see", lambda path: path)
        for rank in reversed(range(jobs)):
            patch.setenv("RANK", str(rank))
            patch.setenv("WORLD_SIZE", str(jobs))
            summary = make_atlas(work, setting.model, setting.sae, setting.tokens, params)
        patch.undo()
        work.finish({"concepts": setting.sae.config.concepts, "context": CONTEXT})
        work.publish()
    assert summary
    return Atlas(out), summary


@pytest.fixture
def atlas(setting: Setting) -> Atlas:
    return made(setting)[0]


def test_any_number_of_processes_makes_the_same_atlas(setting: Setting) -> None:
    alone, summary = made(setting)
    several, same = made(setting, jobs=3)
    assert several.manifest.files == alone.manifest.files
    assert same == summary
    assert summary.tokens == 60 * CONTEXT
    assert summary.concepts == LATENTS >= summary.fired >= summary.scored > 0
    assert sorted(summary.auc_quartiles) == summary.auc_quartiles


def test_what_an_interrupted_process_saw_is_kept_and_the_atlas_is_the_same(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = made(setting)[0].manifest.files
    with stopped_beyond(40 * CONTEXT), pytest.raises(Interrupted):
        made(setting, key="stopped")
    counted: list[int] = []
    monkeypatch.setattr(Progress, "advance", lambda _, amount: counted.append(amount))
    assert made(setting, key="stopped")[0].manifest.files == expected
    assert sum(counted) == (60 + 24 - 32) * CONTEXT


def test_the_atlas_is_the_same_however_much_is_computed_at_a_time(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = made(setting)[0].manifest.files
    for name, amount in {"build": 11, "cues": 3, "detection": 7, "scan": 5}.items():
        monkeypatch.setattr(f"cocomix.explain.{name}.AT_A_TIME", amount)
    assert made(setting, key="parts")[0].manifest.files == expected


def test_another_seed_reads_other_windows(setting: Setting, atlas: Atlas) -> None:
    other, _ = made(setting, key="seed", params=PARAMS.model_copy(update={"seed": 1}))
    assert other.concept(0).contexts != atlas.concept(0).contexts


def test_a_card_agrees_with_the_text(setting: Setting, atlas: Atlas) -> None:
    windows = setting.tokens.windows("train")
    for concept in range(LATENTS):
        card = atlas.concept(concept)
        kinds = [each.kind for each in card.contexts]
        assert kinds == sorted(kinds, reverse=True)
        assert kinds.count("top") <= 3
        assert kinds.count("quantile") <= 4
        top = [each for each in card.contexts if each.kind == "top"]
        assert len({each.window for each in top}) == len(top)
        assert [each.strength for each in top] == sorted((each.strength for each in top), reverse=True)
        assert card.max_strength == max((each.strength for each in card.contexts), default=0.0)
        for context in card.contexts:
            ids = windows[context.window, context.start : context.start + len(context.shown)]
            assert [each.token for each in context.shown] == ids.tolist()
            assert context.shown[context.position - context.start].strength == context.strength
            assert context.shown[0].text == atlas.texts[context.shown[0].token]
        assert card.rate == card.firings / (60 * CONTEXT)
        assert len(card.promotes) == len(card.nearest) == 6
        assert [each.share for each in card.fires_on] == sorted((each.share for each in card.fires_on), reverse=True)


def test_quantile_contexts_are_spread_over_the_strengths(atlas: Atlas) -> None:
    card = max((atlas.concept(each) for each in range(LATENTS)), key=lambda each: each.firings)
    spread = [each for each in card.contexts if each.kind == "quantile"]
    assert [each.quantile for each in spread] == [0.875, 0.625, 0.375, 0.125]
    assert [each.strength for each in spread] == sorted((each.strength for each in spread), reverse=True)
    assert spread[0].strength > card.mean_strength > spread[-1].strength


def test_tokens_that_a_concept_fires_on_have_their_share_and_lift(setting: Setting) -> None:
    every = PARAMS.model_copy(update={"sample": 10_000, "shown": VOCAB})  # no sample: all firings
    atlas, _ = made(setting, params=every)
    counts = np.array(pd.read_parquet(atlas.file("vocabulary.parquet"))["count"])
    for concept in range(0, LATENTS, 7):
        card = atlas.concept(concept)
        if not card.firings:
            continue
        assert sum(each.share for each in card.fires_on) == pytest.approx(1)
        for each in card.fires_on:
            assert each.lift == pytest.approx(each.share / (counts[each.token] / counts.sum()), rel=1e-4)


def test_labels_are_found_by_their_tokens_and_by_tokens_that_are_promoted(atlas: Atlas) -> None:
    card = next(each for each in map(atlas.concept, range(LATENTS)) if each.fires_on and each.label)
    assert atlas.label(card.concept) == card.label
    text = card.fires_on[0].text
    found = atlas.search(f" {text.upper()} ", limit=LATENTS)
    assert card.concept in [each.concept for each in found]
    assert all(each.label == atlas.label(each.concept) for each in found)
    promoted = {each.concept for each in found if each.why == "promotes"}
    for concept in promoted:
        assert text in [each.text for each in atlas.concept(concept).promotes]
    assert len(atlas.search(text, limit=1)) == 1
    assert atlas.search("no such token") == atlas.search("  ") == []


def test_a_search_finds_what_a_walk_through_the_cards_finds_in_the_same_order(atlas: Atlas) -> None:
    cards = [atlas.concept(each) for each in range(LATENTS)]

    def walked(wanted: str) -> list[Found]:
        found: list[tuple[float, Found]] = []
        for card in cards:
            places = [place for place, each in enumerate(card.promotes) if each.text.strip().lower() == wanted]
            scores = {
                "label": float(wanted in card.label.lower()),
                "fires on": sum(each.share for each in card.fires_on if each.text.strip().lower() == wanted),
                "promotes": max((0.5 / (1 + each) for each in places), default=0.0),
            }
            if any(scores.values()):
                why = next(each for each, score in scores.items() if score)
                found.append((sum(scores.values()), Found(card.concept, card.label, why)))
        return [each for _, each in sorted(found, key=lambda each: -each[0])]

    for wanted in ("w9", "w3", "w1", "near", "t", "q"):
        assert atlas.search(wanted, limit=LATENTS) == walked(wanted)
        assert atlas.search(wanted, limit=2) == walked(wanted)[:2]


def test_the_rows_of_many_concepts_are_those_of_each(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocomix.explain.tables.GROUP", 7)
    atlas, _ = made(setting)
    rows = atlas.stored_rows(0, LATENTS)
    assert rows == [row for concept in range(LATENTS) for row in atlas.stored_rows(concept, concept + 1)]
    assert rows[7:19] == atlas.stored_rows(7, 19)
    for row, card in zip(rows, map(atlas.concept, range(LATENTS)), strict=True):
        shown = [[token.token for token in each.shown] for each in card.contexts]
        assert [each["tokens"] for each in row["contexts"]] == shown


def test_a_number_that_is_no_concept_is_an_error(atlas: Atlas) -> None:
    for concept in (-1, LATENTS):
        with pytest.raises(IndexError, match=f"there are {LATENTS}, from 0"):
            atlas.label(concept)
        with pytest.raises(IndexError):
            atlas.concept(concept)


def test_the_tables_are_plain_for_pandas(atlas: Atlas) -> None:
    concepts = pd.read_parquet(atlas.file(CONCEPTS))
    contexts = pd.read_parquet(atlas.file(CONTEXTS))
    assert concepts["concept"].tolist() == list(range(LATENTS))
    assert contexts["concept"].is_monotonic_increasing
    lengths = [contexts[each].str.len() for each in ("tokens", "strengths")]
    assert (lengths[0] == lengths[1]).all()


def test_a_concept_that_never_fires_has_an_empty_card(setting: Setting) -> None:
    setting.sae.latent_bias[3] = -1e3
    atlas, summary = made(setting, key="silent")
    card = atlas.concept(3)
    assert (card.label, card.auc, card.firings, card.max_strength) == ("", None, 0, 0.0)
    assert card.fires_on == card.contexts == []
    assert summary.fired < LATENTS


def test_an_autoencoder_of_another_width_is_an_error(setting: Setting) -> None:
    setting.sae.config = setting.sae.config.model_copy(update={"d_model": 64})
    with pytest.raises(UserError, match="is for width 64, the base model's is 32"):
        made(setting)


def test_labels_tell_where_concepts_fire_better_than_chance(setting: Setting) -> None:
    # Concepts that are tokens: the stream at the layer is the token's embedding in the main.
    setting.model.transformer.wte.weight.mul_(20)
    setting.sae.encoder.copy_(torch.nn.functional.normalize(setting.model.transformer.wte.weight[:LATENTS], dim=1))
    _, summary = made(setting, key="tokens", params=PARAMS.model_copy(update={"tokens": 96 * CONTEXT}))
    assert summary.auc > 0.6
