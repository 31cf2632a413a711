"""Ablations: what each choice in W-MSE does, one changed at a time, on a rung that a laptop can afford.

An `Ablation` lists the settings to compare; its runs are in the queue, and `compare` reads what came of
them from the records. The rung is `digits`; nothing here is the paper's. It ran
ablations of its own, whose figures were not found by us.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from wmse.recipes import SOLO_LEARN
from wmse.records import NO_CHANGES, Entry, Record, by_seed
from wmse.reproduction.claims import Interval, interval

SEEDS = (0, 1, 2)
BASE = "digits/w-mse-2"


class Setting(NamedTuple):
    """A recipe, perhaps with changes, and what a figure calls it."""

    label: str
    changes: Mapping[str, Any] = NO_CHANGES
    name: str = BASE  # of the recipe


@dataclass(frozen=True)
class Ablation:
    """Settings that differ in one choice. The first is what the others are compared with."""

    choice: str  # what differs, as the label of a figure's axis
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Compared:
    """What the runs of one setting scored."""

    setting: Setting
    values: dict[int, float]  # by seed, of finished runs
    breakdowns: dict[int, str]  # by seed, the error that ended a run before its time
    lead: Interval | None  # over the ablation's first setting; None of the first, and below two seeds of each
    decided: bool  # whether `lead` may be read as a verdict: three seeds of each, and no run broke down


def _changed(field: str, values: Mapping[str, Any], **always: Any) -> tuple[Setting, ...]:
    return tuple(Setting(label, always | {field: value}) for label, value in values.items())


# As many views in each step and in all: more positives, fewer images and the drops nearer to the end.
def _positives(d: int, epochs: int, drops: tuple[int, int]) -> Setting:
    more = {} if d == 4 else {"positives": d}
    return Setting(str(d), more | {"epochs": epochs, "lr_drops": drops}, "digits/w-mse-4")


_BY_QR = {"batch_size": 132, "whitening": "qr"}
ABLATIONS = {
    "distance": Ablation(
        "distance between positives",
        (Setting("cosine"), Setting("Euclidean", {"normalize": False})),
    ),
    "positives": Ablation(
        "positives of an image, d",
        (
            Setting("2", name="digits/w-mse-2-half-batch"),
            _positives(3, 43, (11, 4)),
            _positives(4, 32, (8, 3)),
            _positives(8, 16, (4, 2)),
        ),
    ),
    # 132 images a batch, because 33 = k + 1, 44, 66 and 132 divide it.
    "slice size": Ablation(
        "images in a slice",
        (
            *(Setting(str(size), {"slice_size": size, "batch_size": 132}) for size in (66, 33, 44, 132)),
            Setting("33\nby QR", {"slice_size": 33, **_BY_QR}),
            Setting("132\nby QR", {"slice_size": 132, **_BY_QR}),
            Setting("132 by QR,\nEuclidean", {"slice_size": 132, **_BY_QR, "normalize": False}),
        ),
    ),
    "iterations": Ablation(
        "permutations into slices, w_iter",
        (Setting("1"), *_changed("iterations", {"4": 4, "16": 16})),
    ),
    "whitening": Ablation(
        "whitening matrix",
        (
            Setting("Cholesky"),
            *_changed("whitening", {"ZCA": "zca", "PCA": "pca", "Newton-Schulz": "newton-schulz"}),
        ),
    ),
    "projector": Ablation(
        "hidden layer of the projector",
        (Setting("with BatchNorm"), Setting("without", {"projector_batchnorm": False})),
    ),
    "shrinkage": Ablation(
        "shrinkage of the covariance, eps",
        (Setting("0"), *_changed("whitening_eps", {"0.0001": 1e-4, "0.01": 0.01, "0.1": 0.1, "0.5": 0.5})),
    ),
    "second view": Ablation(
        "the second view",
        (
            Setting("with gradient"),
            Setting("detached", name=f"{BASE}-detached"),
            Setting("detached, twice\nthe epochs", {"epochs": 128, "lr_drops": (32, 12)}, f"{BASE}-detached"),
        ),
    ),
}
SOLO_LEARN_LABELS = {
    "detached": "second view\ndetached",
    "projector-per-view": "projector,\nview by view",
    "half-batch": "half the\nbatch",
    "lower-rate": "2/3 of the\nlearning rate",
    "cosine": "cosine\nschedule",
    "strong-jitter": "stronger\njitter",
    "solo-learn": "all of\nthese",
}


def three_w_mses(rung: str) -> Ablation:
    """W-MSE 2 as in the paper against solo-learn's differences, on a rung: each alone, then all."""
    papers = Setting("as in\nthe paper", name=f"{rung}/w-mse-2")
    others = (Setting(SOLO_LEARN_LABELS[name], name=f"{papers.name}-{name}") for name in SOLO_LEARN)
    return Ablation("difference from the paper's W-MSE 2", (papers, *others))


def compare(ablation: Ablation, entries: Sequence[Entry], metric: str = "linear_top1") -> list[Compared]:
    """What the records say of each setting: runs of just that recipe, the last of each seed.

    Raises KeyError where such a record lacks the metric.
    """
    runs = [runs_of(setting, entries) for setting in ablation.settings]
    values = [{seed: run.metrics[metric] for seed, run in own.items() if run.metrics} for own in runs]
    base = list(values[0].values())
    return [
        Compared(
            setting,
            scores,
            {seed: run.breakdown for seed, run in own.items() if run.breakdown},
            _lead(list(scores.values()), base) if number else None,
            min(len(scores), len(base)) >= len(SEEDS) and not any(run.breakdown for run in own.values()),
        )
        for number, (setting, own, scores) in enumerate(zip(ablation.settings, runs, values, strict=True))
    ]


def runs_of(setting: Setting, entries: Sequence[Entry]) -> dict[int, Record]:
    """Records by seed, those that finished or broke down; a finished one wins, then the later one."""
    broken = by_seed(entries, setting.name, setting.changes, lambda record: record.breakdown)
    return dict(sorted((broken | by_seed(entries, setting.name, setting.changes)).items()))


def _lead(values: list[float], base: list[float]) -> Interval | None:
    return interval(values, base) if min(len(values), len(base)) > 1 else None
