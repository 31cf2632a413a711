"""The rule by which runs are compared: an interval, two words, and a correction for many comparisons."""

import random
import statistics
from itertools import pairwise

import pytest
from scipy.stats import t as student

from wmse.reproduction.verdicts import MARGIN, SCATTER, Interval, holm, interval, mean_interval, unstable


def test_welchs_interval_is_that_of_the_formula():
    """Welch's degrees of freedom and Student's quantile, computed by hand."""
    first, second = [90.1, 90.9, 90.4, 91.3], [88.0, 89.9, 89.1]
    ours = interval(first, second)
    a, b = (statistics.variance(values) / len(values) for values in (first, second))
    freedom = (a + b) ** 2 / (a**2 / 3 + b**2 / 2)
    half = student.ppf(0.975, freedom) * (a + b) ** 0.5
    assert (ours.low, ours.high) == pytest.approx((ours.difference - half, ours.difference + half), abs=1e-9)
    assert ours.difference == pytest.approx(statistics.fmean(first) - statistics.fmean(second))
    assert ours.p == pytest.approx(2 * student.sf(ours.difference / (a + b) ** 0.5, freedom))


def test_without_variance_an_interval_is_a_point():
    assert interval([1.0, 1.0], [3.0, 3.0]) == (-2.0, -2.0, -2.0, 0.0)
    assert interval([3.0, 3.0], [3.0, 3.0]).p == 1.0
    assert mean_interval([1.0, 1.0], 3.0) == (-2.0, -2.0, -2.0, 0.0)


def test_the_interval_of_a_mean_is_students():
    values = [90.1, 90.9, 90.4]
    half = student.ppf(0.975, 2) * statistics.stdev(values) / 3**0.5
    found = mean_interval(values, 90.0)
    assert (found.difference, found.low, found.high) == pytest.approx((7 / 15, 7 / 15 - half, 7 / 15 + half))


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0, 3.0])
def test_a_difference_is_told_apart_exactly_where_its_p_value_is_below_5_percent(shift):
    rng = random.Random(0)
    for _ in range(50):
        first, second = ([rng.gauss(mean, 1) for _ in range(3)] for mean in (shift, 0.0))
        found = interval(first, second)
        assert (found.p < 0.05) == (found.side != "not told apart")
        assert interval(second, first).side == {"ahead": "behind", "behind": "ahead"}.get(
            found.side, found.side
        )


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.1, 0.9, "ahead, within the margin"),
        (0.1, 1.1, "ahead, across the margin"),
        (1.1, 2.0, "ahead, beyond the margin"),
        (-2.0, -0.97, "behind, across the margin"),
        (-3.0, -1.01, "behind, beyond the margin"),
        (-0.9, 0.9, "not told apart, within the margin"),
        (-0.9, 30.0, "not told apart, across the margin"),
        (-2.7, 3.5, "not told apart, across the margin"),
        (0.0, 0.5, "not told apart, within the margin"),
        (-MARGIN, 0.5, "not told apart, across the margin"),
    ],
)
def test_both_words_say_where_the_interval_lies(low, high, words):
    assert Interval((low + high) / 2, low, high).words() == words


def test_the_margin_can_be_another():
    assert Interval(3.0, 2.0, 4.0).words(5.0) == "ahead, within the margin"


def test_runs_that_scatter_wildly_are_unstable():
    assert unstable([30.6, 71.7, 37.1]) and not unstable([24.1, 32.0, 35.8])
    assert not unstable([0.0]) and not unstable([0.0, SCATTER]) and unstable([0.0, 2 * SCATTER])


def test_holms_correction_is_that_of_its_definition():
    assert holm([]) == [] and holm([0.03]) == [0.03]
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_correction_keeps_the_order_and_lies_between_none_and_bonferroni():
    rng = random.Random(0)
    for _ in range(20):
        values = [rng.random() ** 3 for _ in range(12)]
        corrected = holm(values)
        assert all(p <= q <= min(1, 12 * p) for p, q in zip(values, corrected, strict=True))
        ranked = [q for _, q in sorted(zip(values, corrected, strict=True))]
        assert all(q <= later for q, later in pairwise(ranked))


def test_of_settings_that_do_nothing_the_correction_alarms_in_one_experiment_of_twenty():
    """Twenty groups of three seeds against one base, all alike; uncorrected, many experiments alarm."""
    rng = random.Random(0)
    raw = corrected = 0
    for _ in range(60):
        base = [rng.gauss(0, 1) for _ in range(3)]
        found = [interval([rng.gauss(0, 1) for _ in range(3)], base).p for _ in range(20)]
        raw += min(found) < 0.05
        corrected += min(holm(found)) < 0.05
    assert corrected <= 6 < raw
