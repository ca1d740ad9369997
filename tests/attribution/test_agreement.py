import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cocomix.attribution import agreement as module
from cocomix.attribution.ablation import ablation_scores
from cocomix.attribution.agreement import Scored, agreement, main, mean_correlation, spearman
from cocomix.attribution.labelling import Strongest, gradient_scores, loss_gradient, strongest
from cocomix.params import AttributionParams, Sign
from cocomix.plumbing.artifact import Work
from cocomix.plumbing.errors import UserError
from cocomix.sae.autoencoder import Latents
from tests.attribution.conftest import LAYER, Setting
from tests.conftest import CONTEXT

PARAMS = AttributionParams(k_attr=3, score="gradient", sign="helpful", shard_tokens=640)
SHIPPED = Path(__file__).parents[2] / "params.yaml"


def publish_sae(setting: Setting) -> None:
    with Work("sae", Path("artifacts/sae"), {}, {}) as work:
        with work.write_folder() as target:
            setting.sae.save(target)
        work.finish({})
        work.publish()


def test_each_scope_is_compared_with_its_own_oracle(setting: Setting) -> None:
    ids, places = setting.ids(9), torch.tensor([2, 7, CONTEXT - 2])
    rows = agreement(setting.model, setting.sae, ids, places, PARAMS)
    ways = ["ablation", "gradient", "gradient, pre_activation", "integrated", "activation"]
    assert [(each.scope, each.option) for each in rows] == [
        (scope, way) for scope in ("sequence", "next_token") for way in ways
    ]
    for oracle in (rows[0], rows[5]):
        assert (oracle.rank, oracle.overlap) == (pytest.approx(1), 1)
    gradient, active = rows[6], rows[9]
    assert 0.3 < gradient.rank < 1
    assert gradient.rank > active.rank

    window = (torch.arange(9)[:, None] * CONTEXT + places).flatten()
    latents, exact = ablation_scores(setting.model, setting.sae, ids, "next_token")
    _, scores = gradient_scores(setting.sae, loss_gradient(setting.model, ids, LAYER, "next_token"))
    sampled = Latents(*(each[window] for each in latents))
    by_gradient, by_oracle = (
        strongest(sampled, each[window], 3, "helpful").concepts.tolist() for each in (scores, exact)
    )
    pairs = [(set(a) - {-1}, set(b) - {-1}) for a, b in zip(by_gradient, by_oracle, strict=True)]
    assert gradient.overlap == pytest.approx(sum(len(a & b) for a, b in pairs) / sum(len(b) for _, b in pairs))
    assert gradient.short == pytest.approx(np.mean([len(a) < 3 for a, _ in pairs]))


def test_more_labels_than_active_concepts_are_compared_with_those_there_are(setting: Setting) -> None:
    k_attr = setting.sae.config.k + 2
    params = PARAMS.model_copy(update={"k_attr": k_attr, "value": "pre_activation"})
    rows = agreement(setting.model, setting.sae, setting.ids(4), torch.tensor([3, 9]), params)
    short = {each.option: each.short for each in rows if each.scope == "sequence"}
    assert short["gradient"] == 1
    assert short["gradient, pre_activation"] < 1


@pytest.mark.parametrize("sign", ["released", "helpful", "absolute"])
def test_ranks_are_by_what_the_sign_calls_strong(setting: Setting, sign: Sign) -> None:
    ids, places = setting.ids(4), torch.tensor([3, 9])
    rows = agreement(setting.model, setting.sae, ids, places, PARAMS.model_copy(update={"sign": sign}))
    latents, scores = ablation_scores(setting.model, setting.sae, ids, "sequence")
    strong = {"released": scores, "helpful": -scores, "absolute": scores.abs()}[sign]
    sampled = (torch.arange(4)[:, None] * CONTEXT + places).flatten()
    expected = [spearman(latents.values[row].numpy(), strong[row].numpy()) for row in sampled]
    active = next(each for each in rows if each.option == "activation")
    assert active.rank == pytest.approx(np.mean(expected), abs=1e-6)


@given(values=st.lists(st.integers(-5, 5), min_size=3, max_size=8, unique=True), seed=st.integers(0, 9))
def test_the_rank_correlation_is_spearmans(values: list[int], seed: int) -> None:
    a = np.array(values, float)
    b = np.random.default_rng(seed).permutation(a)
    differences = a.argsort().argsort() - b.argsort().argsort()
    n = len(values)
    expected = 1 - 6 * (differences**2).sum() / (n * (n**2 - 1))
    assert spearman(a, np.exp(b)) == pytest.approx(expected)


def test_equal_values_share_a_rank_and_without_an_order_there_is_no_correlation() -> None:
    assert spearman(np.array([1.0, 1, 2]), np.array([5.0, 6, 7])) == pytest.approx(np.sqrt(3) / 2)
    assert spearman(np.array([3.0, 3, 3]), np.array([1.0, 2, 3])) is None
    assert spearman(np.array([]), np.array([])) is None


def test_scores_are_compared_by_latent_in_whatever_order_they_come() -> None:
    labels = Strongest(torch.zeros(1, 1), torch.zeros(1, 1))

    def scored(indices: list[int], values: list[float], scores: list[float]) -> Scored:
        return Scored(labels, Latents(torch.tensor([indices]), torch.tensor([values])), torch.tensor([scores]))

    one = scored([3, 8, 5, 1], [1, 1, 1, 0], [0.1, 0.2, 0.3, 9])
    other = scored([5, 3, 9, 8], [1, 1, 1, 1], [0.6, 0.4, 7, 0.5])
    assert mean_correlation([one], [other]) == pytest.approx(1)


def test_the_command_reads_the_artifacts(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    Path("params.yaml").write_text(SHIPPED.read_text().replace("integrated_steps: 8", "integrated_steps: 2"))
    publish_sae(setting)
    main(["--positions", "20", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 10
    assert rows[0]["option"] == "ablation"
    main(["--positions", "1"])
    assert len(capsys.readouterr().out.splitlines()) == 11
    with pytest.raises(UserError, match="--positions: 1000; allowed: 1 to 360"):
        main(["--positions", "1000"])


def test_the_command_compares_positions_of_the_sample_once(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_sae(setting)
    Path("params.yaml").write_text(SHIPPED.read_text())
    compared = []
    monkeypatch.setattr(module, "agreement", lambda *given: compared.append(given[2:4]) or [])
    main(["--positions", "300"])
    ((windows, places),) = compared
    assert places.tolist() == list(range(CONTEXT - 1))
    assert len({tuple(each) for each in windows.tolist()}) == 20


def test_a_base_model_in_bf16_is_refused(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_sae(setting)
    Path("params.yaml").write_text(SHIPPED.read_text())
    monkeypatch.setattr(module, "load_base", lambda *_: copy.deepcopy(setting.model).bfloat16())
    with pytest.raises(UserError, match=r"^base\.dtype: bf16: exact ablation needs fp32: "):
        main([])
