"""The paper's tables as data: each figure with its source and how sure we are of it.

`sure`: read in the official code or in a published text. `second-hand`: read in a later paper or README that
copies the table. `unsure`: remembered, seen nowhere; to be shown with that mark or not at all.
"""

from dataclasses import dataclass

PAPER = "Ermolov et al., Whitening for Self-Supervised Representation Learning, ICML 2021, PMLR 139:3015-3024"
TABLE_1 = "Table 1, as copied by CW-RGP's published comparison (Weng et al., 2022) and the ACT README"


@dataclass(frozen=True)
class Figure:
    """One number of the paper: top-1 accuracy in percent of the last epoch."""

    dataset: str
    method: str
    metric: str  # a key of a record's metrics
    value: float
    source: str
    certainty: str  # sure | second-hand | unsure


def _table_1() -> list[Figure]:
    datasets = ("cifar10", "cifar100", "stl10", "tiny-imagenet")
    rows = {  # method -> (linear, 5-NN Euclidean) per data set, ResNet-18
        "simclr": ((91.80, 88.42), (66.83, 56.56), (90.51, 85.68), (48.84, 32.86)),
        "byol": ((91.73, 89.45), (66.60, 56.82), (91.99, 88.64), (51.00, 36.24)),
        "w-mse-2": ((91.55, 89.69), (66.10, 56.69), (90.36, 87.10), (48.20, 34.16)),
        "w-mse-4": ((91.99, 89.87), (67.64, 56.45), (91.75, 88.59), (49.20, 35.44)),
    }
    unsure = {(91.75, 88.59)}
    return [
        Figure(dataset, method, metric, value, TABLE_1, "unsure" if cell in unsure else "second-hand")
        for method, cells in rows.items()
        for dataset, cell in zip(datasets, cells, strict=True)
        for metric, value in zip(("linear_top1", "knn5_euclidean_top1"), cell, strict=True)
    ]


FIGURES = _table_1()


def paper_figure(dataset: str, method: str, metric: str) -> Figure | None:
    """The paper's number for a cell, or None where the paper has none."""
    return next((f for f in FIGURES if (f.dataset, f.method, f.metric) == (dataset, method, metric)), None)
