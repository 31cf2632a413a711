"""The paper's tables beside our own runs; quoted and measured numbers never share a column.

`make_table` computes one frame from the records. `as_text`, `as_markdown` and `as_page` write it for a
terminal, for Markdown with all columns, and for a page of the book, whose few columns fit on a phone.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from wmse.figures import DATASET_TITLES, METHOD_TITLES, markdown_table
from wmse.recipes import COMPARED, FLOORS, RECIPES
from wmse.records import Entry, Record
from wmse.reproduction.paper import FIGURES, LATER, Figure, later_figures, paper_figure
from wmse.reproduction.verdicts import MARGIN, MIN_SEEDS, mean_interval

# Number of images that the paper scored on; on Tiny ImageNet very likely half of the validation set.
SCORED_ON = {"cifar10": 10_000, "cifar100": 10_000, "stl10": 8_000}
SCORED_ON |= {"tiny-imagenet": 5_000, "imagenet100": 5_000}

MARKS = {"sure": "", "second-hand": "†"}
OWN_PROTOCOL = "‡"
LEGEND = f"""† second-hand: read in later work that copies it.
{OWN_PROTOCOL} in a protocol of its own, to which a difference may be due.
"paper" and "later work" are quoted; "ours" is measured: mean ± standard deviation over seeds.
"ours - paper" is given for the paper's own recipe only, which has its number of epochs.
✓ reached: our 95% interval lies above its figure less {MARGIN:g} point.
✗ not reached: it lies below that limit. No mark: it holds the limit, or has fewer than {MIN_SEEDS} seeds."""
COLUMNS = ("method", "paper", "later work", "rung", "ours", "ours - paper", "seeds", "scored on", "records")
PAGE_COLUMNS = ("method", "paper", "ours", "ours - paper", "later work")

BUDGETS = list(dict.fromkeys(name.split("/")[0] for name in RECIPES))  # from the paper's own down
SOURCE = ["origin", "encoder", "source", "note"]  # what figures of one source share


class Outline(NamedTuple):
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


class Table(NamedTuple):
    """The scores of a table, and remarks on records that were left out.

    `scores` has a row for each line and metric, in the order of the table. A line is one method on one data
    set at one budget, or a method without runs, whose columns of runs are empty. The columns:

        dataset, method, line   the line; a method's lines are numbered from 0
        metric                  a key of the records' metrics
        paper, later            the published `Figure`, or None
        budget, label, changes  "cifar10"; "cifar10 (1000 epochs), but epochs 20"; "epochs 20" or ""
        test, seeds, folders    number of test images; the seed and the folder of each run
        not_compared_because    why the runs cannot be compared with the paper, or ""
        mean, deviation         over seeds, the sample's; NaN where a run lacks the metric or is the only one
        difference, reached     of runs of the paper's own recipe: mean less the paper's figure; whether its
                                interval over seeds lies above -MARGIN, None if undecided
    """

    name: str
    title: str
    scores: pd.DataFrame
    remarks: tuple[str, ...]


def make_table(name: str, entries: Sequence[Entry], problems: Sequence[str] = ()) -> Table:
    """The table of that name from records and problems as `wmse.records.read_records` gives them.

    Raises ValueError, listing the tables there are, if there is none of that name.
    """
    if name not in OUTLINES:
        raise ValueError(f"unknown table {name!r}; there are: {', '.join(OUTLINES)}")
    outline = OUTLINES[name]
    groups, remarks = _groups(entries, outline)
    rows = []
    for dataset in outline.datasets:
        published = [figure for figure in (*FIGURES, *LATER) if figure.dataset == dataset]
        quoted = [figure.method for figure in published if figure.metric in outline.metrics]
        for method in dict.fromkeys((*outline.methods, *quoted)):
            own = [runs for kind, runs in groups.items() if kind[:2] == (dataset, method)]
            for line, runs in enumerate(own or [{}]):
                for metric in outline.metrics:
                    place = {"dataset": dataset, "method": method, "metric": metric}
                    rows.append(place | {"line": line} | _score(place, runs))
    remarks += [f"left out, broken: {problem}" for problem in problems]
    title = f"{outline.title} ({' / '.join(outline.metrics.values())})"
    return Table(name, title, pd.DataFrame(rows), tuple(remarks))


def _groups(entries: Sequence[Entry], outline: Outline) -> tuple[dict[tuple, dict[int, Entry]], list[str]]:
    """Runs that may be averaged, by what they share, then by seed; and why others were left out."""
    counted, remarks = [], []
    own = [entry for entry in entries if entry.record.scored_on == "test"]
    for folder, record in (entry for entry in own if entry.record.recipe.dataset in outline.datasets):
        if record.status != "finished":
            remarks.append(f"left out, {record.status}: {folder}")
        elif record.name not in RECIPES:
            remarks.append(f"left out, {record.name!r} is not the name of a recipe: {folder}")
        else:
            counted.append((datetime.fromisoformat(record.finished), folder, record))
    groups, replaced = {}, []
    for _, folder, record in sorted(counted, key=lambda run: run[0]):
        images = record.images
        shared = record.recipe.dataset, record.method, BUDGETS.index(record.budget), record.budget_label
        shared += images["test"], images.get("probe", images["train"]), images["train"]
        runs = groups.setdefault(shared, {})
        replaced += [runs[record.seed].folder] if record.seed in runs else []
        runs[record.seed] = Entry(folder, record)
    remarks += [f"left out, a later run of its recipe and seed counts: {path}" for path in sorted(replaced)]
    return dict(sorted(groups.items())), remarks


def _why_not_compared(record: Record) -> str:
    """Why a run cannot be compared with the paper's figure, or nothing."""
    if misnamed := [field for field in ("method", "dataset") if field in record.changes]:
        return f"its {' and '.join(misnamed)} is not what its name says"
    scored, paper = record.images["test"], SCORED_ON[record.recipe.dataset]
    likely = "very likely " if record.recipe.dataset == "tiny-imagenet" else ""
    return "" if scored == paper else f"scored on {scored:,} images, the paper {likely}on {paper:,}"


def _score(place: dict[str, str], runs: dict[int, Entry]) -> dict[str, Any]:
    """What runs, by seed, score at a place: a data set, a method and a metric."""
    own = [run for _, run in sorted(runs.items())]
    score = dict.fromkeys(("budget", "label", "changes", "test", "not_compared_because"), "")
    if own:
        first = own[0].record
        score = {"budget": first.budget, "label": first.budget_label, "changes": first.changes_label}
        score |= {"test": first.images["test"], "not_compared_because": _why_not_compared(first)}
    values = pd.Series([run.record.metrics.get(place["metric"]) for run in own], dtype=float)
    score |= {"seeds": tuple(sorted(runs)), "folders": tuple(run.folder for run in own)}
    score |= {"mean": values.mean(skipna=False), "deviation": values.std()}
    paper, later = paper_figure(**place), next(iter(later_figures(**place)), None)
    difference, reached = float("nan"), None
    own_budget = score["budget"] == place["dataset"] and not score["changes"]
    if paper and own_budget and not score["not_compared_because"]:
        difference = score["mean"] - paper.value
        if values.count() == len(own) >= MIN_SEEDS:
            found = mean_interval(list(values), paper.value - MARGIN)
            reached = True if found.low > 0 else False if found.high <= 0 else None
    return score | {"paper": paper, "later": later, "difference": difference, "reached": reached}


def as_text(table: Table) -> str:
    """For a terminal: columns padded with spaces."""
    blocks = [f"{table.name}: {table.title}"]
    for dataset, scores in table.scores.groupby("dataset", sort=False):
        rows = [COLUMNS, *(_cells(line).values() for line in _lines(scores))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        blocks.append(
            "\n  ".join([dataset, *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)])
        )
    return "\n\n".join([*blocks, LEGEND, "\n".join(notes(table))])


def as_markdown(table: Table) -> str:
    """As Markdown: a heading and a table with all columns for each data set, then the notes as a list."""
    blocks = [f"## {table.name}", f"{table.title}."]
    for dataset, scores in table.scores.groupby("dataset", sort=False):
        rows = (_cells(line).values() for line in _lines(scores))
        blocks.append(f"### {dataset}\n\n{markdown_table(COLUMNS, rows, rule='---')}")
    return "\n\n".join([*blocks, _items([*LEGEND.splitlines(), *notes(table)])])


def as_page(table: Table, link: Callable[[Path, str], str], missing: Callable[[str], str]) -> str:
    """Markdown for a page of the book, without `LEGEND`: the metrics of a cell stand one below the other.

    Each data set has a table of the methods with runs, without columns that would be empty. What was quoted
    of the other methods, how to make the runs that are missing, and the sources unfold below.

    Args:
        link: the words given as a link to the record in the folder given.
        missing: how to make a run that nobody has made, and its cost, from its recipe's name.
    """
    blocks = [f"{table.title}."]
    for dataset, scores in table.scores.groupby("dataset", sort=False):
        rows, without, wanted = [], [], {}
        for line in _lines(scores):
            first = line.iloc[0]
            cells = {column: cell.replace(" / ", "<br>") for column, cell in _cells(line).items()}
            cells |= {column: "" for column, cell in cells.items() if cell == "-"}
            method = METHOD_TITLES[first.method]
            cells["method"] = "" if first.line else method
            wanted.setdefault(method, _missing(scores, dataset, first.method))
            if not first.seeds:
                without.append(cells)
            else:
                seeds = ", ".join(map(link, first.folders, map(str, first.seeds)))
                word = "seed" if len(first.seeds) == 1 else f"{len(first.seeds)} seeds:"
                changes = f", but {first.changes}" if first.changes else ""
                cells["ours"] += f"<br>`{first.budget}`{changes}, {word} {seeds}"
                rows.append(cells)
        blocks += [f"### {DATASET_TITLES[dataset]}", _page_table(rows) if rows else "No run yet."]
        items = [f"{name}: {'; '.join(map(missing, names))}" for name, names in wanted.items() if names]
        summary = "Commands for runs on other rungs" if rows else "Quoted figures, and commands"
        if rows and without:
            names = ", ".join(cells["method"] for cells in without)
            summary = f"Without a run: {names}. Quoted figures, and commands"
        quoted = [cells for cells in without if cells["paper"] or cells["later work"]]
        table_of_quoted = [_page_table(quoted, ("method", "paper", "later work"))] if quoted else []
        blocks += [_folded(summary, *table_of_quoted, _items(items))] if without or items else []
    return "\n\n".join([*blocks, _folded("Sources, and what was left out", _items(notes(table)))])


def _page_table(rows: list[dict[str, str]], columns: Sequence[str] = PAGE_COLUMNS) -> str:
    """Those of the columns that hold something."""
    filled = [column for column in columns if any(row[column] for row in rows)]
    return markdown_table(filled, ([row[column] for column in filled] for row in rows))


def notes(table: Table) -> list[str]:
    """Sources of what is quoted, why some runs are not compared, and what was left out."""
    figures = list(filter(None, table.scores[["paper", "later"]].to_numpy().ravel()))
    quoted = pd.DataFrame(figures, columns=[field.name for field in fields(Figure)])
    sources = []
    for (origin, encoder, source, note), shared in quoted.groupby(SOURCE, sort=False):
        datasets = shared.dataset.unique()
        where = f"{DATASET_TITLES[datasets[0]]}, " if len(datasets) == 1 else ""
        methods = ", ".join(METHOD_TITLES[method] for method in shared.method.unique())
        work = "paper" if origin == "paper" else "later work"
        network = "" if encoder == "resnet18" else f" ({encoder})"
        sources.append(f"{work}, {where}{methods}{network}: {source}" + (f"; {note}" if note else ""))
    not_compared = [
        f"not compared, {DATASET_TITLES[first.dataset]} {METHOD_TITLES[first.method]}, {first.label}: "
        f"{first.not_compared_because}"
        for first in (line.iloc[0] for line in _lines(table.scores) if any(line.paper))
        if first.not_compared_because
    ]
    return [*sources, *not_compared, *table.remarks]


def _lines(scores: pd.DataFrame) -> list[pd.DataFrame]:
    """The scores of each line, a row a metric."""
    return [line for _, line in scores.groupby(["dataset", "method", "line"], sort=False)]


def _cells(line: pd.DataFrame) -> dict[str, str]:
    """The cells of a line, by `COLUMNS`; a line after the method's first leaves out what is quoted."""
    first = line.iloc[0]
    quoted = ["", ""] if first.line else [_joined(map(_figure, line[who])) for who in ("paper", "later")]
    if not first.seeds:
        state = "no run yet" if f"{first.dataset}/{first.method}" in RECIPES else "quoted only"
        ours = ["-", state, *"----"]
    else:
        difference = _joined(map(_difference, line.itertuples()))
        if first.not_compared_because and any(line.paper):
            difference = "not compared"
        seeds, folders = (", ".join(map(str, items)) for items in (first.seeds, first.folders))
        ours = [first.label, _joined(map(_mean, line.itertuples())), difference]
        ours += [f"{len(first.seeds)}: {seeds}", f"{first.test:,}", folders]
    return dict(zip(COLUMNS, [first.method, *quoted, *ours], strict=True))


def _joined(cells: Iterable[str]) -> str:
    """One cell of the cells by metric; "-" if all are."""
    text = " / ".join(cells)
    return text if text.strip("-/ ") else "-"


def _figure(figure: Figure | None) -> str:
    if not figure:
        return "-"
    return f"{figure.value:.2f}{MARKS[figure.certainty]}" + OWN_PROTOCOL * (figure.protocol == "own")


def _mean(score: Any) -> str:
    if pd.isna(score.mean):
        return "not measured"
    return f"{score.mean:.2f}" + ("" if pd.isna(score.deviation) else f" ± {score.deviation:.2f}")


def _difference(score: Any) -> str:
    """A difference, and whether the figure was reached."""
    if pd.isna(score.difference):
        return "-"
    return f"{score.difference:+.2f}{ {True: ' ✓', False: ' ✗', None: ''}[score.reached] }"


def _missing(scores: pd.DataFrame, dataset: str, method: str) -> list[str]:
    """Recipes of a method on a data set, from the paper's own budget down, without an unchanged run."""
    unchanged = scores[(scores.method == method) & (scores.changes == "")]
    made = {f"{budget}/{method}" for budget in unchanged.budget}
    ours = [name for name, recipe in RECIPES.items() if recipe.dataset == dataset]
    return [name for name in ours if name.split("/")[1] == method and name not in made]


def _items(items: Iterable[str]) -> str:
    return "\n".join("- " + item.replace("|", "\\|") for item in items)


def _folded(summary: str, *blocks: str) -> str:
    return "\n\n".join([f"<details><summary>{summary}</summary>", *filter(None, blocks), "</details>"])
