"""Film two trainings: embeddings of the same test images at moments of a run, laid out by AlignedUMAP.

    python book/tools/film.py --help
    python book/tools/film.py cifar10-laptop --data DIR

It trains the recipes `mse` and `w-mse-2` of a budget by the same steps as `python -m wmse train`. It
measures the networks at `FRAMES` moments, which are closest together at the start. UMAP then lays out all
moments of a run together, so that a point moves little from frame to frame. Everything is written to one
file, such as `results/film/cifar10.json`; `problems` describes its format. Chapter 7 plays the film of
CIFAR-10 if there is one, else that of digits. `digits` takes a few minutes on two cores. CIFAR-10 takes as
long there as its two trainings and half an hour more, and `cifar10-25 --device cuda` minutes on a large GPU.
Commit the code first, because the file names the commit that made it.

The film shows embeddings, because it is they that collapse, scaled to length 1 as both losses compare them.
The numbers are of all test images, the pictures of the first `IMAGES` of them.
"""

import argparse
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import clouds  # noqa: E402

from wmse import figures, machine  # noqa: E402
from wmse.data import ImageSet, load  # noqa: E402
from wmse.losses import mse_loss, w_mse_loss  # noqa: E402
from wmse.recipes import Recipe, get_recipe  # noqa: E402
from wmse.run import Run  # noqa: E402

FILMS = ROOT / "results" / "film"  # a file per data set
METHODS = ("mse", "w-mse-2")
FRAMES, IMAGES = 18, 300
LARGEST = 400_000  # bytes of the file
MEASURES = {"loss": 6} | clouds.MEASURES  # of a frame -> decimals kept


def moments(total: int, frames: int = FRAMES) -> list[int]:
    """Optimiser steps taken at each frame: from 0 to `total`, closest together at the start.

    ValueError if there are too few steps for that many frames.
    """
    chosen = [round(total * (index / (frames - 1)) ** 2.5) for index in range(frames)]
    if len(set(chosen)) < frames:
        raise ValueError(f"{total} steps are too few for {frames} different moments: film a longer run")
    return chosen


def align(points: list[torch.Tensor], seed: int) -> list[np.ndarray]:
    """Layouts (n, 2) of points (n, k), an element per moment; each layout is near the one before.

    The points are those of the same n images in the same order.
    """
    same = {index: index for index in range(len(points[0]))}
    umap = figures.load_umap()
    mapper = umap.AlignedUMAP(n_neighbors=15, min_dist=0.1, random_state=seed, transform_seed=seed)
    # UMAP computes in float32, in which a collapsed cloud far from the origin has few distinct values.
    centred = [(cloud.double() - cloud.double().mean(0)).numpy() for cloud in points]
    with warnings.catch_warnings():  # umap warns that a seed limits it to one thread
        warnings.filterwarnings("ignore", message="n_jobs")
        mapper.fit(centred, relations=[same] * (len(points) - 1))
    return [np.asarray(layout) for layout in mapper.embeddings_]


def film_run(
    name: str, recipe: Recipe, data: str | None, device: torch.device
) -> tuple[list[dict[str, float]], list[torch.Tensor]]:
    """Train a recipe; the measures and the embeddings (IMAGES, k), of length 1, at each moment."""
    machine.configure_process(device)
    sets = {split: load(recipe.dataset, split, data, device) for split in ("train", "test")}
    run = Run(recipe, len(sets["train"]), device)
    wanted = moments(recipe.epochs * run.steps_per_epoch)
    measures, points = [], []

    def frame() -> None:
        row, moment = measure(run, sets)
        measures.append(row)
        points.append(moment)
        print(name, row, flush=True)

    frame()
    for _ in range(recipe.epochs):
        for _ in run.epoch(sets["train"]):
            if run.steps_taken in wanted:
                frame()
    return measures, points


def measure(run: Run, sets: dict[str, ImageSet]) -> tuple[dict[str, float], torch.Tensor]:
    """A frame's numbers, of all test images, and the embeddings (IMAGES, k), of length 1, to be drawn.

    The loss is the run's own, of two views of each test image, with both networks in eval mode. W-MSE needs
    whole slices: its loss is of as many of the first images as are a multiple of `slice_size`.
    """
    recipe = run.recipe
    measures, _, embeddings, views = clouds.measure(run.encoder, run.projector, sets, recipe)
    if recipe.method == "w-mse":
        generator = torch.Generator().manual_seed(recipe.seed)
        whole = views.shape[1] // recipe.slice_size * recipe.slice_size
        loss = w_mse_loss(views[:, :whole], recipe.slice_size, generator=generator)
    else:
        loss = mse_loss(views)
    row = measures | {"loss": float(loss)}
    place = {"step": run.steps_taken, "epoch": round(run.steps_taken / run.steps_per_epoch, 3)}
    rounded = {key: round(row[key], decimals) for key, decimals in MEASURES.items()}
    return place | rounded, clouds.drawn(embeddings, IMAGES)


def problems(film: Any) -> list[str]:
    """A sentence on each fault of a film.

    A film has `seed`, `commit`, `versions`, `images` (the number of test images), `classes` (names),
    `labels` (an index into `classes` for each point), `grid`, and `runs`: a recipe's name -> `label`,
    `frames`. A frame has `step`, `epoch`, the MEASURES, and `points`: x and y in turn, 0 to `grid`.
    """
    keys = ("seed", "commit", "versions", "images", "classes", "labels", "grid", "runs")
    if lacking := clouds.missing(film, keys):
        return lacking
    points, classes = len(film["labels"]), len(film["classes"])
    found = clouds.label_problems(film["labels"], classes)
    for name, run in film["runs"].items():
        frames = run["frames"]
        epochs = [frame["epoch"] for frame in frames]
        if not epochs or epochs[0] != 0 or any(a >= b for a, b in zip(epochs, epochs[1:], strict=False)):
            found.append(f"{name}: the epochs do not rise from 0: {epochs}")
        for number, frame in enumerate(frames):
            where = f"{name}, frame {number}"
            found += clouds.number_problems(where, frame, ("step", *MEASURES))
            found += clouds.point_problems(where, frame["points"], points, film["grid"])
    if len({tuple(frame["step"] for frame in run["frames"]) for run in film["runs"].values()}) > 1:
        found.append("the runs were not filmed at the same moments")
    return found


def as_text(film: dict[str, Any]) -> str:
    """The film as JSON without spaces. ValueError if it is unsound or too large."""
    return clouds.as_text(film, problems, LARGEST)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "budget", nargs="?", default="digits", help="such as cifar10-laptop (default: digits)"
    )
    parser.add_argument("--data", help="folder of the data sets (default: $WMSE_DATA, else data)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="the file to write (default: results/film/DATASET.json)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the runs and the layouts (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    names, device = [f"{options.budget}/{method}" for method in METHODS], torch.device(options.device)
    test = load(get_recipe(names[0]).dataset, "test", options.data)
    out = options.out or FILMS / f"{test.name}.json"
    film = {
        "command": f"python book/tools/film.py {options.budget} --seed {options.seed} --device {device}",
        "seed": options.seed,
        "package_sha256": machine.package_hash(),
        "hardware": machine.describe(device),
        **clouds.about(test, IMAGES),
        "runs": {},
    }
    for name, method in zip(names, METHODS, strict=True):
        recipe = replace(get_recipe(name), seed=options.seed)
        measures, points = film_run(name, recipe, options.data, device)
        layouts = clouds.to_grid(align(points, options.seed))
        frames = [row | {"points": layout} for row, layout in zip(measures, layouts, strict=True)]
        film["runs"][name] = {"label": figures.METHOD_TITLES[method], "frames": frames}
    clouds.write(out, as_text(film))


if __name__ == "__main__":
    main()
