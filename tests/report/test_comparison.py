import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocomix.plumbing.artifact import digest_of
from cocomix.plumbing.errors import UserError
from cocomix.report.comparison import compare
from cocomix.report.costs import Cost
from cocomix.report.efficiency import Reach, Spread, equal_flops, loss_at, reach, seed_mean, spread
from cocomix.report.facts import Curve, Run, check_pipeline, read_pipeline, read_run
from tests.report.made_metrics import falling, write_pipeline, write_run

METHODS = ("ntp", "cocomix")


def curve(*losses: float) -> Curve:
    """A curve with a point every 100 tokens, at 10 FLOPs and 2 s a token."""
    tokens = np.arange(1, len(losses) + 1) * 100.0
    return Curve(tokens, tokens * 10, tokens * 2, np.array(losses))


def test_an_interval_of_a_share_ends_where_shares_end() -> None:
    values = [0.9, 0.98, 0.99]
    assert seed_mean(values).interval.high > 1
    found = seed_mean(values, high=1)
    assert (found.mean, found.interval.high) == (pytest.approx(np.mean(values)), 1)
    assert found.interval.low == seed_mean(values).interval.low


def test_a_loss_between_two_points_is_reached_between_them() -> None:
    assert reach(curve(6.0, 5.0, 4.0), 4.25) == Reach(275.0, 2750.0, 550.0)


def test_the_first_of_several_crossings_counts() -> None:
    assert reach(curve(6.0, 4.0, 6.0, 3.0), 5.0) == Reach(150.0, 1500.0, 300.0)


def test_a_loss_at_a_point_is_reached_there_and_one_below_all_nowhere() -> None:
    assert reach(curve(6.0, 5.0, 4.0), 5.0) == Reach(200.0, 2000.0, 400.0)
    assert reach(curve(6.0, 5.0, 4.0), 3.9) is None


def test_losses_at_equal_compute_are_between_points_and_none_before_the_first() -> None:
    curves = [curve(6.0, 5.0, 4.0), curve(6.0, 4.0)]
    assert equal_flops(curves) == 2000.0
    assert loss_at(curves, 1500.0) == Spread(5.25, 5.0, 5.5)
    assert loss_at(curves, 999.0) is None


def test_how_soon_a_loss_above_the_first_point_was_reached_is_not_known() -> None:
    assert reach(curve(6.0, 5.0), 7.0) is None


@given(st.lists(st.floats(1, 10), min_size=2, max_size=20), st.floats(1, 10))
def test_what_is_reached_lies_on_the_curve_where_nothing_before_is_lower(losses: list[float], loss: float) -> None:
    own = curve(*losses)
    found = reach(own, loss)
    if found is None:
        assert min(losses) > loss or losses[0] <= loss
        return
    assert own.tokens[0] <= found.tokens <= own.tokens[-1]
    assert (own.loss[own.tokens < found.tokens - 1e-6] > loss).all()
    assert np.interp(found.tokens, own.tokens, own.loss) == pytest.approx(loss)


def test_methods_are_compared_seed_by_seed(folder: Path) -> None:
    for seed, end in enumerate((4.0, 4.2)):
        write_run("ntp", seed, falling(6.0, end))
    write_run("cocomix", 0, falling(6.0, 3.0))
    write_run("cocomix", 1, falling(6.0, 4.5))  # never to 4.2
    supervision_cost = Cost(flops=5e10, seconds=200.0)
    ntp, cocomix = compare(
        {method: [read_run(method, seed) for seed in (0, 1)] for method in METHODS},
        {"ntp": (), "cocomix": ("base",)},
        {"base": supervision_cost},
        2,
    )
    assert ntp.saving is None
    assert ntp.corpora["validation"].loss == pytest.approx((4.1, 4.0, 4.2))
    saving = cocomix.saving
    assert saving is not None
    assert saving == (2, 1, None)


def test_what_was_spent_is_measured_against_the_run_with_the_same_seed(folder: Path) -> None:
    write_run("ntp", 0, falling(6.0, 4.0))
    write_run("cocomix", 0, falling(6.0, 3.0))  # comes down to 4.0 after 2/3 of the 9000 tokens behind its first point
    runs: dict[str, list[Run]] = {method: [read_run(method, 0)] for method in METHODS}
    supervision_cost = Cost(flops=5e10, seconds=200.0)
    saving = compare(runs, {"ntp": (), "cocomix": ("base",)}, {"base": supervision_cost}, 2)[1].saving
    assert saving is not None
    spent = saving.spent
    assert spent is not None
    assert spent.tokens == pytest.approx((7000, 7000, 7000))
    assert spent.tokens_saved == pytest.approx((0.3, 0.3, 0.3, None))
    assert spent.flops_ratio == pytest.approx((1.05, 1.05, 1.05, None))
    assert spent.flops_ratio_with_supervision == pytest.approx((1.3, 1.3, 1.3, None))  # 2.5e10 of ntp's 1e11 more
    assert spent.seconds_ratio == pytest.approx((0.7, 0.7, 0.7))
    assert spent.seconds_ratio_with_supervision == pytest.approx((1.0, 1.0, 1.0))  # 100 of ntp's 10000/30 s more


def test_an_estimate_says_what_other_seeds_would_do() -> None:
    values = [0.3, 0.36]
    found = seed_mean(values)
    assert found[:3] == spread(values)
    assert found.interval is not None
    assert found.interval.low == pytest.approx(0.33 - 12.706 * 0.03, abs=0.02)  # 0.03: the standard error
    assert found.interval.high == pytest.approx(0.33 + 12.706 * 0.03, abs=0.02)


def test_a_spread_is_mean_lowest_and_highest() -> None:
    assert spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)


@pytest.mark.parametrize("name", ["base", "sae", "pretrain/ntp-0"])
def test_a_plot_is_of_the_run_that_the_metrics_are_of(folder: Path, name: str) -> None:
    write_pipeline()
    write_run("ntp", 0, falling(5.0, 4.0))
    metrics, plot = Path("metrics", f"{name}.json"), Path("plots", f"{name}.csv")
    content = json.loads(metrics.read_bytes())
    metrics.write_text(json.dumps(content | {"plots": {str(plot): digest_of(plot)}}))
    check_pipeline(read_pipeline(), {"ntp-0": read_run("ntp", 0)})
    plot.write_text(plot.read_text() + "\n")
    with pytest.raises(UserError, match=f"{plot}: not what the metrics of its stage are of"):
        check_pipeline(read_pipeline(), {"ntp-0": read_run("ntp", 0)})
    if name != "pretrain/ntp-0":
        plot.unlink()
        with pytest.raises(UserError, match=f"{plot}: no such file"):
            check_pipeline(read_pipeline(), {"ntp-0": read_run("ntp", 0)})
