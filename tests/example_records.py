"""Full, valid records for tests: nobody ran them."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from wmse.recipes import get_recipe
from wmse.records import Record, parse_record

METRICS = {
    "linear_top1": 91.0,
    "linear_top1_10pct": 80.0,
    "knn5_euclidean_top1": 89.0,
    "knn5_cosine_top1": 90.0,
    "effective_rank_features": 300.5,
    "embedding_std": 0.9,
    "cca_dimensions": None,
    "uniformity": -3.5,
    "effective_rank_whitened": None,
}
ACCURACIES = ("linear_top1", "knn5_euclidean_top1")


def example_record(name="cifar10/w-mse-2", seed=0, recipe=None, metrics=None, images=10_000, **changes):
    """The JSON of a finished run's record, with changes to its recipe, its metrics and its keys."""
    held = replace(get_recipe(name), seed=seed, **recipe or {})
    record = {
        "name": name,
        "status": "finished",
        "recipe": asdict(held),
        "command": f"python -m wmse train {name}",
        "seed": seed,
        "git": {"commit": "0" * 40, "dirty": False},
        "package_sha256": "0" * 64,
        "versions": {"torch": "2.9.0"},
        "hardware": {"device": "cuda", "gpu": "Example GPU"},
        "started": "2026-01-01T00:00:00+00:00",
        "precision": "bfloat16",
        "processes": 1,
        "limit": None,
        "images": {"train": 50_000, "probe": 50_000, "test": images},
        "metrics": METRICS | (metrics or {}),
        "finished": "2026-01-01T01:00:00+00:00",
        "steps": 97_000,
        "train_seconds": 3000.0,
        "wall_seconds": 3100,
        "views_per_second": 33_000.0,
        "peak_memory_mb": 9000.5,
        "curve": [],
    }
    return json.loads(json.dumps(record | changes))


def parsed(content) -> Record:
    """The record with that content."""
    return parse_record(json.dumps(content))


def put(root, record, folder=None):
    """Write a record where its name and seed say, or into `folder`; the folder."""
    path = Path(root, folder or f"{record['name']}/seed-{record['seed']}")
    path.mkdir(parents=True, exist_ok=True)
    (path / "record.json").write_text(json.dumps(record))
    return path
