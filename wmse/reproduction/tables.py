"""Tables computed from records, beside what was published: quoted and measured never share a column.

`make_table` gives the data, a row a method, for any drawing; `wmse.reproduction.table_text` writes them out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean, stdev

from wmse.recipes import COMPARED, FLOORS, RECIPES
from wmse.records import Entry
from wmse.reproduction.paper import FIGURES, LATER, Figure, later_figures, paper_figure

MARGIN = 1.0  # points below the paper's figure that count as having reached it; fixed before any run

# On how many images the paper scored; on Tiny ImageNet very likely on half of the validation set.
SCORED_ON = {
    "cifar10": 10_000,
    "cifar100": 10_000,
    "stl10": 8_000,
    "tiny-imagenet": 5_000,
    "imagenet100": 5_000,
}


@dataclass(frozen=True)
class Outline:
    """What a table is of: data sets, methods in their order, and metrics with their short names."""

    title: str
    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    metrics: dict[str, str]


OUTLINES = {
    "table-1": Outline(
        "Accuracy in percent of a linear classifier and of 5-NN on features of ResNet-18",
        ("cifar10", "cifar100", "stl10", "tiny-imagenet"),
        (*COMPARED, "mse", *FLOORS),
        {"linear_top1": "linear", "knn5_euclidean_top1": "5-NN"},
    ),
    "imagenet-100": Outline(
        "Accuracy in percent of a linear classifier on ImageNet-100",
        ("imagenet100",),
        ("w-mse-2", "w-mse-4"),
        {"linear_top1": "top-1", "linear_top5": "top-5"},
    ),
}


@dataclass(frozen=True)
class Score:
    """One metric of runs that differ in their seeds only."""

    mean: float
    deviation: float | None  # standard deviation of the sample; None of a single run
    difference: float | None  # mean less the paper's figure; None where none is, or they are not comparable
    reached: bool | None = None  # whether that is above -MARGIN; None on other rungs and for unsure figures


@dataclass(frozen=True)
class Measured:
    """The runs of one method on one rung: equal but for their seeds."""

    rung: str
    entries: tuple[Entry, ...]  # one a seed, by seed
    images: int  # on which each was scored
    scores: dict[str, Score]  # by metric, those that every run has
    refusal: str  # why they may not be compared with the paper, or nothing

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(entry.record.seed for entry in self.entries)


@dataclass(frozen=True)
class Row:
    """One method on one data set: what the paper says, what later work says, what we measured."""

    dataset: str
    method: str
    paper: dict[str, Figure]  # by metric; likewise below
    later: dict[str, Figure]
    measured: tuple[Measured, ...]

    @property
    def has_recipe(self) -> bool:
        """Whether this book has a recipe for it; otherwise it is quoted only."""
        return f"{self.dataset}/{self.method}" in RECIPES


@dataclass(frozen=True)
class Table:
    """Rows by data set and method, and remarks on records that were left out."""

    name: str
    outline: Outline
    rows: tuple[Row, ...]
    remarks: tuple[str, ...]


def make_table(name: str, entries: Sequence[Entry], problems: Sequence[str] = ()) -> Table:
    """The table of that name from records as `wmse.records.read_records` gives them.

    Raises ValueError, listing the tables there are, if there is none of that name.
    """
    if name not in OUTLINES:
        raise ValueError(f"unknown table {name!r}; there are: {', '.join(OUTLINES)}")
    outline = OUTLINES[name]
    own = [entry for entry in entries if entry.record.recipe.dataset in outline.datasets]
    counted = [entry for entry in own if not _reason(entry)]
    remarks = [f"left out, {_reason(entry)}: {entry.folder}" for entry in own if _reason(entry)]
    counted, repeated = _last_of_each_seed(counted)
    remarks += [f"left out, a later run of its recipe and seed counts: {entry.folder}" for entry in repeated]
    remarks += [f"left out, broken: {problem}" for problem in problems]
    rows = tuple(
        _row(dataset, method, outline, counted)
        for dataset in outline.datasets
        for method in dict.fromkeys((*outline.methods, *_quoted(dataset, outline)))
    )
    return Table(name, outline, rows, tuple(remarks))


def _reason(entry: Entry) -> str:
    """Why a record cannot count, or nothing."""
    if entry.record.status != "finished":
        return entry.record.status
    if entry.record.name not in RECIPES:
        return f"{entry.record.name!r} is not the name of a recipe"
    return ""


def _last_of_each_seed(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Of runs that are equal, seed included, the one that finished last; and the others."""
    last: dict[tuple, Entry] = {}
    for entry in sorted(entries, key=lambda entry: datetime.fromisoformat(entry.record.finished)):
        last[*_kind(entry), entry.record.seed] = entry
    kept = list(last.values())
    return kept, [entry for entry in entries if entry not in kept]


def _kind(entry: Entry) -> tuple[str, str, str, int, int, int]:
    """What runs must share to be averaged: data set, method, rung, images to test, probe and train on."""
    record = entry.record
    method = record.method
    images = record.images
    counts = (images["test"], images.get("probe", images["train"]), images["train"])
    return record.recipe.dataset, method, record.budget_label, *counts


def _quoted(dataset: str, outline: Outline) -> list[str]:
    """The methods with a published figure for the table, the paper's own first."""
    return [
        figure.method
        for figure in (*FIGURES, *LATER)
        if figure.dataset == dataset and figure.metric in outline.metrics
    ]


def _row(dataset: str, method: str, outline: Outline, entries: Sequence[Entry]) -> Row:
    paper = {metric: paper_figure(dataset, method, metric) for metric in outline.metrics}
    paper = {metric: figure for metric, figure in paper.items() if figure}
    later = {metric: later_figures(dataset, method, metric) for metric in outline.metrics}
    own = [entry for entry in entries if _kind(entry)[:2] == (dataset, method)]
    kinds = sorted({_kind(entry) for entry in own}, key=_by_rung)
    measured = tuple(_measured([entry for entry in own if _kind(entry) == kind], paper) for kind in kinds)
    later = {metric: figures[0] for metric, figures in later.items() if figures}
    return Row(dataset, method, paper, later, measured)


def _by_rung(kind: tuple) -> tuple:
    """The ladder's order: as recipes are listed, each before what departs from it."""
    prefixes = list(dict.fromkeys(name.split("/")[0] for name in RECIPES))
    return prefixes.index(kind[2].split(" ")[0]), *kind[2:]


def _measured(entries: list[Entry], paper: dict[str, Figure]) -> Measured:
    dataset, _, label, images, *_ = _kind(entries[0])
    refusal = ""
    if other := [field for field in ("method", "dataset") if field in entries[0].record.changes]:
        refusal = f"its {' and '.join(other)} is not what its name says"
    elif images != SCORED_ON[dataset]:
        likely = "very likely " if dataset == "tiny-imagenet" else ""
        refusal = f"scored on {images:,} images, the paper {likely}on {SCORED_ON[dataset]:,}"
    values = {
        metric: [entry.record.metrics.get(metric) for entry in entries]
        for metric in sorted({metric for entry in entries for metric in entry.record.metrics})
    }
    own_rung = not entries[0].record.changes and entries[0].record.name.split("/")[0] == dataset
    scores = {
        metric: _score(numbers, None if refusal else paper.get(metric), own_rung)
        for metric, numbers in values.items()
        if None not in numbers
    }
    ordered = tuple(sorted(entries, key=lambda entry: entry.record.seed))
    return Measured(label, ordered, images, scores, refusal)


def _score(values: list[float], figure: Figure | None, own_rung: bool) -> Score:
    mean = fmean(values)
    deviation = stdev(values) if len(values) > 1 else None
    if figure is None:
        return Score(mean, deviation, None)
    difference = mean - figure.value
    certain = own_rung and figure.certainty != "unsure"
    return Score(mean, deviation, difference, difference > -MARGIN if certain else None)
