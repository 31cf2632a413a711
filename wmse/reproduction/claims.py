"""The paper's claims and what our records say of them, by rules that were fixed before the runs.

A claim that compares methods needs three seeds of each on one rung. From them comes the difference of the
means with its 95% interval (Welch's), and the verdict from where that interval lies:

    holds           all of it where the claim says
    fails           none of it there
    open            the data leave it open: some of it
    not yet tested  fewer than three seeds of a method that it compares
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from wmse.figures import METHOD_TITLES
from wmse.records import Entry, Record, by_seed

SEEDS = 3  # of each method, at least
COMPETITIVE = 1.0  # points of accuracy that "competitive" may lie behind
CLEARLY = 5.0  # points by which a method that learns must be ahead of one that does not
COLLAPSED = 0.1  # share of the embedding's dimensions that two views share, below which it has collapsed
RUNGS = ("cifar10", "cifar10-200", "cifar10-cpu", "digits")  # from the paper's own down
ACCURACY, SHARED = "linear_top1", "shared dimensions"
VERDICTS = ("holds", "fails", "open", "not yet tested")


@dataclass(frozen=True)
class Interval:
    """A difference of two means and its 95% interval."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Finding:
    """What one rung says of a claim."""

    rung: str
    verdict: str  # one of VERDICTS
    evidence: str  # the numbers behind it, in words; for "not yet tested", what is missing


@dataclass(frozen=True)
class Claim:
    """A claim of the paper's abstract, and the rule that decides it."""

    name: str
    text: str
    rule: str
    methods: tuple[str, ...]  # of which it needs runs
    decide: Callable[[dict[str, list[dict]]], tuple[str, str]]  # numbers by method -> verdict, evidence


def findings(claim: Claim, entries: Sequence[Entry]) -> list[Finding]:
    """What each rung says, from the paper's own down. Only finished runs of unchanged recipes count."""
    found = []
    for rung in RUNGS:
        runs = {
            method: [_numbers(record) for record in by_seed(entries, f"{rung}/{method}").values()]
            for method in claim.methods
        }
        if any(len(seen) < SEEDS for seen in runs.values()):
            found.append(Finding(rung, "not yet tested", _lacking(runs)))
        else:
            found.append(Finding(rung, *claim.decide(runs)))
    return found


def _numbers(record: Record) -> dict:
    """A run's metrics, and which share of the embedding's dimensions two views have in common."""
    metrics = record.metrics
    return metrics | {SHARED: (metrics.get("cca_dimensions") or 0.0) / record.recipe.embedding_dim}


def _lacking(runs: dict[str, list[dict]]) -> str:
    """How many seeds are on record, where there are too few."""
    counts = {METHOD_TITLES[method]: len(seen) for method, seen in runs.items() if len(seen) < SEEDS}
    if not any(counts.values()) and len(counts) == len(runs):
        return "no run yet"
    return f"of {SEEDS} seeds " + ", ".join(f"{name} has {count or 'none'}" for name, count in counts.items())


def interval(first: Sequence[float], second: Sequence[float]) -> Interval:
    """The mean of `first` less that of `second`, with Welch's 95% interval; two values of each at least."""
    from scipy.stats import t

    shares = [variance(values) / len(values) for values in (first, second)]
    difference, error = fmean(first) - fmean(second), math.sqrt(sum(shares))
    if not error:
        return Interval(difference, difference, difference)
    freedom = sum(shares) ** 2 / sum(
        share**2 / (len(values) - 1) for share, values in zip(shares, (first, second), strict=True)
    )
    half = float(t.ppf(0.975, freedom)) * error
    return Interval(difference, difference - half, difference + half)


def verdict(found: Interval, above: float) -> str:
    """Where an interval lies, for a claim that the difference is more than `above`."""
    return "holds" if found.low > above else "fails" if found.high <= above else "open"


def _values(runs: list[dict], metric: str = ACCURACY) -> list[float]:
    return [metrics[metric] for metrics in runs]


def _words(one: str, other: str, found: Interval) -> str:
    difference = f"{METHOD_TITLES[one]} - {METHOD_TITLES[other]}: {found.difference:+.2f} points"
    return f"{difference}, 95% interval {found.low:+.2f} to {found.high:+.2f}"


def _worst(pairs: list[tuple[str, str, Interval]], above: float) -> tuple[str, str]:
    """The verdict on a claim that must hold against several: fails if it fails against any."""
    verdicts = [verdict(found, above) for _, _, found in pairs]
    worst = next(word for word in ("fails", "open", "holds") if word in verdicts)
    return worst, "; ".join(_words(*pair) for pair in pairs)


def _competitive(runs: dict[str, list[dict]]) -> tuple[str, str]:
    ours = _values(runs["w-mse-2"])
    return _worst(
        [("w-mse-2", rival, interval(ours, _values(runs[rival]))) for rival in ("simclr", "byol")],
        -COMPETITIVE,
    )


def _without_negatives(runs: dict[str, list[dict]]) -> tuple[str, str]:
    ours = _values(runs["w-mse-2"])
    others = ("mse", "random-encoder")
    return _worst([("w-mse-2", other, interval(ours, _values(runs[other]))) for other in others], CLEARLY)


def _more_positives(runs: dict[str, list[dict]]) -> tuple[str, str]:
    return _worst([("w-mse-4", "w-mse-2", interval(_values(runs["w-mse-4"]), _values(runs["w-mse-2"])))], 0.0)


def _no_collapse(runs: dict[str, list[dict]]) -> tuple[str, str]:
    shares = {method: _values(found, SHARED) for method, found in runs.items()}
    ranges = (
        f"{100 * min(found):.0f}% to {100 * max(found):.0f}% in {METHOD_TITLES[method]}"
        for method, found in shares.items()
    )
    evidence = f"of the dimensions two views share {', '.join(ranges)}"
    if min(shares["w-mse-2"]) <= COLLAPSED:
        return "fails", evidence
    return ("holds" if max(shares["mse"]) <= COLLAPSED else "open"), evidence


CLAIMS = (
    Claim(
        "competitive",
        "W-MSE is competitive with SimCLR and BYOL.",
        f"The interval of W-MSE 2's lead in linear accuracy lies above -{COMPETITIVE:g} point, against "
        "SimCLR and against BYOL.",
        ("w-mse-2", "simclr", "byol"),
        _competitive,
    ),
    Claim(
        "no negatives",
        "No negatives are needed.",
        f"W-MSE 2, which has none, is more than {CLEARLY:g} points of linear accuracy ahead of the same loss "
        "without whitening, and of an encoder that was never trained.",
        ("w-mse-2", "mse", "random-encoder"),
        _without_negatives,
    ),
    Claim(
        "positives",
        "More positives help.",
        "W-MSE 4 has a higher linear accuracy than W-MSE 2 at equal epochs: the interval lies above 0.",
        ("w-mse-4", "w-mse-2"),
        _more_positives,
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
