"""The book's figures: one style, the plots that several chapters share, and titles of methods and data sets.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; classes carry a marker as well. No
figure is wider than `WIDTH`: a phone shrinks it to some 340 pixels, and its text is still ten pixels high.
Everything heavy is imported where it is used, so that titles cost nothing.
"""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

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
    dots = {"s": 14, "alpha": 0.75, "linewidths": 0, "rasterized": True}
    styles = zip(itertools.cycle(OKABE_ITO), itertools.cycle(MARKERS), strict=False)
    for index, (name, (colour, marker)) in enumerate(zip(classes, styles, strict=False)):
        ax.scatter(*points[labels == index].T, color=colour, marker=marker, label=name, **dots)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    return ax


def umap_layout(points: "Tensor", seed: int) -> "np.ndarray":
    """A 2-D layout (n, 2) of points (n, k) by UMAP with 15 neighbours; the same seed gives the same one."""
    with warnings.catch_warnings():  # umap warns of a missing widget for progress bars, unused here
        warnings.simplefilter("ignore")
        from umap import UMAP

    return UMAP(n_neighbors=15, min_dist=0.1, random_state=seed, n_jobs=1).fit_transform(points.cpu().numpy())


def class_legend(figure: "Figure", ax: "Axes", columns: int = 5) -> None:
    """One legend for several `scatter` plots of the same classes, below the figure."""
    spacing = {"markerscale": 2.2, "columnspacing": 0.9, "handletextpad": 0.1}
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


def seeds_by_setting(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    choice: str,
    empty: Mapping[str, str] | None = None,
    outside: Sequence[str] = (),
) -> "Figure":
    """A panel per measure, side by side, and in each a row per setting: a mark per run, a bar at their mean.

    The settings' names stand at the left. A dotted line goes through the mean of the first setting.

    Args:
        panels: label of the measure's axis -> label of the setting -> one number per run.
        choice: title of the figure: how the settings differ.
        empty: label of the setting -> what to write where it has no runs, if not "no run yet".
        outside: labels of settings far from the others, which would squeeze them. Where all runs of such a
            setting lie beyond the others', they are written at the edge of the panel, with an arrow.
    """
    import matplotlib.pyplot as plt
    import numpy as np

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
                span = " to ".join(dict.fromkeys(f"{end:.0f}" for end in (min(runs), max(runs))))
                where = {"x": 0.96, "ha": "right"} if above else {"x": 0.04}
                ax.text(
                    y=row,
                    s=f"{span} →" if above else f"← {span}",
                    **(at_edge | where | {"color": colour}),
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
