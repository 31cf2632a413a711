"""The book's figures and tables: one style, the plots that chapters share, a Markdown table, and titles.

Colour-blind readers can tell the colours apart: Okabe and Ito's eight for methods and settings, Petroff's ten
for classes, which carry a marker as well. No figure is wider than `WIDTH`: a phone shrinks it to some 340
pixels, and its text is still ten pixels high. Everything heavy is imported where it is used,
so that titles cost nothing.
"""

import atexit
import itertools
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
# The sequence of ten of M. A. Petroff, "Accessible Color Sequences for Data Visualization", arXiv:2107.02270.
CLASS_COLOURS = ("#3F90DA", "#FFA90E", "#BD1F01", "#94A4A2", "#832DB6")
CLASS_COLOURS += ("#A96B59", "#E76300", "#B9AC70", "#717581", "#92DADD")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
WIDTH = 5.2  # inches

# How methods and data sets are written in prose and tables; recipes and records name them by the keys.
METHOD_TITLES = {
    "simclr": "SimCLR",
    "byol": "BYOL",
    "w-mse-2": "W-MSE 2",
    "w-mse-4": "W-MSE 4",
    "w-mse (solo-learn)": "W-MSE (solo-learn)",
    "mse": "MSE",
    "barlow-twins": "Barlow Twins",
    "mixed-barlow-twins": "Mixed Barlow Twins",
    "vicreg": "VICReg",
    "cw-rgp-2": "CW-RGP 2",
    "cw-rgp-4": "CW-RGP 4",
    "act": "ACT",
    "intl": "INTL",
    "lejepa": "LeJEPA",
    "simsiam": "SimSiam",
    "shuffled-dbn": "Shuffled-DBN",
    "all4one": "All4One",
    "moco-v2": "MoCo v2",
    "swav": "SwAV",
    "supervised": "supervised",
    "random-encoder": "random encoder",
    "raw-pixels": "raw pixels",
}
DATASET_TITLES = {
    "digits": "digits",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "stl10": "STL-10",
    "tiny-imagenet": "Tiny ImageNet",
    "imagenet100": "ImageNet-100",
    "imagenet": "ImageNet",
    "folder": "own images",
}


def markdown_table(
    header: Sequence[str], rows: Iterable[Iterable[str]], numbers: Sequence[int] = (), rule: str = ":--"
) -> str:
    """A Markdown table; a cell may hold "|".

    Args:
        numbers: indices of the columns that are aligned to the right.
        rule: what stands below the header of the other columns; ":--" aligns them to the left.
    """
    rules = ["--:" if column in numbers else rule for column in range(len(header))]
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (header, rules, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def use_style() -> None:
    """Set matplotlib's defaults for the book: white ground, light grid, Okabe-Ito's colours in turn."""
    import seaborn as sns

    style = {"figure.figsize": (WIDTH, 3.3), "figure.dpi": 110, "figure.constrained_layout.use": True}
    style |= {"axes.edgecolor": "#444444", "axes.titlesize": "medium", "axes.titleweight": "bold"}
    style |= {"grid.color": "#e4e4e4", "legend.frameon": False, "lines.linewidth": 2, "lines.markersize": 5}
    style |= {"savefig.facecolor": "white", "svg.hashsalt": "wmse"}
    sns.set_theme(style="whitegrid", context="notebook", palette=list(OKABE_ITO), rc=style)


def image_grid(images: "Tensor", columns: int = 10, ax: "Axes | None" = None, scale: float = 0.52) -> "Axes":
    """Show images side by side, row by row.

    Args:
        images: (m, 3, h, w), uint8 in 0..255 or floating point in [0, 1] (values outside are clipped).
        columns: images per row.
        ax: where to draw; a new figure if None, of `scale` inches per image.
    """
    import matplotlib.pyplot as plt
    import torch

    pixels = images.detach().cpu()
    pixels = pixels.float().clamp(0, 1) if pixels.is_floating_point() else pixels.float() / 255
    m, channels, height, width = pixels.shape
    rows = -(-m // columns)
    cells = torch.ones(rows * columns, height + 2, width + 2, channels)  # white where no image is
    cells[:m, :height, :width] = pixels.permute(0, 2, 3, 1)
    canvas = cells.unflatten(0, (rows, columns)).transpose(1, 2).flatten(2, 3).flatten(0, 1)[:-2, :-2]
    if ax is None:
        ax = plt.subplots(figsize=(scale * columns, scale * rows))[1]
    ax.imshow(canvas.numpy(), interpolation="nearest")
    ax.set_axis_off()
    return ax


def scatter(
    points: "np.ndarray", labels: "Tensor | np.ndarray", classes: Sequence[str], ax: "Axes"
) -> "Axes":
    """Draw 2-D points (n, 2), each class of labels (n,) with a colour and a marker of its own."""
    import numpy as np

    labels = np.asarray(labels)
    # Of thousands of points large ones would hide each other.
    dots = {"s": 24 if len(labels) <= 1000 else 12, "alpha": 0.8, "linewidths": 0, "rasterized": True}
    styles = zip(itertools.cycle(CLASS_COLOURS), itertools.cycle(MARKERS), strict=False)
    for index, (name, (colour, marker)) in enumerate(zip(classes, styles, strict=False)):
        ax.scatter(*points[labels == index].T, color=colour, marker=marker, label=name, **dots)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    return ax


def nothing_to_draw(what: str) -> None:
    """Show a picture that says that no `what` is on record, in place of one drawn from an absent file."""
    import matplotlib.pyplot as plt

    ax = plt.subplots(figsize=(WIDTH, 1.2))[1]
    ax.text(0.5, 0.5, f"no {what} on record here", ha="center", va="center")
    ax.set_axis_off()
    plt.show()


def load_umap() -> "ModuleType":
    """The package umap. Where no folder is writable for what numba compiles of it, a temporary one is."""
    with warnings.catch_warnings():  # umap warns of a missing widget for progress bars, unused here
        warnings.simplefilter("ignore")
        try:
            import umap
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            import numba

            cache = tempfile.TemporaryDirectory(prefix="numba-", ignore_cleanup_errors=True)
            atexit.register(cache.cleanup)
            os.environ["NUMBA_CACHE_DIR"] = numba.config.CACHE_DIR = cache.name
            import umap
    return umap


def umap_layout(points: "Tensor", seed: int) -> "np.ndarray":
    """A 2-D layout (n, 2) of points (n, k) by UMAP with 15 neighbours; the same seed gives the same one."""
    options = {"n_neighbors": 15, "min_dist": 0.1, "random_state": seed % 2**32, "n_jobs": 1}
    return load_umap().UMAP(**options).fit_transform(points.cpu().numpy())


def class_legend(figure: "Figure", ax: "Axes", columns: int = 5) -> None:
    """One legend for several `scatter` plots of the same classes, below the figure."""
    spacing = {"markerscale": 1.9, "columnspacing": 0.9, "handletextpad": 0.1}
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=columns, **spacing)


def spectrum(curves: "Mapping[str, Tensor]", ax: "Axes", ylabel: str = "singular value / largest") -> "Axes":
    """Singular values (k,) by name, descending, relative to the largest, on a logarithmic axis."""
    for (name, values), marker in zip(curves.items(), itertools.cycle(MARKERS), strict=False):
        relative = (values / values[0]).clamp_min(1e-12).cpu().numpy()
        every = max(1, len(relative) // 8)
        ax.plot(range(1, len(relative) + 1), relative, marker=marker, markevery=every, label=name)
    ax.set(yscale="log", xlabel="index of the singular value", ylabel=ylabel)
    ax.legend()
    return ax
