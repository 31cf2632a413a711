"""What a record must hold to be believed: a table is no better than the records behind it."""

import math
from collections.abc import Iterator
from dataclasses import Field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from wmse.recipes import Recipe
from wmse.views import ViewSettings

STATUSES = (
    "running",
    "finished",
    "interrupted",
    "failed",
    "obsolete",
)  # obsolete: a later record replaces it

# key -> what it holds; float takes whole numbers too
ALWAYS = {
    "name": str,
    "status": str,
    "recipe": dict,
    "overrides": dict,
    "seed": int,
    "git": dict | None,
    "package_sha256": str,
    "versions": dict,
    "hardware": dict,
    "started": str,
}
FINISHED = {
    "metrics": dict,
    "finished": str,
    "steps": int,
    "train_seconds": float,
    "wall_seconds": float,
    "precision": str,
    "images": dict,
    "peak_memory_mb": float,
}
OPTIONAL = {"command": str | None, "limit": int | None, "views_per_second": float | None, "processes": int}
AMOUNTS = ("steps", "train_seconds", "wall_seconds", "peak_memory_mb", "limit", "views_per_second")
# Metrics that null may stand for, because they need more images or dimensions than there are.
UNCOMPUTED = ("cca_dimensions", "effective_rank_whitened", "alignment_whitened", "uniformity_whitened")


class BrokenRecordError(ValueError):
    """A record that cannot be believed; the message names the file, the key and the value."""


def validate(record: Any, where: str | Path = "the record") -> None:
    """Raise BrokenRecordError unless `record` holds what a record of its status must, in types and ranges.

    `where` names the record's file in messages.
    """
    if not isinstance(record, dict):
        raise BrokenRecordError(f"{where} holds {record!r:.60} where an object with keys is needed")
    for key, value in _leaves(record):
        if isinstance(value, float) and not math.isfinite(value):
            raise _broken(where, key, value, "a finite number, or null")
    _check_types(record, ALWAYS, where)
    if record["status"] not in STATUSES:
        raise _broken(where, "status", record["status"], f"one of {', '.join(STATUSES)}")
    if record["status"] == "finished":
        _check_types(record, FINISHED, where)
        _check_finished(record, where)
    _check_types(record, {key: kind for key, kind in OPTIONAL.items() if key in record}, where)
    for key in AMOUNTS:
        if (record.get(key) or 0) < 0:
            raise _broken(where, key, record[key], "0 or more")
    _check_recipe(record, where)


def recipe_of(record: dict[str, Any]) -> Recipe:
    """The recipe that a record holds; fields that it lacks, being older, take today's defaults."""
    values = _tuples(record["recipe"])
    return Recipe(**values | {"views": ViewSettings(**_tuples(values.get("views", {})))})


def is_percentage(metric: str) -> bool:
    """Whether the metric of that name is an accuracy in percent."""
    return "top1" in metric or "top5" in metric


def _check_types(record: dict[str, Any], kinds: dict[str, Any], where: str | Path) -> None:
    for key, kind in kinds.items():
        name = getattr(kind, "__name__", str(kind))
        if key not in record:
            raise BrokenRecordError(f"{where} lacks the key {key!r} ({name})")
        if not _is(record[key], kind):
            raise _broken(where, key, record[key], name)


def _check_finished(record: dict[str, Any], where: str | Path) -> None:
    for key in ("started", "finished"):
        if not _is_time(record[key]):
            raise _broken(where, key, record[key], "a time in ISO 8601, with its offset from UTC")
    if "test" not in record["images"]:
        raise BrokenRecordError(f"{where} lacks the key 'images.test', on how many images it was scored")
    for split, count in record["images"].items():
        if not _is(count, int) or count < 1:
            raise _broken(where, f"images.{split}", count, "a number of images, 1 or more")
    for metric, value in record["metrics"].items():
        if problem := _problem(metric, value):
            raise _broken(where, f"metrics.{metric}", value, problem)


def _problem(metric: str, value: Any) -> str | None:
    """What a metric ought to be, if it is not."""
    if value is None:
        return None if metric in UNCOMPUTED else "a number: null stands only for what cannot be computed"
    if not _is(value, float):
        return "a number"
    if is_percentage(metric) and not 0 <= value <= 100:
        return "an accuracy in percent, 0 to 100"
    if any(word in metric for word in ("rank", "dimensions", "std")) and value < 0:
        return "0 or more"
    return None


def _check_recipe(record: dict[str, Any], where: str | Path) -> None:
    held = record["recipe"]
    views = held.get("views", {})
    if not isinstance(views, dict):
        raise _broken(where, "recipe.views", views, "dict")
    for cls, values, prefix in ((Recipe, held, "recipe."), (ViewSettings, views, "recipe.views.")):
        known = {field.name: field for field in fields(cls)}
        for key, value in values.items():
            if key not in known:
                raise _broken(where, prefix + key, value, f"no such key: {cls.__name__} has no field {key}")
            if key != "views" and not _like(value, known[key]):
                raise _broken(where, prefix + key, value, f"a value like {known[key].default!r}")
    try:
        recipe = recipe_of(record)
    except (TypeError, ValueError) as error:
        raise _broken(where, "recipe", held, f"a recipe ({error})") from None
    if recipe.seed != record["seed"]:
        raise _broken(where, "seed", record["seed"], f"the recipe's seed, {recipe.seed}")


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _is(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of a kind; true and false are no numbers, and whole numbers are floats."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind | int if kind in (float, float | None) else kind)


def _like(value: Any, field: Field) -> bool:
    """Whether a value may stand in a field, to judge by its default; JSON's lists are tuples."""
    default = field.default
    if default is None:
        return value is None or _is(value, int)
    if isinstance(default, tuple):
        any_length = Ellipsis in get_args(field.type)
        alike = isinstance(value, list | tuple) and all(_is(item, type(default[0])) for item in value)
        return alike and (any_length or len(value) == len(default))
    return _is(value, type(default))


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All values within JSON, with dotted keys: ("metrics.linear_top1", 91.5)."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for inner, item in pairs:
            yield from _leaves(item, f"{key}.{inner}" if key else str(inner))
    else:
        yield key, value


def _broken(where: str | Path, key: str, value: Any, expected: str) -> BrokenRecordError:
    return BrokenRecordError(f"{where}: {key} is {value!r:.80}; expected {expected}")
