"""The book's figures: one style, and the few plots that several chapters share.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; classes carry a marker as well. No
figure is wider than `WIDTH`: a phone shrinks it to some 340 pixels, and its text is still ten pixels high.
"""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
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
    "simsiam": "SimSiam",
    "shuffled-dbn": "Shuffled-DBN",
    "all4one": "All4One",
    "moco": "MoCo",
    "moco-v2": "MoCo v2",
    "swav": "SwAV",
    "align-uniform": "Align-Uniform",
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
}


def use_style() -> None:
    """Set matplotlib's defaults for the book: white ground, light grid, Okabe-Ito's colours in turn."""
    import matplotlib as mpl
    import seaborn as sns

    sns.set_theme(style="whitegrid", context="notebook", palette=list(OKABE_ITO))
    mpl.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.3),
            "figure.dpi": 110,
            "savefig.facecolor": "white",
            "axes.edgecolor": "#444444",
            "axes.titlesize": "medium",
            "axes.titleweight": "bold",
            "grid.color": "#e4e4e4",
            "legend.frameon": False,
            "lines.linewidth": 2,
            "lines.markersize": 5,
            "svg.hashsalt": "wmse",
            "figure.constrained_layout.use": True,
        }
    )


def image_grid(images: Tensor, columns: int = 10, ax: "Axes | None" = None, scale: float = 0.52) -> "Axes":
    """Show images side by side, row by row.

    Args:
        images: (m, 3, h, w), uint8 in 0..255 or floating point in [0, 1] (values outside are clipped).
        columns: images a row.
        ax: where to draw; a new figure if None.
        scale: inches an image in a new figure.
    """
    import matplotlib.pyplot as plt

    pixels = images.detach().cpu()
    pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float().clamp(0, 1)
    m, channels, height, width = pixels.shape
    rows = -(-m // columns)
    canvas = torch.ones(channels, rows * (height + 2) - 2, columns * (width + 2) - 2)
    for index, image in enumerate(pixels):
        top, left = (index // columns) * (height + 2), (index % columns) * (width + 2)
        canvas[:, top : top + height, left : left + width] = image
    if ax is None:
        ax = plt.subplots(figsize=(scale * columns, scale * rows))[1]
    ax.imshow(canvas.permute(1, 2, 0).numpy(), interpolation="nearest")
    ax.set_axis_off()
    return ax


def scatter(points: np.ndarray, labels: Tensor | np.ndarray, classes: Sequence[str], ax: "Axes") -> "Axes":
    """Draw 2-D points, each class with a colour and a marker of its own.

    Args:
        points: (n, 2); labels: (n,) integers into `classes`.
    """
    labels = np.asarray(labels)
    styles = zip(itertools.cycle(OKABE_ITO), itertools.cycle(MARKERS), strict=False)
    for index, (name, (colour, marker)) in enumerate(zip(classes, styles, strict=False)):
        chosen = labels == index
        ax.scatter(
            *points[chosen].T,
            s=14,
            alpha=0.75,
            linewidths=0,
            color=colour,
            marker=marker,
            label=name,
            rasterized=True,
        )
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    return ax


def umap_layout(points: Tensor, seed: int) -> np.ndarray:
    """A 2-D layout (n, 2) of points (n, k) by UMAP with 15 neighbours; the same seed gives the same one."""
    with warnings.catch_warnings():  # umap's progress bar misses a widget that nothing here needs
        warnings.simplefilter("ignore")
        from umap import UMAP

    return UMAP(n_neighbors=15, min_dist=0.1, random_state=seed, n_jobs=1).fit_transform(points.cpu().numpy())


def class_legend(figure: "Figure", ax: "Axes", columns: int = 5) -> None:
    """One legend for several `scatter` plots of the same classes, below the figure."""
    handles, names = ax.get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=columns,
        markerscale=2.2,
        columnspacing=0.9,
        handletextpad=0.1,
    )


def spectrum(curves: dict[str, Tensor], ax: "Axes", ylabel: str = "singular value / largest") -> "Axes":
    """Singular values, sorted and relative to the largest, on a logarithmic axis.

    Args:
        curves: name -> singular values (k,) in descending order.
    """
    for (name, values), marker in zip(curves.items(), itertools.cycle(MARKERS), strict=False):
        relative = (values / values[0]).clamp_min(1e-12).cpu().numpy()
        ax.plot(
            np.arange(1, len(relative) + 1),
            relative,
            marker=marker,
            markevery=max(1, len(relative) // 8),
            label=name,
        )
    ax.set_yscale("log")
    ax.set_xlabel("index of the singular value")
    ax.set_ylabel(ylabel)
    ax.legend()
    return ax


def seeds_by_setting(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    choice: str,
    empty: Mapping[str, str] | None = None,
    outside: Sequence[str] = (),
) -> "Figure":
    """A panel a measure, side by side; in each a row a setting: a mark for each run, a bar at their mean.

    The settings' names stand at the left. A dotted line goes through the mean of the first setting.

    Args:
        panels: label of the measure's axis -> label of the setting -> one number a run.
        choice: in what the settings differ, above the figure.
        empty: label of the setting -> what to write where it has no runs, if not "no run yet".
        outside: labels of settings that would squeeze the others. Where all runs of such a one lie beyond
            the others', they are written at the edge of the panel, with an arrow.
    """
    import matplotlib.pyplot as plt

    settings = list(next(iter(panels.values())))
    height = 0.5 if any("\n" in setting for setting in settings) else 0.36
    shape = {"ncols": len(panels), "figsize": (WIDTH, 1.3 + height * len(settings))}
    figure, axes = plt.subplots(**shape, sharey=True, squeeze=False)
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    words = {"va": "center", "ha": "left", "color": "#555555", "fontsize": 11, "bbox": behind}
    for ax, (xlabel, values) in zip(axes.flat, panels.items(), strict=True):
        near = [run for setting, runs in values.items() if setting not in outside for run in runs]
        for row, (setting, runs) in enumerate(values.items()):
            colour, marker = OKABE_ITO[row % 7], MARKERS[row]  # the eighth is too pale for a line
            at_edge = {"transform": ax.get_yaxis_transform(), **words}
            if not len(runs):
                ax.text(0.04, row, (empty or {}).get(setting, "no run yet"), **at_edge)
                continue
            below, above = (near and max(runs) < min(near)), (near and min(runs) > max(near))
            if setting in outside and (below or above):
                said = " to ".join(dict.fromkeys(f"{end:.0f}" for end in (min(runs), max(runs))))
                where = {"x": 0.96, "ha": "right"} if above else {"x": 0.04}
                ax.text(
                    y=row, s=f"{said} →" if above else f"← {said}", **(at_edge | where | {"color": colour})
                )
                continue
            places = row + 0.16 * (np.arange(len(runs)) - (len(runs) - 1) / 2)
            ax.plot(runs, places, marker, color=colour)
            ax.vlines(np.mean(runs), row - 0.32, row + 0.32, color=colour)
            if row == 0:
                ax.axvline(np.mean(runs), color="#444444", linestyle=":", linewidth=1)
        ax.set_yticks(range(len(values)), list(values))
        ax.set_ylim(len(values) - 0.4, -0.6)
        ax.locator_params(axis="x", nbins=4)
        ax.margins(x=0.1)
        ax.grid(False, axis="y")
        ax.set_xlabel(xlabel)
    figure.suptitle(choice, x=0.02, ha="left", fontsize="medium", fontweight="bold")
    return figure
