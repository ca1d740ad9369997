import pytest

from cocomix.report.comparison import Spread
from cocomix.report.wording import duration, over_seeds, si, signed


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "", "0"),
        (7, "", "7"),
        (0.25, "", "0.25"),
        (999, "B", "999 B"),
        (1000, "B", "1.00 kB"),
        (7120, "", "7.12 k"),
        (65536, "", "65.5 k"),
        (999_999, "", "1.00 M"),
        (3_072_000, "", "3.07 M"),
        (3.84e13, "FLOP", "38.4 TFLOP"),
        (2e20, "FLOP", "200 EFLOP"),
    ],
)
def test_figures_have_three_digits_and_a_prefix(value: float, unit: str, text: str) -> None:
    assert si(value, unit) == text.replace(" ", "\N{NO-BREAK SPACE}")


def test_durations_have_the_unit_that_people_would_choose() -> None:
    assert [duration(each) for each in (3.2, 99, 332, 11_520)] == ["3 s", "99 s", "5.5 min", "3.2 h"]


def test_what_is_shown_as_zero_has_no_sign() -> None:
    assert [signed(each, ".1f") for each in (-0.26, -0.04, 0.0, 0.04, 0.26)] == [
        "\N{MINUS SIGN}0.3",
        "0.0",
        "0.0",
        "0.0",
        "+0.3",
    ]


def test_a_spread_is_shown_only_where_there_is_one() -> None:
    assert over_seeds(Spread(4.4123, 4.4123, 4.4123), ".3f") == "4.412"
    assert over_seeds(Spread(4.41, 4.40, 4.42), ".2f") == "4.41 (4.40 to 4.42)"
    assert over_seeds(Spread(4.41, 4.40, 4.42), ".1f") == "4.4"
