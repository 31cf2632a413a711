"""Published figures as data, with source and certainty; the paper's are apart from later work's.

`sure`: read in the official code or in a published text. `second-hand`: read in a later paper or README that
copies the table. `unsure`: remembered, seen nowhere; to be shown with that mark or not at all.
"""

from dataclasses import dataclass

PAPER = "Ermolov et al., Whitening for Self-Supervised Representation Learning, ICML 2021, PMLR 139:3015-3024"
TABLE_1 = "Table 1, as copied by CW-RGP's published comparison (Weng et al., 2022) and the ACT README"
CW_RGP = "Weng et al., An Investigation into Whitening Loss for Self-Supervised Learning, NeurIPS 2022"
INTL = "Weng et al., Modulate Your Spectrum in Self-Supervised Learning, ICLR 2024"
LINEAR, LINEAR_5, KNN = "linear_top1", "linear_top5", "knn5_euclidean_top1"


@dataclass(frozen=True)
class Figure:
    """One published number: accuracy in percent of the last epoch."""

    dataset: str
    method: str
    metric: str  # a key of a record's metrics
    value: float
    source: str
    certainty: str  # sure | second-hand | unsure
    encoder: str = "resnet18"
    epochs: int | None = None  # where a cell was published for several
    note: str = ""
    origin: str = "paper"  # paper | later: published by others, after it
    protocol: str = "w-mse"  # w-mse: that of the paper | own: another, to which a difference may be due


def paper_figure(dataset: str, method: str, metric: str, epochs: int | None = None) -> Figure | None:
    """The paper's number for a cell, or None where the paper has none.

    Raises ValueError if there are several, for different numbers of epochs, and `epochs` does not say which.
    """
    found = [
        f
        for f in FIGURES
        if (f.dataset, f.method, f.metric) == (dataset, method, metric) and epochs in (None, f.epochs)
    ]
    if len(found) > 1:
        choices = ", ".join(str(f.epochs) for f in found)
        raise ValueError(f"{dataset} {method} {metric} has a figure for each of {choices} epochs: say which")
    return found[0] if found else None


def later_figures(
    dataset: str | None = None, method: str | None = None, metric: str | None = None
) -> list[Figure]:
    """Numbers that others published after the paper, of one data set, method or metric, or of all (None)."""
    return [
        f
        for f in LATER
        if dataset in (None, f.dataset) and method in (None, f.method) and metric in (None, f.metric)
    ]


def _table_1() -> list[Figure]:
    datasets = ("cifar10", "cifar100", "stl10", "tiny-imagenet")
    rows = {  # method -> (linear, 5-NN Euclidean) per data set, ResNet-18
        "simclr": ((91.80, 88.42), (66.83, 56.56), (90.51, 85.68), (48.84, 32.86)),
        "byol": ((91.73, 89.45), (66.60, 56.82), (91.99, 88.64), (51.00, 36.24)),
        "w-mse-2": ((91.55, 89.69), (66.10, 56.69), (90.36, 87.10), (48.20, 34.16)),
        "w-mse-4": ((91.99, 89.87), (67.64, 56.45), (91.75, 88.59), (49.20, 35.44)),
    }
    unsure = {(91.75, 88.59)}
    notes = {"tiny-imagenet": "very likely scored on 5,000 images", 49.20: "may be printed as 49.22"}
    return [
        Figure(
            dataset,
            method,
            metric,
            value,
            TABLE_1,
            "unsure" if cell in unsure else "second-hand",
            note="; ".join(notes[key] for key in (dataset, value) if key in notes),
        )
        for method, cells in rows.items()
        for dataset, cell in zip(datasets, cells, strict=True)
        for metric, value in zip((LINEAR, KNN), cell, strict=True)
    ]


def _imagenet_100() -> list[Figure]:
    rows = {  # method -> encoder, top-1, top-5
        "w-mse-2": ("resnet18", 76.00, 93.14),
        "w-mse-4": ("resnet18", 79.02, 94.46),
        "moco": ("resnet50", 72.80, 91.64),
        "align-uniform": ("resnet50", 74.60, 92.74),
    }
    source = "the table of ImageNet-100, from memory"
    return [
        Figure("imagenet100", method, metric, value, source, "unsure", encoder)
        for method, (encoder, *values) in rows.items()
        for metric, value in zip((LINEAR, LINEAR_5), values, strict=True)
    ]


def _imagenet() -> list[Figure]:
    copied = ("the table of ImageNet, as copied by later papers", "second-hand")
    remembered = ("the table of ImageNet, from memory", "unsure")
    rows = [  # method, epochs, top-1
        ("w-mse-4", 400, 72.6, *copied),
        ("w-mse-4", 100, 69.43, *remembered),
        ("simclr", 100, 66.5, *copied),
        ("moco-v2", 100, 67.4, *copied),
        ("byol", 100, 66.5, *copied),
        ("swav", 100, 66.5, *copied),
        ("simsiam", 100, 68.1, *copied),
    ]
    return [
        Figure("imagenet", method, LINEAR, value, source, certainty, "resnet50", epochs)
        for method, epochs, value, source, certainty in rows
    ]


def _later() -> list[Figure]:
    """ResNet-18 on CIFAR-10 and CIFAR-100; all second-hand."""
    authors = "as run by CW-RGP's authors"
    solo = "solo-learn's published results"
    rows = [  # method, protocol, source, note, (linear, 5-NN) on CIFAR-10 and on CIFAR-100
        ("cw-rgp-4", "w-mse", CW_RGP, "", (92.47, 90.74), (68.26, 58.67)),
        ("cw-rgp-2", "w-mse", CW_RGP, "", (91.92, 89.54), (67.51, 57.35)),
        ("act", "w-mse", "the ACT README", "", (92.11, 90.01), (68.24, 58.35)),
        (
            "barlow-twins",
            "w-mse",
            CW_RGP,
            f"{authors}, with an affine BatchNorm in the loss",
            (88.51, 86.53),
            (65.78, 55.76),
        ),
        ("vicreg", "w-mse", CW_RGP, authors, (90.32, 88.41), (66.45, 56.78)),
        ("simsiam", "w-mse", CW_RGP, authors, (90.51, 86.82), (66.04, 55.79)),
        ("shuffled-dbn", "w-mse", CW_RGP, authors, (90.45, 88.15), (66.07, 56.97)),
        ("intl", "own", INTL, "", (92.60, 90.03), (70.88, 61.90)),
        ("mixed-barlow-twins", "own", "Mixed Barlow Twins' publication", "", (92.58, 90.52), (69.31, 61.25)),
        ("all4one", "own", solo, "its best self-supervised row, 1000 epochs", (93.24,), (72.17,)),
        (
            "w-mse (solo-learn)",
            "own",
            solo,
            "by a classifier trained along with the encoder",
            (88.67,),
            (61.33,),
        ),
    ]
    later = {"certainty": "second-hand", "origin": "later"}
    figures = [
        Figure(dataset, method, metric, value, source, note=note, protocol=protocol, **later)
        for method, protocol, source, note, *cells in rows
        for dataset, cell in zip(("cifar10", "cifar100"), cells, strict=True)
        for metric, value in zip((LINEAR, KNN), cell, strict=False)
    ]
    rerun = {"source": "a re-run of the official repository by dkobak"} | later
    rerun |= {"note": "independent replication; its k-NN is cosine, k = 10"}
    return figures + [
        Figure("cifar10", "simclr", LINEAR, 91.8, **rerun),
        Figure("cifar10", "simclr", "knn10_cosine_top1", 90.5, **rerun),
    ]


FIGURES = (*_table_1(), *_imagenet_100(), *_imagenet())
LATER = tuple(_later())
