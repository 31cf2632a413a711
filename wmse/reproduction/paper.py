"""Published figures from `paper.csv`, each with its source and its certainty.

A row is one number. Its certainty is `sure` (read in the official code or in a published text) or
`second-hand` (read in a later paper or README that copies the table). A figure that was read in no text has
no row: the paper's figures for ImageNet-100, and W-MSE 4's for STL-10, are missing for this reason. A row's
origin is `paper` (Ermolov et al., ICML 2021, PMLR 139:3015-3024) or `later` (published by others, after it).
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One published number, a row of `paper.csv`: the last epoch's accuracy in percent."""

    dataset: str
    method: str
    metric: str  # a key of a record's metrics
    value: float
    source: str
    certainty: str  # sure | second-hand
    encoder: str = "resnet18"
    epochs: int | None = None  # only where the paper's table has several numbers of epochs
    note: str = ""
    origin: str = "paper"  # paper | later
    protocol: str = "w-mse"  # w-mse: the paper's | own: another, which may explain a difference


_ROWS = [
    Figure(**row | {"value": float(row["value"]), "epochs": int(row["epochs"] or 0) or None})
    for row in csv.DictReader(files(__package__).joinpath("paper.csv").read_text("utf-8").splitlines())
]
FIGURES = tuple(figure for figure in _ROWS if figure.origin == "paper")
LATER = tuple(figure for figure in _ROWS if figure.origin == "later")


def paper_figure(dataset: str, method: str, metric: str) -> Figure | None:
    """The paper's number for a cell, or None where the paper has none or nobody has read it."""
    return next(iter(_select(FIGURES, dataset=dataset, method=method, metric=metric)), None)


def later_figures(
    dataset: str | None = None, method: str | None = None, metric: str | None = None
) -> list[Figure]:
    """Numbers published by others after the paper; an argument that is None selects all its values."""
    return _select(LATER, dataset=dataset, method=method, metric=metric)


def _select(figures: Iterable[Figure], **wanted: Any) -> list[Figure]:
    return [f for f in figures if all(value in (None, getattr(f, key)) for key, value in wanted.items())]
