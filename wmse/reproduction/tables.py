"""The paper's tables beside our own runs; quoted and measured numbers never share a column.

`make_table` computes one frame from the records. `as_text`, `as_markdown` and `as_page` write it for a
terminal, for Markdown with all columns, and for a page of the book, whose few columns fit on a phone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from wmse.figures import DATASET_TITLES, METHOD_TITLES
from wmse.recipes import COMPARED, FLOORS, RECIPES
from wmse.records import Entry
from wmse.reproduction.paper import FIGURES, LATER, Figure, later_figures, paper_figure

MARGIN = 1.0  # points below the paper's figure that still count as reaching it; fixed before any run
# Number of images that the paper scored on; on Tiny ImageNet very likely half of the validation set.
SCORED_ON = {"cifar10": 10_000, "cifar100": 10_000, "stl10": 8_000}
SCORED_ON |= {"tiny-imagenet": 5_000, "imagenet100": 5_000}

MARKS = {"second-hand": "†", "unsure": "?"}
OWN_PROTOCOL = "‡"
LEGEND = f"""† second-hand: read in later work that copies it. ? unsure: remembered, seen nowhere.
{OWN_PROTOCOL} in a protocol of its own, to which a difference may be due.
"paper" and "later work" are quoted; "ours" is measured: mean ± standard deviation over seeds.
✓ reached, at the paper's own number of epochs: less than {MARGIN:g} point below its figure. ✗ not reached."""
NO_RUN, QUOTED_ONLY = "no run yet", "quoted only"
COLUMNS = ("method", "paper", "later work", "rung", "ours", "ours - paper", "seeds", "scored on", "records")
PAGE_COLUMNS = ("method", "paper", "ours", "ours - paper", "later work")

IMAGES = ["test", "probe", "train"]  # numbers of images to test, to train the classifiers, and to train on
KIND = ["dataset", "method", "label", *IMAGES]  # what runs must share to be averaged
NOT_MEASURED = {"budget": "", "label": "", "changes": "", "images": 0, "seeds": (), "folders": ()}
NOT_MEASURED |= {"not_compared_because": ""}


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
class Table:
    """The scores of a table, and remarks on records that were left out.

    `scores` has a row for each line and metric, in the order of the table. A line is one method on one data
    set at one budget, or a method without runs. Its columns:

        dataset, method, line   the line; a method's lines are numbered from 0
        metric                  a key of the records' metrics
        paper, later            the published `Figure`, or None
        budget, label, changes  "cifar10"; "cifar10 (1000 epochs), but epochs 20"; "epochs 20" or ""
        images, seeds, folders  test images; the seed and the folder of each run; empty without runs
        not_compared_because    why the runs cannot be compared with the paper, or ""
        mean, deviation         over seeds, the sample's; NaN where a run lacks the metric or is the only one
        difference, reached     mean less the paper's figure; whether it exceeds -MARGIN, None if undecided
    """

    name: str
    outline: Outline
    scores: pd.DataFrame
    remarks: tuple[str, ...]

    @property
    def title(self) -> str:
        """What the table is of, and its metrics."""
        return f"{self.outline.title} ({' / '.join(self.outline.metrics.values())})"


def make_table(name: str, entries: Sequence[Entry], problems: Sequence[str] = ()) -> Table:
    """The table of that name from records and problems as `wmse.records.read_records` gives them.

    Raises ValueError, listing the tables there are, if there is none of that name.
    """
    if name not in OUTLINES:
        raise ValueError(f"unknown table {name!r}; there are: {', '.join(OUTLINES)}")
    outline = OUTLINES[name]
    runs, remarks = _runs(entries, outline)
    rows = []
    for dataset in outline.datasets:
        published = [figure for figure in (*FIGURES, *LATER) if figure.dataset == dataset]
        quoted = [figure.method for figure in published if figure.metric in outline.metrics]
        for method in dict.fromkeys((*outline.methods, *quoted)):
            own = runs[(runs.dataset == dataset) & (runs.method == method)]
            for number, group in enumerate([group for _, group in own.groupby(KIND, sort=False)] or [own]):
                line = {"dataset": dataset, "method": method, "line": number} | _line(group)
                rows += [line | _score(line, metric, group) for metric in outline.metrics]
    remarks += [f"left out, broken: {problem}" for problem in problems]
    return Table(name, outline, pd.DataFrame(rows), tuple(remarks))


def _runs(entries: Sequence[Entry], outline: Outline) -> tuple[pd.DataFrame, list[str]]:
    """The runs that count, by budget and seed, a column for each metric; and why others were left out."""
    rows, remarks = [], []
    for folder, record in ((entry.folder, entry.record) for entry in entries):
        if record.recipe.dataset not in outline.datasets:
            continue
        if record.status != "finished":
            remarks.append(f"left out, {record.status}: {folder}")
            continue
        if record.name not in RECIPES:
            remarks.append(f"left out, {record.name!r} is not the name of a recipe: {folder}")
            continue
        row = {"dataset": record.recipe.dataset, "method": record.method, "label": record.budget_label}
        row |= {"budget": record.budget, "changes": record.changes_label, "seed": record.seed}
        row |= {"probe": record.images["train"]} | record.images | {"folder": folder}
        row["misnamed"] = " and ".join(field for field in ("method", "dataset") if field in record.changes)
        row["finished"] = datetime.fromisoformat(record.finished)
        rows.append(row | {metric: record.metrics.get(metric) for metric in outline.metrics})
    columns = [*KIND, "budget", "changes", "seed", "folder", "misnamed", "finished", *outline.metrics]
    runs = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(outline.metrics, float))
    last = runs.sort_values("finished", kind="stable").drop_duplicates([*KIND, "seed"], keep="last")
    repeated = runs.drop(last.index).folder
    remarks += [f"left out, a later run of its recipe and seed counts: {folder}" for folder in repeated]
    budgets = list(dict.fromkeys(name.split("/")[0] for name in RECIPES))  # from the paper's own down
    order = last.assign(place=last.budget.map(budgets.index)).sort_values(["place", "label", *IMAGES, "seed"])
    return order, remarks


def _line(runs: pd.DataFrame) -> dict[str, Any]:
    """The columns of a line that do not depend on the metric."""
    if runs.empty:
        return NOT_MEASURED
    first = runs.iloc[0]
    reason, paper = "", SCORED_ON[first.dataset]
    if first.misnamed:
        reason = f"its {first.misnamed} is not what its name says"
    elif first.test != paper:
        likely = "very likely " if first.dataset == "tiny-imagenet" else ""
        reason = f"scored on {first.test:,} images, the paper {likely}on {paper:,}"
    line = {"budget": first.budget, "label": first.label, "changes": first.changes, "images": first.test}
    return line | {
        "seeds": tuple(runs.seed),
        "folders": tuple(runs.folder),
        "not_compared_because": reason,
    }


def _score(line: dict[str, Any], metric: str, runs: pd.DataFrame) -> dict[str, Any]:
    """The columns of a line that depend on the metric."""
    place = line["dataset"], line["method"], metric
    paper, later = paper_figure(*place), next(iter(later_figures(*place)), None)
    mean, difference, reached = runs[metric].mean(skipna=False), float("nan"), None
    if paper and not line["not_compared_because"]:
        difference = mean - paper.value
        own_budget = line["budget"] == line["dataset"] and not line["changes"]
        if own_budget and paper.certainty != "unsure":
            reached = bool(difference > -MARGIN)
    score = {"metric": metric, "paper": paper, "later": later, "mean": mean, "deviation": runs[metric].std()}
    return score | {"difference": difference, "reached": reached}


def as_text(table: Table) -> str:
    """For a terminal: columns padded with spaces."""
    blocks = [f"{table.name}: {table.title}"]
    for dataset in table.outline.datasets:
        lines = [COLUMNS, *(tuple(_cells(line).values()) for line in _lines(table, dataset))]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
        blocks.append("\n".join([dataset, *(f"  {line}" for line in padded)]))
    return "\n\n".join([*blocks, LEGEND, "\n".join(notes(table))])


def as_markdown(table: Table) -> str:
    """As Markdown: a heading and a table with all columns for each data set, then the notes as a list."""
    blocks = [f"## {table.name}", f"{table.title}."]
    for dataset in table.outline.datasets:
        rows = [map(escaped, _cells(line).values()) for line in _lines(table, dataset)]
        blocks.append(f"### {dataset}\n\n{_markdown(COLUMNS, '---', rows)}")
    return "\n\n".join([*blocks, _items(map(escaped, (*LEGEND.splitlines(), *notes(table))))])


def as_page(table: Table, link: Callable[[Path, str], str], missing: Callable[[str], str]) -> str:
    """Markdown for a page of the book, without `LEGEND`: the metrics of a cell stand one below the other.

    An empty cell says how to fill it. Runs missing at other budgets, and the sources, unfold below.

    Args:
        link: the words given as a link to the record in the folder given.
        missing: how to make a run that nobody has made, and its cost, from its recipe's name.
    """
    blocks = [f"{table.title}."]
    for dataset in table.outline.datasets:
        rows, wanted = [], {}
        for line in _lines(table, dataset):
            cells, first = _cells(line, "<br>", ""), line.iloc[0]
            method = METHOD_TITLES[first.method]
            if first.line == 0:
                wanted[method] = _missing(table, dataset, first.method)
            if first.seeds:
                seeds = ", ".join(map(link, first.folders, map(str, first.seeds)))
                word = "seed" if len(first.seeds) == 1 else f"{len(first.seeds)} seeds:"
                changes = f", but {escaped(first.changes)}" if first.changes else ""
                cells["ours"] += f"<br>`{first.budget}`{changes}, {word} {seeds}"
            elif wanted[method]:
                cells["ours"] += f"<br>{missing(wanted[method].pop(0))}"
            cells["method"] = "" if first.line else method
            rows.append([cells[column] for column in PAGE_COLUMNS])
        blocks.append(f"### {DATASET_TITLES[dataset]}\n\n{_markdown(PAGE_COLUMNS, ':--', rows)}")
        if items := [f"{name}: {'; '.join(map(missing, names))}" for name, names in wanted.items() if names]:
            summary = f"Runs on {DATASET_TITLES[dataset]} that are missing on other rungs"
            blocks.append(_folded(summary, items))
    return "\n\n".join([*blocks, _folded("Sources, and what was left out", map(escaped, notes(table)))])


def notes(table: Table) -> list[str]:
    """Sources of what is quoted, why some runs are not compared, and what was left out."""
    sources: dict[tuple[str, ...], list[Figure]] = {}
    not_compared = []
    for line in (line for dataset in table.outline.datasets for line in _lines(table, dataset)):
        first = line.iloc[0]
        if first.not_compared_because and any(line.paper):
            place = f"{DATASET_TITLES[first.dataset]} {METHOD_TITLES[first.method]}, {first.label}"
            not_compared.append(f"not compared, {place}: {first.not_compared_because}")
        for figure in filter(None, (*line.paper, *line.later)):
            key = (figure.origin, figure.encoder, figure.source, figure.note)
            sources.setdefault(key, []).append(figure)
    return [*map(_source, sources.values()), *not_compared, *table.remarks]


def escaped(text: str) -> str:
    """The text for a cell of a Markdown table."""
    return text.replace("|", "\\|")


def _lines(table: Table, dataset: str) -> Iterator[pd.DataFrame]:
    """The scores of each line, a row a metric."""
    scores = table.scores[table.scores.dataset == dataset]
    return (line for _, line in scores.groupby(["method", "line"], sort=False))


def _cells(line: pd.DataFrame, between: str = " / ", nothing: str = "-") -> dict[str, str]:
    """The cells of a line, by `COLUMNS`; the metrics of one cell have `between` between them."""

    def joined(cells: Iterable[str]) -> str:
        found = list(cells)
        return nothing if set(found) == {"-"} else between.join(found)

    first = line.iloc[0]
    published = (line.paper, line.later) if first.line == 0 else ([], [])
    quoted = [joined(map(_figure, figures)) for figures in published]
    if not first.seeds:
        state = NO_RUN if f"{first.dataset}/{first.method}" in RECIPES else QUOTED_ONLY
        cells = [first.method, *quoted, nothing, state, *[nothing] * 4]
    else:
        difference = joined(map(_difference, line.itertuples()))
        if first.not_compared_because and any(line.paper):
            difference = "not compared"
        cells = [first.method, *quoted, first.label, joined(map(_mean, line.itertuples())), difference]
        cells += [f"{len(first.seeds)}: {', '.join(map(str, first.seeds))}", f"{first.images:,}"]
        cells.append(", ".join(map(str, first.folders)))
    return dict(zip(COLUMNS, cells, strict=True))


def _figure(figure: Figure | None) -> str:
    if not figure:
        return "-"
    mark = MARKS.get(figure.certainty, "") + (OWN_PROTOCOL if figure.protocol == "own" else "")
    return f"{figure.value:.2f}{mark}"


def _mean(score: Any) -> str:
    if pd.isna(score.mean):
        return "not measured"
    return f"{score.mean:.2f}" + ("" if pd.isna(score.deviation) else f" ± {score.deviation:.2f}")


def _difference(score: Any) -> str:
    """A difference from an unsure figure has its mark; from another, whether the figure was reached."""
    if pd.isna(score.difference):
        return "-"
    unsure = "?" if score.paper.certainty == "unsure" else ""
    return f"{score.difference:+.2f}{unsure}{ {True: ' ✓', False: ' ✗', None: ''}[score.reached] }"


def _missing(table: Table, dataset: str, method: str) -> list[str]:
    """Recipes of a method on a data set, from the paper's own budget down, without an unchanged run."""
    scores = table.scores[(table.scores.dataset == dataset) & (table.scores.method == method)]
    made = {f"{budget}/{method}" for budget in scores[scores.changes == ""].budget}
    return [
        name
        for name, recipe in RECIPES.items()
        if recipe.dataset == dataset and name.split("/")[1] == method and name not in made
    ]


def _source(figures: Sequence[Figure]) -> str:
    """Where figures with one source come from; encoders other than ResNet-18 are named."""
    one = figures[0]
    datasets = list(dict.fromkeys(DATASET_TITLES[figure.dataset] for figure in figures))
    methods = ", ".join(dict.fromkeys(METHOD_TITLES[figure.method] for figure in figures))
    work = "paper" if one.origin == "paper" else "later work"
    where = f"{datasets[0]}, " if len(datasets) == 1 else ""
    encoder = "" if one.encoder == "resnet18" else f" ({one.encoder})"
    return f"{work}, {where}{methods}{encoder}: {one.source}" + (f"; {one.note}" if one.note else "")


def _markdown(header: Sequence[str], rule: str, rows: Iterable[Iterable[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, [rule] * len(header), *rows))


def _items(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _folded(summary: str, items: Iterable[str]) -> str:
    return f"<details><summary>{summary}</summary>\n\n{_items(items)}\n\n</details>"
