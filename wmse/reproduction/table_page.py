"""A table for a page of the book: few and narrow columns, so that a phone shows what was measured.

The metrics of a cell stand one below the other. An empty cell says how to fill it; runs that are missing on
other rungs, and the sources, unfold below.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from wmse.figures import DATASET_TITLES, METHOD_TITLES
from wmse.recipes import RECIPES
from wmse.reproduction.table_text import (
    NO_RUN,
    QUOTED_ONLY,
    difference_cells,
    escaped,
    figure_cells,
    mean_cells,
    notes,
    title,
)
from wmse.reproduction.tables import Measured, Row, Table

HEADER = ("method", "paper", "ours", "ours - paper", "later work")


def as_page(table: Table, link: Callable[[Path, str], str], missing: Callable[[str], str]) -> str:
    """Markdown with a table a data set; its marks are explained by `wmse.reproduction.table_text.LEGEND`.

    Args:
        link: the words given as a link to the record in the folder given.
        missing: how to make a run that nobody has made, and its cost, from its recipe's name.
    """
    blocks = [title(table) + "."]
    for dataset in table.outline.datasets:
        rows = [row for row in table.rows if row.dataset == dataset]
        lines = [HEADER, [":--"] * len(HEADER)]
        lines += [line for row in rows for line in _lines(row, tuple(table.outline.metrics), link, missing)]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        blocks.append(f"### {DATASET_TITLES[dataset]}\n\n{body}")
        wanted = {METHOD_TITLES[row.method]: _missing(row)[not row.measured :] for row in rows}
        if told := [f"{name}: {'; '.join(map(missing, names))}" for name, names in wanted.items() if names]:
            blocks.append(_folded(f"Runs on {DATASET_TITLES[dataset]} that are missing on other rungs", told))
    return "\n\n".join([*blocks, _folded("Sources, and what was left out", map(escaped, notes(table)))])


def _lines(
    row: Row, metrics: Sequence[str], link: Callable[[Path, str], str], missing: Callable[[str], str]
) -> list[list[str]]:
    """One line a rung that was measured; the published figures in the first."""
    name = METHOD_TITLES[row.method]
    paper, later = (_stacked(figure_cells(figures, metrics)) for figures in (row.paper, row.later))
    if not row.measured:
        empty = f"{NO_RUN}<br>{missing(_missing(row)[0])}" if row.has_recipe else QUOTED_ONLY
        return [[name, paper, empty, "", later]]
    lines = []
    for measured in row.measured:
        difference = _stacked(difference_cells(measured, row.paper, metrics))
        if measured.refusal and row.paper:
            difference = "not compared"
        lines.append([name, paper, _ours(measured, metrics, link), difference, later])
        name = paper = later = ""
    return lines


def _ours(measured: Measured, metrics: Sequence[str], link: Callable[[Path, str], str]) -> str:
    """Means, then the rung, and every seed as a link to its record."""
    rung, _, changes = measured.rung.partition(", but ")
    label = f"`{rung.split(' ')[0]}`" + (f", but {escaped(changes)}" if changes else "")
    seeds = ", ".join(link(entry.folder, str(entry.record.seed)) for entry in measured.entries)
    word = "seed" if len(measured.seeds) == 1 else f"{len(measured.seeds)} seeds:"
    return "<br>".join([*mean_cells(measured, metrics), f"{label}, {word} {seeds}"])


def _missing(row: Row) -> list[str]:
    """Recipes of the row, from the paper's own rung down, of which no unchanged run is on record."""
    made = {entry.record.name for one in row.measured if ", but " not in one.rung for entry in one.entries}
    return [
        name
        for name, recipe in RECIPES.items()
        if name.split("/")[1] == row.method and recipe.dataset == row.dataset and name not in made
    ]


def _stacked(cells: Sequence[str]) -> str:
    return "" if set(cells) == {"-"} else "<br>".join(cells)


def _folded(summary: str, items: Iterable[str]) -> str:
    return (
        f"<details><summary>{summary}</summary>\n\n"
        + "\n".join(f"- {item}" for item in items)
        + "\n\n</details>"
    )
