"""How the settings of the budget `cifar10-laptop` are chosen: one small grid for each method of Table 1.

Each method has the same three learning rates, and two values of the setting that it most needs tuned. For
W-MSE that is the distance: with the cosine a few images can take most of the variance for themselves, on
which short runs broke down. Trials are short, and scored on validation images. The best linear accuracy is
chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wmse.recipes import get_recipe
from wmse.records import Entry, Record, by_seed

BUDGET = "cifar10-laptop"
IMAGES = 45_000  # that a trial learns from
LEARNING_RATES = (2e-3, 1e-3, 4e-3)  # the middle first
TUNED: dict[str, tuple[int, str, tuple[float, ...]]] = {  # epochs of a trial, the further setting, its values
    "w-mse-4": (1, "normalize", (False, True)),
    "w-mse-2": (2, "normalize", (False, True)),
    "simclr": (2, "temperature", (0.5, 0.2)),
    "byol": (2, "target_momentum", (0.99, 0.96)),
}


@dataclass(frozen=True)
class Trial:
    """A point of a method's grid."""

    method: str
    learning_rate: float
    value: float  # of the method's further setting

    @property
    def field(self) -> str:
        """The further setting, as a field of recipes."""
        return TUNED[self.method][1]

    @property
    def name(self) -> str:
        """Name of the recipe that is changed."""
        return f"{BUDGET}/{self.method}"

    @property
    def folder(self) -> str:
        """Of its record, below the results."""
        setting = f"{self.field}-{self.value}".replace("_", "-").lower()
        return f"tuning/{self.method}/lr-{self.learning_rate}-{setting}"

    @property
    def changes(self) -> dict[str, Any]:
        """As `Record.changes`. A tenth of the steps are warm-up."""
        named, epochs = get_recipe(self.name), TUNED[self.method][0]
        settings: dict[str, Any] = {"learning_rate": self.learning_rate, self.field: self.value}
        settings |= {"epochs": epochs, "warmup_steps": IMAGES // named.batch_size * epochs // 10}
        changes = {key: value for key, value in settings.items() if value != getattr(named, key)}
        return changes | {"scored_on": "validation"}

    def record(self, entries: Sequence[Entry]) -> Record | None:
        """The last record of the trial that finished or broke down."""
        over = by_seed(entries, self.name, self.changes, lambda run: run.metrics or run.breakdown)
        return over.get(0)


def trials(method: str) -> list[Trial]:
    """A method's grid, in the order of the queue. KeyError for a method that is not tuned."""
    return [Trial(method, rate, value) for rate in LEARNING_RATES for value in TUNED[method][2]]


def scores(method: str, entries: Sequence[Entry]) -> dict[Trial, float]:
    """Linear accuracy on validation images in percent, of trials that are over; 0 of one that broke down."""
    runs = {trial: trial.record(entries) for trial in trials(method)}
    return {trial: run.metrics.get("linear_top1") or 0.0 for trial, run in runs.items() if run}


def chosen(method: str, entries: Sequence[Entry]) -> Trial | None:
    """The best trial of a method, once all of its trials are over; until then None."""
    found = scores(method, entries)
    return max(found, key=found.__getitem__) if len(found) == len(trials(method)) else None
