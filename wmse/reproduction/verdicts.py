"""The one rule by which runs are compared: where the 95% interval of a difference lies, in two words.

The interval is Welch's, over runs with different seeds; at least `MIN_SEEDS` of each side are needed.

    ahead, behind, not told apart     the interval lies above 0, lies below 0, or contains 0
    within, across, beyond the margin it lies between -margin and +margin, contains one or both of the two,
                                      or lies beyond them
    unstable                          in place of both words: the runs of a side scatter by more than
                                      `SCATTER`, so that a mean describes none of them

Where many settings are compared, `holm` corrects for all comparisons that have a verdict.
"""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

MIN_SEEDS = 3  # of each side
MARGIN = 1.0  # points of accuracy, the least difference that matters
SCATTER = 10.0  # points: a standard deviation over seeds above it makes a setting unstable
LEVEL = 0.05  # of a test; the intervals have 1 - LEVEL
UNDECIDED = "not told apart"


class Interval(NamedTuple):
    """A difference of two means and its 95% interval."""

    difference: float
    low: float
    high: float
    p: float = float("nan")  # two-sided, of no difference

    @property
    def side(self) -> str:
        return "ahead" if self.low > 0 else "behind" if self.high < 0 else UNDECIDED

    def size(self, margin: float = MARGIN) -> str:
        """Where the interval lies beside the margin."""
        if -margin < self.low and self.high < margin:
            return "within the margin"
        return "beyond the margin" if self.low > margin or self.high < -margin else "across the margin"

    def words(self, margin: float = MARGIN) -> str:
        """Both words: "behind, across the margin"."""
        return f"{self.side}, {self.size(margin)}"


def interval(first: Sequence[float], second: Sequence[float]) -> Interval:
    """The mean of `first` less that of `second`, with Welch's 95% interval; two values of each at least."""
    from scipy.stats import ttest_ind

    difference = fmean(first) - fmean(second)
    if len({*first}) == len({*second}) == 1:  # without any variance the interval is a point
        return Interval(difference, difference, difference, float(difference == 0))
    test = ttest_ind(first, second, equal_var=False)
    found = test.confidence_interval(1 - LEVEL)
    return Interval(difference, float(found.low), float(found.high), float(test.pvalue))


def mean_interval(values: Sequence[float], target: float) -> Interval:
    """The mean less a fixed number, with Student's 95% interval over two values at least."""
    from scipy.stats import ttest_1samp

    difference = fmean(values) - target
    if len({*values}) == 1:
        return Interval(difference, difference, difference, float(difference == 0))
    test = ttest_1samp(values, target)
    found = test.confidence_interval(1 - LEVEL)
    return Interval(difference, float(found.low - target), float(found.high - target), float(test.pvalue))


def unstable(values: Sequence[float]) -> bool:
    """Whether the accuracies of one setting, in percent, scatter over seeds by more than `SCATTER` points."""
    return len(values) > 1 and stdev(values) > SCATTER


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for all comparisons made, in the order given (Holm, 1979).

    The smallest of m is multiplied by m, the next by m - 1, and so on; none falls below the one before it.
    The chance that any of those below `LEVEL` is a false alarm is at most `LEVEL`, dependent or not.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, (len(order) - rank) * p_values[place])
        corrected[place] = min(1.0, largest)
    return corrected
