"""Published figures from `paper.csv`, each with its source and its certainty.

A row is one number. Its certainty is `sure` (read in the official code or in a published text), `second-hand`
(read in a later paper or README that copies the table) or `unsure` (remembered, and found in no text; always
shown with that mark). Its origin is `paper` (Ermolov et al., ICML 2021, PMLR 139:3015-3024) or `later`
(published by others, after it).
"""

import csv
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Figure:
    """One published number, a row of `paper.csv`: the last epoch's accuracy in percent."""

    dataset: str
    method: str
    metric: str  # a key of a record's metrics
    value: float
    source: str
    certainty: str  # sure | second-hand | unsure
    encoder: str = "resnet18"
    epochs: int | None = None  # only where a cell was published for several numbers of epochs
    note: str = ""
    origin: str = "paper"  # paper | later
    protocol: str = "w-mse"  # w-mse: the paper's | own: another, which may explain a difference


def read_figures() -> list[Figure]:
    """All rows of `paper.csv`, in its order."""
    with files(__package__).joinpath("paper.csv").open(encoding="utf-8", newline="") as table:
        return [
            Figure(**row | {"value": float(row["value"]), "epochs": int(row["epochs"] or 0) or None})
            for row in csv.DictReader(table)
        ]


_ROWS = read_figures()
FIGURES = tuple(figure for figure in _ROWS if figure.origin == "paper")
LATER = tuple(figure for figure in _ROWS if figure.origin == "later")


def paper_figure(dataset: str, method: str, metric: str, epochs: int | None = None) -> Figure | None:
    """The paper's number for a cell, or None where the paper has none.

    Raises ValueError if the cell has several, for different numbers of epochs, and `epochs` is None.
    """
    figures = [
        f
        for f in FIGURES
        if (f.dataset, f.method, f.metric) == (dataset, method, metric) and epochs in (None, f.epochs)
    ]
    if len(figures) > 1:
        choices = ", ".join(str(f.epochs) for f in figures)
        raise ValueError(f"{dataset} {method} {metric} has a figure for each of {choices} epochs: say which")
    return figures[0] if figures else None


def later_figures(
    dataset: str | None = None, method: str | None = None, metric: str | None = None
) -> list[Figure]:
    """Numbers published by others after the paper; an argument that is None selects all its values."""
    return [
        f
        for f in LATER
        if dataset in (None, f.dataset) and method in (None, f.method) and metric in (None, f.metric)
    ]
