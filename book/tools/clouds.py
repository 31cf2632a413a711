"""Clouds of embeddings as the book draws them: what `film.py` and `layouts.py` have in common.

Both measure networks on all images of a test set, lay out the embeddings of the first of them, and write one
JSON file: measures, labels, and coordinates as whole numbers.
"""

import json
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from wmse import evaluation, machine, records
from wmse.data import ImageSet
from wmse.recipes import Recipe

GRID = 1000  # layouts are rounded to whole numbers from 0 to this
MEASURES = {  # of all test images -> decimals kept
    "embedding_std": 6,
    "effective_rank": 3,
    "cca_dimensions": 3,
    "knn5_embeddings": 2,
    "knn5_features": 2,
}


def measure(
    encoder: nn.Module, projector: nn.Module, sets: dict[str, ImageSet], recipe: Recipe
) -> tuple[dict[str, float], Tensor, Tensor, Tensor]:
    """The MEASURES of two networks, in eval mode, on all images of sets["test"].

    k-NN learns from sets["train"]. Also returns what was measured: features (n, f), embeddings (n, k), and
    the embeddings of two views (2, n, k).
    """
    test = sets["test"]
    features = {split: evaluation.features(encoder, images, split) for split, images in sets.items()}
    embeddings = {split: evaluation.project(projector, rows) for split, rows in features.items()}
    views = evaluation.two_views(encoder, projector, test, recipe)
    measures = {
        "embedding_std": evaluation.embedding_std(embeddings["test"]),
        "effective_rank": evaluation.effective_rank(embeddings["test"]),
        "cca_dimensions": evaluation.cca_dimensions(*views),
    }
    for kind, rows in {"embeddings": embeddings, "features": features}.items():
        measures[f"knn5_{kind}"] = evaluation.knn_accuracy(
            rows["train"], sets["train"].labels, rows["test"], test.labels
        )
    return measures, features["test"], embeddings["test"], views


def drawn(embeddings: Tensor, images: int) -> Tensor:
    """The first embeddings, at most `images`, as the losses compare them: length 1, float64, on the CPU."""
    return F.normalize(embeddings[:images].double(), dim=1).cpu()


def to_grid(layouts: Sequence[np.ndarray]) -> list[list[int]]:
    """Layouts (n, 2) as integers 0 to `GRID`, x and y in turn, all on the same scale."""
    points = np.stack(layouts)
    if not np.isfinite(points).all():
        raise ValueError("a layout holds NaN or infinity: UMAP gives no place to points without neighbours")
    low, high = points.min((0, 1)), points.max((0, 1))
    middle, side = (low + high) / 2, (high - low).max()
    scaled = np.rint(((points - middle) / side + 0.5) * GRID).astype(int)
    return scaled.reshape(len(points), -1).tolist()


def about(test: ImageSet, images: int) -> dict[str, Any]:
    """The head of a file: where it comes from, the test set, and the labels of the first `images` images."""
    return {
        "dataset": test.name,
        "commit": machine.git_state(),
        "versions": machine.versions() | {"umap-learn": metadata.version("umap-learn")},
        "made": records.now(),
        "images": len(test),
        "classes": list(test.classes),
        "labels": test.labels[:images].tolist(),
        "grid": GRID,
    }


def missing(content: dict[str, Any], keys: Sequence[str]) -> list[str]:
    """A sentence if the file lacks some of the keys."""
    lacking = [key for key in keys if key not in content]
    return [f"the file lacks {', '.join(lacking)}"] if lacking else []


def label_problems(labels: Sequence[int], classes: int) -> list[str]:
    """A sentence if a label is no class."""
    sound = all(0 <= label < classes for label in labels)
    return [] if sound else [f"a label lies outside 0 to {classes - 1}"]


def number_problems(where: str, found: dict[str, Any], keys: Sequence[str]) -> list[str]:
    """A sentence if there is no number for some of the keys."""
    lacking = [key for key in keys if not isinstance(found.get(key), int | float)]
    return [f"{where}: no number for {', '.join(lacking)}"] if lacking else []


def point_problems(where: str, places: Sequence[int], points: int, grid: int | None = None) -> list[str]:
    """A sentence on each fault of places: x and y of each of `points` points, whole numbers, 0 to `grid`."""
    found = []
    if len(places) != 2 * points:
        found.append(f"{where}: {len(places)} coordinates for {points} points")
    if not all(isinstance(value, int) for value in places):
        found.append(f"{where}: a coordinate is no whole number")
    elif grid is not None and not all(0 <= value <= grid for value in places):
        found.append(f"{where}: a coordinate lies outside 0 to {grid}")
    return found


def as_text(content: dict[str, Any], problems: Callable[[Any], list[str]], largest: int) -> str:
    """The content as JSON without spaces. ValueError if it has problems or more bytes than `largest`."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n"
    wrong = problems(content)
    if len(text.encode()) >= largest:
        wrong.append(f"{len(text.encode())} bytes are too many, the limit is {largest}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return text


def write(path: Path, text: str) -> None:
    """Write the file whole, making its folder, and print its size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    machine.write_whole(path, text.encode())
    print(f"{path}: {len(text) / 1000:.0f} kB")
