"""The claims of the paper's abstract and what our records say of them, by rules fixed before the runs.

A claim that compares methods needs three seeds of each at one budget. They give the difference of the means
with Welch's 95% interval, and the verdict follows from where that interval lies:

    holds           all of it where the claim says
    fails           none of it there
    open            some of it there
    not yet tested  fewer than three seeds of a method that the claim compares
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import NamedTuple

from wmse.figures import METHOD_TITLES
from wmse.records import Entry, Record, by_seed

MIN_SEEDS = 3  # of each method
COMPETITIVE = 1.0  # points of accuracy that a "competitive" method may lie behind
CLEARLY = 5.0  # points by which a method that learns must lead one that does not
COLLAPSED = 0.1  # fraction of the embedding's dimensions shared by two views; up to it a run has collapsed
# From the paper's own down.
TESTED_BUDGETS = ("cifar10", "cifar10-200", "cifar10-laptop", "cifar10-cpu", "digits")
Runs = Mapping[str, Sequence[Record]]  # by method


class Interval(NamedTuple):
    """A difference of two means and its 95% interval."""

    difference: float
    low: float
    high: float


class Finding(NamedTuple):
    """What the runs at one budget say of a claim."""

    budget: str
    verdict: str  # holds | fails | open | not yet tested
    evidence: str  # the numbers behind it, in words; for "not yet tested", what is missing


class Claim(NamedTuple):
    """A claim of the paper's abstract, and the rule that decides it."""

    name: str
    text: str
    rule: str
    methods: tuple[str, ...]  # whose runs it needs
    decide: Callable[[Runs], tuple[str, str]]  # runs -> verdict, evidence


def findings(claim: Claim, entries: Sequence[Entry]) -> list[Finding]:
    """What each budget says, from the paper's own down. Only finished runs of unchanged recipes count."""
    found = []
    for budget in TESTED_BUDGETS:
        runs = {method: list(by_seed(entries, f"{budget}/{method}").values()) for method in claim.methods}
        lacking = _lacking(runs)
        found.append(Finding(budget, *(("not yet tested", lacking) if lacking else claim.decide(runs))))
    return found


def interval(first: Sequence[float], second: Sequence[float]) -> Interval:
    """The mean of `first` less that of `second`, with Welch's 95% interval; two values of each at least."""
    from scipy.stats import ttest_ind

    difference = fmean(first) - fmean(second)
    if len({*first}) == len({*second}) == 1:  # without any variance the interval is a point
        return Interval(difference, difference, difference)
    found = ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    return Interval(difference, float(found.low), float(found.high))


def verdict(found: Interval, above: float) -> str:
    """The verdict on the claim that a difference is more than `above`."""
    return "holds" if found.low > above else "fails" if found.high <= above else "open"


def _lacking(runs: Runs) -> str:
    """How many seeds are on record, where there are too few; else nothing."""
    if not any(runs.values()):
        return "no run yet"
    counts = {METHOD_TITLES[method]: len(seeds) for method, seeds in runs.items() if len(seeds) < MIN_SEEDS}
    seeds = ", ".join(f"{name} has {count or 'none'}" for name, count in counts.items())
    return seeds and f"of {MIN_SEEDS} seeds {seeds}"


def _leads(runs: Runs, above: float) -> tuple[str, str]:
    """The rule that the first method's linear accuracy exceeds each other's by more than `above`.

    The claim fails if it fails against any of the others, else it is open if it is open against any.
    """
    (first, own), *others = ((m, [run.metrics["linear_top1"] for run in runs[m]]) for m in runs)
    leads = {other: interval(own, values) for other, values in others}
    verdicts = [verdict(lead, above) for lead in leads.values()]
    evidence = "; ".join(
        f"{METHOD_TITLES[first]} - {METHOD_TITLES[other]}: {lead.difference:+.2f} points, "
        f"95% interval {lead.low:+.2f} to {lead.high:+.2f}"
        for other, lead in leads.items()
    )
    return next(word for word in ("fails", "open", "holds") if word in verdicts), evidence


def _no_collapse(runs: Runs) -> tuple[str, str]:
    shared = {
        method: [(run.metrics.get("cca_dimensions") or 0.0) / run.recipe.embedding_dim for run in seeds]
        for method, seeds in runs.items()
    }
    ends = [(METHOD_TITLES[method], 100 * min(part), 100 * max(part)) for method, part in shared.items()]
    ranges = (f"{low:.0f}% to {high:.0f}% in {title}" for title, low, high in ends)
    evidence = f"of the dimensions two views share {', '.join(ranges)}"
    if min(shared["w-mse-2"]) <= COLLAPSED:
        return "fails", evidence
    return ("holds" if max(shared["mse"]) <= COLLAPSED else "open"), evidence


CLAIMS = (
    Claim(
        "competitive",
        "W-MSE is competitive with SimCLR and BYOL.",
        f"The interval of W-MSE 2's lead in linear accuracy lies above -{COMPETITIVE:g} point, against "
        "SimCLR and against BYOL.",
        ("w-mse-2", "simclr", "byol"),
        partial(_leads, above=-COMPETITIVE),
    ),
    Claim(
        "no negatives",
        "No negatives are needed.",
        f"W-MSE 2, which has none, is more than {CLEARLY:g} points of linear accuracy ahead of the same loss "
        "without whitening, and of an encoder that was never trained.",
        ("w-mse-2", "mse", "random-encoder"),
        partial(_leads, above=CLEARLY),
    ),
    Claim(
        "positives",
        "More positives help.",
        "W-MSE 4 has a higher linear accuracy than W-MSE 2 at equal epochs: the interval lies above 0.",
        ("w-mse-4", "w-mse-2"),
        partial(_leads, above=0.0),
    ),
    Claim(
        "no collapse",
        "Whitening avoids collapse.",
        f"In every run of W-MSE 2 two views share more than {100 * COLLAPSED:g}% of the embedding's "
        "dimensions (canonical correlations of test images); in every run of the same loss without "
        "whitening, no more than that.",
        ("w-mse-2", "mse"),
        _no_collapse,
    ),
)
