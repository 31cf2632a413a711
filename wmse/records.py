"""One run, one folder: record.json (what, how, where, with what result), metrics.csv, encoder.safetensors."""

import csv
import hashlib
import json
import math
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import Field, asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import torch

from wmse import machine
from wmse.recipes import RECIPES, Recipe, ViewSettings

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


BREAKDOWNS = ("SingularCovarianceError", "DivergenceError")


def start_record(
    name: str, recipe: Recipe, device: torch.device, command: str | None = None
) -> dict[str, Any]:
    """What is known of a run before it starts; `status` is "running" until it is set otherwise."""
    overrides = {}
    if name in RECIPES:
        named = asdict(RECIPES[name])
        overrides = {field: value for field, value in asdict(recipe).items() if value != named[field]}
    return {
        "name": name,
        "status": "running",
        "recipe": asdict(recipe),
        "overrides": overrides,
        "command": command,
        "seed": recipe.seed,
        "git": git_state(),
        "package_sha256": package_hash(),
        "versions": machine.versions(),
        "hardware": machine.describe(device),
        "started": now(),
    }


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write record.json so that a reader sees the old file or the new one, never half of one."""
    text = json.dumps(plain(record), indent=2, ensure_ascii=False, allow_nan=False)
    temporary = folder / "record.json.tmp"
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, folder / "record.json")


def read_record(folder: str | Path) -> dict[str, Any]:
    """The record in a run's folder. FileNotFoundError if there is none, BrokenRecordError if it is bad."""
    path = Path(folder) / "record.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {folder} is not the folder of a run")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise BrokenRecordError(f"{path} is not JSON: {error}") from None
    validate(record, path)
    return record


@dataclass(frozen=True)
class Entry:
    """A record and the folder that holds it."""

    folder: Path
    record: dict[str, Any]


def read_records(root: str | Path) -> tuple[list[Entry], list[str]]:
    """All records below `root`, by folder, and a sentence on each that is broken and left out.

    A root that is absent or empty has none of either.
    """
    entries, problems = [], []
    for path in sorted(Path(root).rglob("record.json")):
        try:
            entries.append(Entry(path.parent, read_record(path.parent)))
        except (BrokenRecordError, OSError) as error:
            problems.append(str(error))
    return entries, problems


def breakdown(record: dict[str, Any]) -> str:
    """How training ended by its own numbers, "SingularCovarianceError: ...", or nothing.

    Such a run has failed and will again: it is an outcome, where one that was cut off is an accident.
    """
    error = record.get("error") or ""
    ended = record["status"] == "failed" and error.split(":")[0] in BREAKDOWNS
    return error if ended else ""


def results_folder() -> Path:
    """The folder that holds the records this book counts on, relative to the working directory.

    That is $WMSE_RESULTS; else `results` in the checkout that holds this package; else the nearest `results`
    in the working directory or above it. Where there is none, a sentence says so, and the answer is a folder
    that does not exist, in which no records are read. NotADirectoryError if $WMSE_RESULTS is not a folder.
    """
    chosen = os.environ.get("WMSE_RESULTS")
    if chosen and not Path(chosen).is_dir():
        raise NotADirectoryError(f"$WMSE_RESULTS is {chosen!r}, which is no folder: correct it, or unset it")
    checkout = Path(__file__).resolve().parents[1]
    # An installed package lies beside others: a `results` among those is not ours.
    roots = [checkout] * (checkout / "pyproject.toml").is_file() + [Path.cwd(), *Path.cwd().parents]
    for folder in [Path(chosen)] if chosen else [root / "results" for root in roots]:
        if folder.is_dir():
            return Path(os.path.relpath(folder))  # pages show it: no folder of this machine's above it
    print(
        "No run is on record here. The records are in the folder `results` of the book's repository: "
        "clone it and set $WMSE_RESULTS to that folder. Without it, tables say that there is no run yet."
    )
    return Path("results")


def free_folder(folder: Path, resume: bool = False) -> Path:
    """The first of folder, folder-2, ... that holds no run; to resume, the last that holds one."""
    last, free = folder, folder
    number = 1
    while (free / "record.json").exists():
        number += 1
        last, free = free, folder.with_name(f"{folder.name}-{number}")
    return last if resume else free


def append_metrics(folder: Path, row: dict[str, float]) -> None:
    """Add a row to metrics.csv, with a header if it is the first."""
    path = folder / "metrics.csv"
    fresh = not path.exists() or path.stat().st_size == 0
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def read_metrics(folder: str | Path) -> list[dict[str, float]]:
    """The rows of metrics.csv as numbers, or none if there is no such file."""
    path = Path(folder) / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def cut_metrics(folder: Path, epochs: int) -> None:
    """Keep the first `epochs` rows of metrics.csv: what a resumed run has behind it."""
    path = folder / "metrics.csv"
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[: epochs + 1]
        temporary = folder / "metrics.csv.tmp"
        temporary.write_text("".join(lines), encoding="utf-8")
        os.replace(temporary, path)


def now() -> str:
    """The time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def package_hash() -> str:
    """SHA-256 over the package's sources: two records with the same one ran the same code."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """Values as JSON has them: infinities and NaN, which it has not, become null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def git_state() -> dict[str, Any] | None:
    """Commit of the package's checkout and whether the checkout differs from it; None outside of one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        return done.stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", __file__
        )  # a package installed inside someone else's checkout is not it
        code = [":(top)", ":(top,exclude)results", ":(top,exclude)benchmarks/results"]
        dirty = bool(git("status", "--porcelain", "--", *code))  # what runs leave behind changes no run
        return {"commit": git("rev-parse", "HEAD"), "dirty": dirty}
    except (OSError, subprocess.SubprocessError):
        return None


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
