"""Lay out the embeddings of trained runs for the book's pictures of CIFAR-10.

    python book/tools/layouts.py runs/cifar10-laptop/mse/seed-0 runs/cifar10-laptop/w-mse-4/seed-0 ...

Each argument is the folder of a finished run, with its networks; all are of one data set. The images of that
set are needed (`--data`). Everything that the pictures draw is written to `results/pictures/cifar10.json`, so
that the book is built without the images and without the networks; `problems` describes the file. It holds
coordinates, labels and measures, and no image. On one core the command takes a few minutes per run.

The embeddings are scaled to length 1, as the losses compare them. The pictures show the first `IMAGES` test
images. The measures are of all of them.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import clouds  # noqa: E402

from wmse import distributed, figures, machine, metrics, records  # noqa: E402
from wmse.data import load  # noqa: E402
from wmse.run import load_networks  # noqa: E402

PICTURES = ROOT / "results" / "pictures" / "cifar10.json"
IMAGES, SEEDS = 2000, (0, 1, 2)
SCALE = 10_000  # projections are stored as whole numbers, in units of 1 / SCALE
LARGEST = 1_000_000  # bytes of the file
MEASURES = clouds.MEASURES | {"linear_features": 2}  # of a run -> decimals kept
SPECTRA = ("embeddings", "whitened")


def principal_plane(rows: torch.Tensor) -> torch.Tensor:
    """Coordinates (n, 2) of rows (n, k) along their two directions of largest variance, about their mean.

    Each axis points to where the farther of its two ends lies, because the sign of an eigenvector is free.
    """
    centred = rows.double() - rows.double().mean(0)
    places = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T
    farther = torch.where(places.amax(0) + places.amin(0) < 0, -1.0, 1.0)
    return places * farther


def picture(folder: Path, data: str | None, device: torch.device) -> dict[str, Any]:
    """What the pictures draw of one finished run."""
    record = records.read_record(folder)
    recipe = record.recipe
    sets = {split: load(recipe.dataset, split, data, device) for split in ("train", "test")}
    networks = load_networks(folder, recipe, device)
    found, features, embeddings, _ = clouds.measure(*networks, sets, recipe)
    found["linear_features"] = record.metrics["linear_top1"]
    spectra = metrics.spectra(features, embeddings)
    points = clouds.drawn(embeddings, IMAGES)
    centred = points - points.mean(0)  # in float32, in which UMAP computes, a speck far from 0 has no shape
    layouts = [clouds.to_grid([figures.umap_layout(centred, seed)])[0] for seed in SEEDS]
    plane = (principal_plane(points) * SCALE).round().long().flatten().tolist()
    return {
        "label": figures.METHOD_TITLES[record.name.partition("/")[2]],
        "seed": recipe.seed,
        "changes": record.changes,
        "epochs": recipe.epochs,
        "trained_commit": (record.git or {}).get("commit"),
        "measures": {key: round(found[key], decimals) for key, decimals in MEASURES.items()},
        "spectra": {name: spectra[name] for name in SPECTRA},
        "plane": plane,
        "layouts": layouts,
    }


def problems(pictures: Any) -> list[str]:
    """A sentence on each fault of the file.

    It has `dataset`, `classes` (names), `labels` (an index into `classes` for each point), `images` (the
    number of images measured), `grid`, `scale`, `seeds` (of the layouts) and `runs`: a recipe's name ->
    `label`, `seed`, `epochs`, the MEASURES, SPECTRA (eigenvalues, descending; None where whitening is
    refused), `plane` (x and y in turn, in units of 1 / `scale`) and `layouts` (one per seed: x and y in
    turn, 0 to `grid`).
    """
    keys = ("dataset", "classes", "labels", "images", "grid", "scale", "seeds", "runs")
    if lacking := clouds.missing(pictures, keys):
        return lacking
    points, classes = len(pictures["labels"]), len(pictures["classes"])
    found = clouds.label_problems(pictures["labels"], classes)
    for name, run in pictures["runs"].items():
        found += clouds.number_problems(name, run["measures"], tuple(MEASURES))
        if len(run["layouts"]) != len(pictures["seeds"]):
            found.append(f"{name}: {len(run['layouts'])} layouts for {len(pictures['seeds'])} seeds")
        found += clouds.point_problems(f"{name}, plane", run["plane"], points)
        for places in run["layouts"]:
            found += clouds.point_problems(f"{name}, a layout", places, points, pictures["grid"])
        for cloud in SPECTRA:
            values = run["spectra"][cloud]
            if values is not None and values != sorted(values, reverse=True):
                found.append(f"{name}: the eigenvalues of {cloud} do not descend")
    return found


def as_text(pictures: dict[str, Any]) -> str:
    """The file's text. ValueError if it is unsound or too large."""
    return clouds.as_text(pictures, problems, LARGEST)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    parser.add_argument("--data", help="folder of the data sets (default: $WMSE_DATA, else data)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--out", type=Path, default=PICTURES, help="the file to write (default: %(default)s)")
    options = parser.parse_args(arguments)
    made = {folder: records.read_record(folder) for folder in options.runs}
    for folder, record in made.items():
        if record.status != "finished" or record.scored_on != "test":
            parser.error(
                f"{folder} is {record.status}, scored on {record.scored_on}: give finished runs on test"
            )
    datasets = {record.recipe.dataset for record in made.values()}
    if len(datasets) > 1 or len({record.name for record in made.values()}) < len(made):
        parser.error("give runs of one data set, one run for each recipe")
    device = distributed.choose_device(options.device)
    machine.configure_process(device)
    test = load(datasets.pop(), "test", options.data)
    pictures = clouds.about(test, IMAGES) | {"scale": SCALE, "seeds": SEEDS, "runs": {}}
    for folder, record in made.items():
        pictures["runs"][record.name] = run = picture(folder, options.data, device)
        print(run["label"], run["measures"], flush=True)
    clouds.write(options.out, as_text(pictures))


if __name__ == "__main__":
    main()
