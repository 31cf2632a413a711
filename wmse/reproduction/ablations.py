"""Ablations: what each choice in W-MSE does, one changed at a time, at a budget that a laptop can afford.

An `Ablation` lists the settings to compare. Its runs are in the queue, and `compare` reads their results from
the records. The budget is `digits`, so nothing here is the paper's. The paper ran ablations of its own; we
have not found their figures. A run of 64 epochs is far from its plateau, so a lead after it is a lead in
speed of learning; the ablation "longer" has four times the epochs.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from wmse.recipes import SOLO_LEARN
from wmse.records import NO_CHANGES, Entry, Record, by_seed
from wmse.reproduction.verdicts import LEVEL, MIN_SEEDS, UNDECIDED, Interval, holm, interval, unstable

SEEDS = tuple(range(MIN_SEEDS))
LATER_SEEDS = tuple(range(MIN_SEEDS, 10))  # wanted last: with three seeds only large differences are decided
BASE = "digits/w-mse-2"


class Setting(NamedTuple):
    """A recipe, perhaps with changes, and its label in figures."""

    label: str
    changes: Mapping[str, Any] = NO_CHANGES
    name: str = BASE  # of the recipe


class Ablation(NamedTuple):
    """Settings that differ in one choice; the others are compared with the first."""

    choice: str  # what differs, as the label of a figure's axis
    settings: tuple[Setting, ...]


class Compared(NamedTuple):
    """What the runs of one setting scored."""

    setting: Setting
    values: dict[int, float]  # by seed, of finished runs
    breakdowns: dict[int, str]  # by seed, the error of the run's own numbers that ended it
    lead: Interval | None  # over the first setting; None for the first, and below two seeds of each
    verdict: str  # two words on `lead`, or "unstable"; empty below three seeds of each, or after a breakdown

    @property
    def decided(self) -> bool:
        """Whether `lead` may be read as a verdict."""
        return self.verdict not in ("", "unstable")


_BY_QR = {"batch_size": 132, "whitening": "qr"}
_WHOLE_FEATURES = {"embedding_dim": 256, "slice_size": 512, "batch_size": 512}  # 256 is the encoder's number
_LONGER = {"epochs": 256, "lr_drops": (64, 24)}
ABLATIONS = {
    "distance": Ablation(
        "distance between positives", (Setting("cosine"), Setting("Euclidean", {"normalize": False}))
    ),
    "positives": Ablation(  # as many views in all, as many images in each step: more positives, fewer steps
        "positives of an image, d",
        (
            Setting("2", name="digits/w-mse-2-half-batch"),
            Setting("3", {"positives": 3, "epochs": 43, "lr_drops": (11, 4)}, "digits/w-mse-4"),
            Setting("4", {"epochs": 32, "lr_drops": (8, 3)}, "digits/w-mse-4"),
            Setting("8", {"positives": 8, "epochs": 16, "lr_drops": (4, 2)}, "digits/w-mse-4"),
        ),
    ),
    "slice size": Ablation(  # 132 images a batch, because 33 = k + 1, 44, 66 and 132 divide it
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
        (Setting("1"), Setting("4", {"iterations": 4}), Setting("16", {"iterations": 16})),
    ),
    "whitening": Ablation(
        "whitening matrix",
        (
            Setting("Cholesky"),
            Setting("ZCA", {"whitening": "zca"}),
            Setting("PCA", {"whitening": "pca"}),
            Setting("Newton-Schulz", {"whitening": "newton-schulz"}),
        ),
    ),
    "standardised": Ablation(  # the first remedy that anyone thinks of: BatchNorm, without decorrelation
        "what is done to the embeddings",
        (Setting("whitened"), Setting("standardised", {"whitening": "standardize"})),
    ),
    "embedding": Ablation(  # slices of 2k, as advised
        "dimensions of the embedding, k",
        (
            Setting("32"),
            Setting("16", {"embedding_dim": 16, "slice_size": 32}),
            Setting("64", {"embedding_dim": 64, "slice_size": 128}),
        ),
    ),
    "depth": Ablation(
        "linear layers of the projector",
        (Setting("2"), Setting("1", {"projector_layers": 1}), Setting("3", {"projector_layers": 3})),
    ),
    "no projector": Ablation(  # whitened features need a slice of twice their number: a quarter of the steps
        "projector, in batches of 512",
        (
            Setting("with", {"batch_size": 512}),
            Setting("without", {"projector_layers": 0, **_WHOLE_FEATURES}),
        ),
    ),
    "projector": Ablation(
        "hidden layer of the projector",
        (Setting("with BatchNorm"), Setting("without", {"projector_batchnorm": False})),
    ),
    "shrinkage": Ablation(
        "shrinkage of the covariance, eps",
        (Setting("0"), *(Setting(str(eps), {"whitening_eps": eps}) for eps in (0.0001, 0.01, 0.1, 0.5))),
    ),
    "second view": Ablation(
        "the second view",
        (
            Setting("with gradient"),
            Setting("detached", name=f"{BASE}-detached"),
            Setting("detached, twice\nthe epochs", {"epochs": 128, "lr_drops": (32, 12)}, f"{BASE}-detached"),
        ),
    ),
    "longer": Ablation(
        "four times the epochs",
        (
            Setting("as it is", _LONGER),
            Setting("4 permutations", {"iterations": 4, **_LONGER}),
            Setting("standardised", {"whitening": "standardize", **_LONGER}),
            Setting("detached", _LONGER, f"{BASE}-detached"),
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


def three_w_mses(budget: str) -> Ablation:
    """W-MSE 2 as in the paper against solo-learn's differences: each alone, then all, at a budget."""
    paper = Setting("as in\nthe paper", name=f"{budget}/w-mse-2")
    others = (Setting(SOLO_LEARN_LABELS[name], name=f"{paper.name}-{name}") for name in SOLO_LEARN)
    return Ablation(f"difference from the paper's W-MSE 2, {budget}", (paper, *others))


def compare(ablation: Ablation, entries: Sequence[Entry], metric: str = "linear_top1") -> list[Compared]:
    """The scores of each setting: runs of exactly that recipe, the last of each seed.

    A run without a value of the metric is left out. Raises KeyError where a record lacks the metric's name.
    """
    compared: list[Compared] = []
    for setting in ablation.settings:
        runs = runs_of(setting, entries)
        scores = {seed: run.metrics[metric] for seed, run in runs.items() if run.metrics}
        values = {seed: value for seed, value in scores.items() if value is not None}
        breakdowns = {seed: run.breakdown for seed, run in runs.items() if run.breakdown}
        own, base = list(values.values()), list((compared[0].values if compared else values).values())
        fewest = min(len(own), len(base))
        lead = interval(own, base) if compared and fewest > 1 else None
        word = ""
        if lead and fewest >= MIN_SEEDS and not breakdowns:
            word = "unstable" if unstable(own) or unstable(base) else lead.words()
        compared.append(Compared(setting, values, breakdowns, lead, word))
    return compared


def corrected_sides(ablations: Iterable[Ablation], entries: Sequence[Entry]) -> dict[tuple[str, str], str]:
    """Each decided comparison's side after Holm's correction for all of them, by choice and label.

    A setting that several ablations compare with the same base is one comparison.
    """
    found, p_values = {}, {}
    for ablation in ablations:
        for one in compare(ablation, entries):
            if one.decided:
                pair = repr((one.setting[1:], ablation.settings[0][1:]))
                found[ablation.choice, one.setting.label] = pair, one.lead.side
                p_values[pair] = one.lead.p
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return {key: side if corrected[pair] < LEVEL else UNDECIDED for key, (pair, side) in found.items()}


def runs_of(setting: Setting, entries: Sequence[Entry]) -> dict[int, Record]:
    """Records by seed that finished or broke down; a finished one before any other, then the later one."""
    broken = by_seed(entries, setting.name, setting.changes, lambda record: record.breakdown)
    return dict(sorted((broken | by_seed(entries, setting.name, setting.changes)).items()))
