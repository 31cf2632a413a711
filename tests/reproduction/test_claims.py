"""Verdicts follow from where an interval lies, and from nothing else than records."""

from datetime import datetime

import numpy as np
import pytest
from example_records import example_record, put

from wmse.recipes import RECIPES, get_recipe
from wmse.records import read_records
from wmse.reproduction.claims import CLAIMS, RULES, TESTED_BUDGETS, findings, terms, verdict
from wmse.reproduction.verdicts import Interval, interval

BY_NAME = {claim.name: claim for claim in CLAIMS}


def fill(root, method, values, budget="cifar10-200", metric="linear_top1", **changes):
    for seed, value in enumerate(values):
        put(root, example_record(f"{budget}/{method}", seed, metrics={metric: value}, **changes))


def found(root, name, budget="cifar10-200"):
    (one,) = (one for one in findings(BY_NAME[name], read_records(root)[0]) if one.budget == budget)
    return one


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.1, 2, "holds"), (-2, -0.1, "fails"), (-1, 1, "open"), (0.0, 1, "open")]
)
def test_the_verdict_is_where_the_interval_lies(low, high, expected):
    assert verdict(Interval((low + high) / 2, low, high), 0.0) == expected


def test_without_records_nothing_is_tested(tmp_path):
    for claim in CLAIMS:
        assert [one.budget for one in findings(claim, [])] == list(TESTED_BUDGETS)
        assert {one.verdict for one in findings(claim, [])} == {"not yet tested"}


@pytest.mark.parametrize(
    ("ours", "simclr", "byol", "expected"),
    [
        ((90.0, 90.1, 90.2), (90.1, 90.2, 90.3), (89.0, 89.1, 89.2), "holds"),
        ((88.0, 88.1, 88.2), (90.1, 90.2, 90.3), (87.0, 87.1, 87.2), "fails"),
        ((80.0, 95.0, 90.0), (90.1, 90.2, 90.3), (89.0, 89.1, 89.2), "open"),
        ((90.0, 90.1), (90.1, 90.2, 90.3), (89.0, 89.1, 89.2), "not yet tested"),
    ],
)
def test_competitive(ours, simclr, byol, expected, tmp_path):
    for method, values in {"w-mse-2": ours, "simclr": simclr, "byol": byol}.items():
        fill(tmp_path, method, values)
    assert found(tmp_path, "competitive").verdict == expected
    assert found(tmp_path, "competitive", "cifar10").verdict == "not yet tested", "budgets are never mixed"


def test_a_digit_of_a_record_changes_the_evidence(tmp_path):
    fill(tmp_path, "w-mse-4", (91.0, 91.1, 91.2))
    fill(tmp_path, "w-mse-2", (90.0, 90.1, 90.2))
    before = found(tmp_path, "positives")
    assert before.verdict == "holds" and "+1.00" in before.evidence
    fill(tmp_path, "w-mse-2", (90.0, 90.1, 90.5))
    assert "+0.90" in found(tmp_path, "positives").evidence


def test_collapse_is_judged_by_what_two_views_share(tmp_path):
    fill(tmp_path, "w-mse-2", (30.0, 31.0, 32.0), metric="cca_dimensions")
    fill(tmp_path, "mse", (1.0, 1.1, 0.9), metric="cca_dimensions")
    assert found(tmp_path, "no collapse").verdict == "holds"
    fill(tmp_path, "mse", (1.0, 20.0, 0.9), metric="cca_dimensions")
    assert found(tmp_path, "no collapse").verdict == "open"
    fill(tmp_path, "w-mse-2", (30.0, 1.0, 32.0), metric="cca_dimensions")
    assert found(tmp_path, "no collapse").verdict == "fails"


def test_a_missing_value_is_no_zero(tmp_path):
    """Counted as 0 it would say that the loss without whitening collapsed."""
    fill(tmp_path, "w-mse-2", (30.0, 31.0, 32.0), metric="cca_dimensions")
    fill(tmp_path, "mse", (1.0, None, 0.9), metric="cca_dimensions")
    one = found(tmp_path, "no collapse")
    assert (one.verdict, one.evidence) == ("not yet tested", "of 3 seeds MSE has 2")


def test_the_evidence_says_on_which_side_a_method_is_and_where_the_margin_lies(tmp_path):
    fill(tmp_path, "simclr", (93.21, 93.07, 92.77))
    fill(tmp_path, "w-mse-2", (91.36, 91.80, 91.46))
    fill(tmp_path, "byol", (62.79, 61.28, 64.16))
    one = found(tmp_path, "competitive")
    assert one.verdict == "open"
    assert "95% interval -1.99 to -0.96, behind, across the margin of 1" in one.evidence
    assert "ahead, beyond the margin of 1" in one.evidence and "undertrained" not in one.evidence
    for method, values in {"simclr": (93, 94, 93), "w-mse-2": (91, 92, 91), "byol": (62, 63, 62)}.items():
        fill(tmp_path, method, map(float, values), "digits")
    assert "BYOL is undertrained" in found(tmp_path, "competitive", "digits").evidence
    for method, values in {"simclr": (93, 94, 93), "w-mse-2": (91, 92, 91), "byol": (62, 63, 62)}.items():
        fill(tmp_path, method, map(float, values), "cifar10-25")
    assert "no method was tuned for 25 epochs" in found(tmp_path, "competitive", "cifar10-25").evidence


def test_wrong_verdicts_of_two_comparisons_are_as_rare_as_the_module_says():
    """At the limit of a claim: "holds" needs both comparisons, "fails" one of them."""
    drawn = np.random.default_rng(0).normal(size=(200, 3, 3))
    pairs = [
        [verdict(interval(ours, rival - ahead), 0.0) for rival, ahead in ((first, 0), (second, far))]
        for far in (50, 0)
        for ours, first, second in drawn
    ]
    holds = sum(pair == ["holds", "holds"] for pair in pairs[:200]) / 200  # the other rival is far behind
    fails = sum("fails" in pair for pair in pairs[200:]) / 200
    assert holds < 0.05 and holds < fails < 0.08
    assert all(len(claim.methods) <= 3 for claim in CLAIMS)


def test_runs_that_scatter_wildly_decide_nothing(tmp_path):
    fill(tmp_path, "w-mse-4", (90.0, 60.0, 95.0))
    fill(tmp_path, "w-mse-2", (10.0, 10.1, 10.2))
    one = found(tmp_path, "positives")
    assert one.verdict == "open" and "unstable" in one.evidence


def test_a_comparison_says_on_what_terms_it_is():
    on = {
        budget: terms(*(get_recipe(f"{budget}/{method}") for method in ("w-mse-4", "w-mse-2")))
        for budget in ("cifar10", "cifar10-laptop")
    }
    assert on["cifar10"] == "1000 epochs against 1000, 2 times the views and 2 times the steps"
    assert on["cifar10-laptop"] == "10 epochs against 20, as many views and as many steps"


def test_rules_are_dated_in_their_order():
    times = [datetime.fromisoformat(rule.time) for rule in RULES]
    assert times == sorted(times) and all(time.tzinfo for time in times)


@pytest.mark.parametrize("change", [{"status": "obsolete"}, {"limit": 512}])
def test_runs_that_do_not_count_are_not_counted(change, tmp_path):
    fill(tmp_path, "w-mse-4", (91.0, 91.1, 91.2), **change)
    fill(tmp_path, "w-mse-2", (90.0, 90.1, 90.2))
    assert found(tmp_path, "positives").verdict == "not yet tested"


def test_claims_name_recipes():
    for budget in TESTED_BUDGETS:
        for claim in CLAIMS:
            assert all(f"{budget}/{method}" in RECIPES for method in claim.methods)


def test_shared_dimensions_are_counted_against_the_runs_own(tmp_path):
    """The embedded images have embeddings of 32 dimensions, CIFAR-10 of 64."""
    for budget in ("digits", "cifar10-cpu"):
        fill(tmp_path, "w-mse-2", (16.0, 8.0, 16.0), budget, "cca_dimensions")
        fill(tmp_path, "mse", (1.6, 1.6, 3.2), budget, "cca_dimensions")
    small, slim = (found(tmp_path, "no collapse", budget) for budget in ("digits", "cifar10-cpu"))
    assert "25% to 50% in W-MSE 2, 5% to 10% in MSE" in small.evidence and small.verdict == "holds"
    assert "12% to 25% in W-MSE 2, 2% to 5% in MSE" in slim.evidence
