"""The claims of the paper's abstract and what our records say of them, by rules that `RULES` dates.

A claim that compares methods needs three seeds of each at one budget. For accuracies they give the difference
of the means with Welch's 95% interval (`verdicts`), and the verdict follows from where that interval lies:

    holds           all of it where the claim says
    fails           none of it there
    open            some of it there, or the runs of a method are unstable
    not yet tested  fewer than three seeds of a method that the claim compares

"No collapse" has no interval: its rule looks at every single run. A claim with several comparisons holds if
all of them do, and fails if one does. Each end of an interval misses the truth in 2.5% of experiments:

    a wrong "holds"    at most 2.5%, however many comparisons there are: it needs a miss in the very one that
                       breaks the claim (an intersection-union test), so it needs no correction
    a wrong "fails"    at most 5%: a miss in any comparison is enough, so the chances add up, and no claim has
                       more than two

Every claim and every rung is judged alone; nothing is corrected for their number.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from wmse.figures import METHOD_TITLES
from wmse.recipes import Recipe, get_recipe
from wmse.records import Entry, Record, by_seed
from wmse.reproduction.verdicts import MARGIN, MIN_SEEDS, Interval, interval, unstable

COMPETITIVE = MARGIN  # points of accuracy that a "competitive" method may lie behind
CLEARLY = 5.0  # points by which a method that learns must lead one that does not
COLLAPSED = 0.1  # fraction of the embedding's dimensions shared by two views; up to it a run has collapsed
# From the paper's own down.
TESTED_BUDGETS = ("cifar10", "cifar10-200", "cifar10-25", "cifar10-laptop", "cifar10-cpu", "digits")
# What a reader must know of a method at a budget, beside any comparison with it.
CAVEATS = {
    ("digits", "byol"): (
        "the recipes on digits were made around W-MSE, neither SimCLR nor BYOL was tuned there, and BYOL is "
        "undertrained after as many epochs: a lead over it says little"
    ),
    ("cifar10-25", "byol"): (
        "no method was tuned for 25 epochs; whether the momentum of BYOL's target, .99 and more, is too high "
        "for so few steps has not been tried: a lead over BYOL says little"
    ),
}


class Rule(NamedTuple):
    """A rule, the commit that fixed it, and the commit's time."""

    text: str
    commit: str
    time: str  # ISO 8601


RULES = (
    Rule("the margin of 1 point below the paper's figure", "2e81663", "2026-11-24T13:29:03+00:00"),
    Rule("the rules of the four claims", "75b6198", "2026-11-24T13:32:17+00:00"),
    Rule("digits as a rung of the ledger", "f8cf2df", "2026-11-24T19:18:32+00:00"),
    Rule("two words, unstable, reached by interval, Holm", "f6c89ee", "2026-11-27T01:15:21+00:00"),
    Rule("cifar10-25 as a rung of the ledger", "d36b898", "2026-11-27T18:11:46+00:00"),
)
Runs = Mapping[str, Sequence[Record]]  # by method


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
    metric: str = "linear_top1"  # that the rule reads; runs without a value of it do not count


def findings(claim: Claim, entries: Sequence[Entry]) -> list[Finding]:
    """What each budget says, from the paper's own down. Only finished runs of unchanged recipes count."""
    found = []
    for budget in TESTED_BUDGETS:
        finished = {method: by_seed(entries, f"{budget}/{method}").values() for method in claim.methods}
        runs = {
            method: [run for run in seeds if run.metrics.get(claim.metric) is not None]
            for method, seeds in finished.items()
        }
        if lacking := _lacking(runs):
            found.append(Finding(budget, "not yet tested", lacking))
            continue
        word, evidence = claim.decide(runs)
        caveats = [text for (place, method), text in CAVEATS.items() if place == budget and method in runs]
        found.append(Finding(budget, word, "; ".join([evidence, *caveats])))
    return found


def verdict(found: Interval, above: float) -> str:
    """The verdict on the claim that a difference is more than `above`."""
    return "holds" if found.low > above else "fails" if found.high <= above else "open"


def terms(first: Recipe, second: Recipe) -> str:
    """On what terms two recipes of one data set compare: epochs, views and steps of the first, in words."""
    views = first.epochs * first.positives / (second.epochs * second.positives)
    steps = first.epochs * second.batch_size / (second.epochs * first.batch_size)
    words = [
        f"{'as many' if ratio == 1 else f'{ratio:g} times the'} {what}"
        for ratio, what in ((views, "views"), (steps, "steps"))
    ]
    return f"{first.epochs} epochs against {second.epochs}, {' and '.join(words)}"


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
    margin = abs(above) or MARGIN
    verdicts, evidence = [], []
    for other, values in others:
        lead = interval(own, values)
        wild = unstable(own) or unstable(values)
        verdicts.append("open" if wild else verdict(lead, above))
        evidence.append(
            f"{METHOD_TITLES[first]} - {METHOD_TITLES[other]}: {lead.difference:+.2f} points, "
            f"95% interval {lead.low:+.2f} to {lead.high:+.2f}, "
            + ("unstable" if wild else f"{lead.words(margin)} of {margin:g}")
        )
    return next(word for word in ("fails", "open", "holds") if word in verdicts), "; ".join(evidence)


def _more_positives(runs: Runs) -> tuple[str, str]:
    """`_leads` of W-MSE 4 over W-MSE 2, and what its runs had more of."""
    word, evidence = _leads(runs, above=0.0)
    names = (seeds[0].name for seeds in runs.values())
    return word, f"{evidence}; {terms(*map(get_recipe, names))}"


def _no_collapse(runs: Runs) -> tuple[str, str]:
    shared = {
        method: [run.metrics["cca_dimensions"] / run.recipe.embedding_dim for run in seeds]
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
        "W-MSE 4 has a higher linear accuracy than W-MSE 2 on the same rung: the interval lies above 0. At "
        "equal epochs, as in the paper's table, four views are twice the views and twice the steps.",
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
        "cca_dimensions",
    ),
)
