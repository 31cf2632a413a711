"""Which rung of the budget ladder a record stands on: only records of one rung are averaged."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from wmse.recipes import RECIPES, Recipe
from wmse.records import Entry
from wmse.schema import recipe_of

NONE: Mapping[str, Any] = MappingProxyType({})
# How a run computes, and which of equals it is: no part of what it is an experiment on.
IMMATERIAL = ("seed", "precision", "compile", "sync_batchnorm")
# Several processes are material: BatchNorm sees each one's share of a batch, or, synchronised, the whole.


def departures(record: dict[str, Any]) -> dict[str, Any]:
    """Where a record's recipe departs from the one it is named after; its limit and processes if it had any.

    Fields of the views are named "views.hue". Raises ValueError for a name that is no recipe's.
    """
    if record["name"] not in RECIPES:
        raise ValueError(f"{record['name']!r} is not the name of a recipe")
    named, held = _flat(RECIPES[record["name"]]), _flat(recipe_of(record))
    changed = {key: value for key, value in held.items() if value != named[key] and key not in IMMATERIAL}
    if record.get("limit") is not None:
        changed["limit"] = record["limit"]
    if record.get("processes", 1) > 1:
        changed |= {"processes": record["processes"], "sync_batchnorm": held["sync_batchnorm"]}
    return changed


def rung(record: dict[str, Any]) -> str:
    """The rung in words: "cifar10-200 (200 epochs)", "cifar10 (1000 epochs), but epochs 20, limit 512"."""
    name, changed = record["name"], in_words(record)
    recipe = RECIPES[name]
    cost = f"{recipe.epochs} epochs" if recipe.epochs else "not trained"
    slim = f", width {recipe.width}" if recipe.width != Recipe.width else ""
    return f"{name.split('/')[0]} ({cost}{slim})" + (f", but {changed}" if changed else "")


def in_words(record: dict[str, Any]) -> str:
    """What `departures` finds, in words: "epochs 20, limit 512"; nothing where there is none."""
    return ", ".join(f"{key} {_words(value)}" for key, value in departures(record).items())


def is_of(record: dict[str, Any], name: str, seed: int, changes: Mapping[str, Any] = NONE) -> bool:
    """Whether a record is of the recipe `name` with just these changes, and of that seed."""
    return record["name"] == name and record["seed"] == seed and departures(record) == changes


def by_seed(
    entries: Iterable[Entry],
    name: str,
    changes: Mapping[str, Any] = NONE,
    ended: Callable[[dict[str, Any]], Any] = lambda record: record["status"] == "finished",
) -> dict[int, dict[str, Any]]:
    """Records of the recipe `name` with just these changes that have `ended`: the last of each seed."""
    own = [
        entry.record
        for entry in entries
        if ended(entry.record) and entry.record["name"] == name and departures(entry.record) == changes
    ]
    own.sort(key=lambda record: record.get("finished", ""))
    return {record["seed"]: record for record in own}


def flags(changes: Mapping[str, Any]) -> list[str]:
    """Changes of a recipe as flags of `python -m wmse train`: ["--slice-size", "33", "--no-normalize"]."""
    words = []
    for field, value in changes.items():
        flag = field.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return words


def _flat(recipe: Recipe) -> dict[str, Any]:
    values = asdict(recipe)
    views = values.pop("views")
    return values | {f"views.{key}": value for key, value in views.items()}


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
