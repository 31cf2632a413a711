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
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from film import GRID, to_grid  # noqa: E402

from wmse import distributed, evaluation, figures, machine, metrics, records  # noqa: E402
from wmse.data import load  # noqa: E402
from wmse.run import load_networks  # noqa: E402

PICTURES = ROOT / "results" / "pictures" / "cifar10.json"
IMAGES, SEEDS = 2000, (0, 1, 2)
SCALE = 10_000  # projections are stored as whole numbers, in units of 1 / SCALE
LARGEST = 1_000_000  # bytes of the file
MEASURES = {  # of a run -> decimals kept
    "effective_rank": 3,
    "embedding_std": 6,
    "cca_dimensions": 3,
    "knn5_embeddings": 2,
    "knn5_features": 2,
    "linear_features": 2,
}
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
    test = sets["test"]
    networks = load_networks(folder, recipe, device)
    features = {split: evaluation.features(networks[0], images, split) for split, images in sets.items()}
    embeddings = {split: evaluation.project(networks[1], rows) for split, rows in features.items()}
    neighbours = {
        f"knn5_{name}": evaluation.knn_accuracy(
            rows["train"], sets["train"].labels, rows["test"], test.labels
        )
        for name, rows in {"embeddings": embeddings, "features": features}.items()
    }
    found = neighbours | {
        "effective_rank": evaluation.effective_rank(embeddings["test"]),
        "embedding_std": evaluation.embedding_std(embeddings["test"]),
        "cca_dimensions": evaluation.cca_dimensions(*evaluation.two_views(*networks, test, recipe)),
        "linear_features": record.metrics["linear_top1"],
    }
    spectra = metrics.spectra(features["test"], embeddings["test"])
    points = F.normalize(embeddings["test"].double(), dim=1).cpu()[:IMAGES]
    centred = points - points.mean(0)  # in float32, in which UMAP computes, a speck far from 0 has no shape
    layouts = [to_grid([figures.umap_layout(centred, seed)])[0] for seed in SEEDS]
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
    wanted = ("dataset", "classes", "labels", "images", "grid", "scale", "seeds", "runs")
    if missing := [key for key in wanted if key not in pictures]:
        return [f"the file lacks {', '.join(missing)}"]
    found = []
    points, classes = len(pictures["labels"]), len(pictures["classes"])
    if not all(0 <= label < classes for label in pictures["labels"]):
        found.append(f"a label lies outside 0 to {classes - 1}")
    for name, run in pictures["runs"].items():
        lacking = [key for key in MEASURES if not isinstance(run["measures"].get(key), int | float)]
        if lacking:
            found.append(f"{name}: no number for {', '.join(lacking)}")
        if len(run["layouts"]) != len(pictures["seeds"]):
            found.append(f"{name}: {len(run['layouts'])} layouts for {len(pictures['seeds'])} seeds")
        for places in (run["plane"], *run["layouts"]):
            if len(places) != 2 * points:
                found.append(f"{name}: {len(places)} coordinates for {points} points")
        if not all(0 <= value <= pictures["grid"] for places in run["layouts"] for value in places):
            found.append(f"{name}: a coordinate lies outside 0 to {pictures['grid']}")
        for cloud in SPECTRA:
            values = run["spectra"][cloud]
            if values is not None and values != sorted(values, reverse=True):
                found.append(f"{name}: the eigenvalues of {cloud} do not descend")
    return found


def as_text(pictures: dict[str, Any]) -> str:
    """The file's text. ValueError if it is unsound or too large."""
    text = json.dumps(pictures, separators=(",", ":"), allow_nan=False) + "\n"
    wrong = problems(pictures)
    if len(text.encode()) >= LARGEST:
        wrong.append(f"{len(text.encode())} bytes are too many, the limit is {LARGEST}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return text


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
    pictures = {
        "dataset": test.name,
        "commit": machine.git_state(),
        "versions": machine.versions() | {"umap-learn": metadata.version("umap-learn")},
        "made": records.now(),
        "images": len(test),
        "classes": list(test.classes),
        "labels": test.labels[:IMAGES].tolist(),
        "grid": GRID,
        "scale": SCALE,
        "seeds": SEEDS,
        "runs": {},
    }
    for folder, record in made.items():
        pictures["runs"][record.name] = run = picture(folder, options.data, device)
        print(run["label"], run["measures"], flush=True)
    text = as_text(pictures)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    machine.write_whole(options.out, text.encode())
    print(f"{options.out}: {len(text) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
