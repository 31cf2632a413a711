"""A run leaves a folder: record.json (what ran, how, where, with what result), metrics.csv, the networks.

`Record` is the content of record.json. Reading one checks all types and ranges, and parses the recipe, once.
A key that only some records have is one more field of `Record`, with a default; keys that `Record` does not
name, such as those of older records, are kept and not checked.
"""

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain, count, islice, takewhile
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pydantic
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic_core import PydanticCustomError

from wmse import machine
from wmse.recipes import RECIPES, Recipe, ViewSettings

if TYPE_CHECKING:
    import torch

CHECKPOINTS = ("checkpoint.pt", "checkpoint.previous.pt")  # newest first
DAMAGED = "checkpoint.damaged.pt"  # a newest checkpoint in whose place the one before was loaded
NETWORKS = ("encoder.safetensors", "projector.safetensors")
WRITTEN = ("record.json", "metrics.csv", *NETWORKS, *CHECKPOINTS, DAMAGED)  # all names that a run writes
Status = Literal["running", "finished", "interrupted", "failed", "obsolete"]  # obsolete: replaced by a later
FINISHED = "metrics finished steps train_seconds wall_seconds precision images peak_memory_mb".split()
# Metrics that may be null: they need more images or dimensions than some runs have.
MAY_BE_NULL = ("cca_dimensions", "effective_rank_whitened", "alignment_whitened", "uniformity_whitened")
BREAKDOWNS = ("SingularCovarianceError", "DivergenceError")
# Fields that do not define the experiment. Runs that differ only in these are averaged. The number of
# processes does define it: BatchNorm sees each process's part of a batch or, synchronised, the whole.
NOT_OF_THE_EXPERIMENT = ("seed", "precision", "compile", "cuda_graphs", "sync_batchnorm")
NO_CHANGES: Mapping[str, Any] = MappingProxyType({})
CHECKS = pydantic.ConfigDict(strict=True, allow_inf_nan=False)
for _class in (Recipe, ViewSettings):  # an unknown field of a recipe is an error; of a record it is not
    pydantic.with_config(CHECKS | {"extra": "forbid"})(_class)


class BrokenRecordError(ValueError):
    """A record with a wrong or missing value; the message names the file, the key and the value."""


class Record(pydantic.BaseModel):
    """What is known of one run. The order of the fields is that of the keys in record.json."""

    model_config = CHECKS | {"extra": "allow"}

    name: str  # of the recipe, "cifar10-200/w-mse-2"
    status: Status
    recipe: Recipe  # fields that an older record lacks take today's defaults
    command: str | None = None
    seed: int
    git: dict[str, Any] | None
    package_sha256: str
    versions: dict[str, Any]
    hardware: dict[str, Any]
    started: str
    precision: str = ""
    processes: PositiveInt = 1
    limit: NonNegativeInt | None = None  # only so many images of each split were used
    scored_on: Literal["test", "validation"] = "test"  # validation: training images kept aside
    images: dict[str, PositiveInt] = {}  # by split; "test" has those that it was scored on
    images_sha256: dict[str, str] = {}  # by split: the set's `fingerprint`
    folder: dict[str, Any] = {}  # of a run on one's own images: path, classes, mean, std, left_out
    metrics: dict[str, float | None] = {}
    spectra: dict[str, Any] = {}
    error: str = ""
    wall_seconds: NonNegativeFloat = 0.0  # training and evaluation
    finished: str = ""
    steps: NonNegativeInt = 0
    skipped_steps: NonNegativeInt = 0  # of these, on a GPU: the loss was not finite, and no weight changed
    train_seconds: NonNegativeFloat = 0.0
    views_per_second: NonNegativeFloat | None = None  # in training
    peak_memory_mb: NonNegativeFloat = 0.0  # MiB
    curve: list[dict[str, float | None]] = []  # the rows of metrics.csv

    @pydantic.field_validator("started", "finished")
    @classmethod
    def _check_time(cls, time: str) -> str:
        with suppress(ValueError):
            if datetime.fromisoformat(time).tzinfo:
                return time
        raise PydanticCustomError("time", "a time in ISO 8601, with its offset from UTC")

    @pydantic.field_validator("metrics")
    @classmethod
    def _check_metrics(cls, metrics: dict[str, float | None]) -> dict[str, float | None]:
        for metric, value in metrics.items():
            expected = ""
            if value is None:
                expected = "" if metric in MAY_BE_NULL else "a number: this metric is never null"
            elif is_percentage(metric) and not 0 <= value <= 100:
                expected = "an accuracy in percent, 0 to 100"
            elif value < 0 and any(word in metric for word in ("rank", "dimensions", "std")):
                expected = "0 or more"
            if expected:
                raise ValueError(f"{metric} is {value!r}; expected {expected}")
        return metrics

    @pydantic.model_validator(mode="after")
    def _check_whole(self) -> "Record":
        if self.seed != self.recipe.seed:
            raise ValueError(f"seed is {self.seed}; expected the recipe's seed, {self.recipe.seed}")
        present = self.model_fields_set | {f"images.{split}" for split in self.images}
        lacking = [key for key in (*FINISHED, "images.test") if key not in present]
        if self.status == "finished" and lacking:
            raise ValueError(f"a finished run lacks the key {lacking[0]!r}")
        return self

    @property
    def budget(self) -> str:
        """Data set and budget, the name's first part, "cifar10-200"; empty where the name has one part."""
        return self.name.rpartition("/")[0]

    @property
    def method(self) -> str:
        """The name's second part: "w-mse-2"."""
        return self.name.rpartition("/")[2]

    @cached_property
    def changes(self) -> dict[str, Any]:
        """How the recipe differs from the one it is named after; also the limit, processes beyond one,
        and `scored_on` unless it is "test".

        Raises ValueError if the name is no recipe's.
        """
        if self.name not in RECIPES:
            raise ValueError(f"{self.name!r} is not the name of a recipe")
        named = _flat(RECIPES[self.name]) | {"limit": None, "scored_on": "test"}
        own = _flat(self.recipe) | {"limit": self.limit, "scored_on": self.scored_on}
        changes = {key: value for key, value in own.items() if value != named[key]}
        if self.processes > 1:
            changes |= {"processes": self.processes, "sync_batchnorm": self.recipe.sync_batchnorm}
        return changes

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same to resume the run: see `identify`."""
        return identify(self.recipe, self.limit, self.scored_on, self.images, self.images_sha256)

    @property
    def changes_label(self) -> str:
        """The changes for a reader: "epochs 20, lr_drops 4 2"; empty where there are none."""
        values = {key: value if isinstance(value, tuple) else (value,) for key, value in self.changes.items()}
        return ", ".join(" ".join(map(str, (key, *value))) for key, value in values.items())

    @property
    def budget_label(self) -> str:
        """The budget for a reader: "cifar10 (1000 epochs), but epochs 20, limit 512"."""
        changes, recipe = self.changes_label, RECIPES[self.name]
        cost = f"{recipe.epochs} epochs" if recipe.epochs else "not trained"
        slim = f", width {recipe.width}" if recipe.width != Recipe.width else ""
        return f"{self.budget} ({cost}{slim})" + (f", but {changes}" if changes else "")

    @property
    def breakdown(self) -> str:
        """The error of a run that its own numbers ended, and would end again; empty for other runs."""
        return self.error if self.status == "failed" and self.error.split(":")[0] in BREAKDOWNS else ""


def is_percentage(metric: str) -> bool:
    """Whether the metric of that name is an accuracy in percent."""
    return "top1" in metric or "top5" in metric


def _flat(recipe: Recipe) -> dict[str, Any]:
    """The fields that define the experiment; those of the views are named "views.hue"."""
    values = asdict(recipe)
    values |= {f"views.{key}": value for key, value in values.pop("views").items()}
    return {key: value for key, value in values.items() if key not in NOT_OF_THE_EXPERIMENT}


def parse_record(text: str | bytes, where: str | Path = "the record") -> Record:
    """The record in a JSON text. BrokenRecordError, which begins with `where`, if any value is bad."""
    try:
        return Record.model_validate_json(text)
    except pydantic.ValidationError as error:
        raise BrokenRecordError(f"{where}: {_problem(error.errors()[0], text)}") from None


def _problem(error: Mapping[str, Any], text: str | bytes) -> str:
    """A pydantic error in words: the key, the value seen, and what is expected."""
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if error["type"] == "json_invalid":
        return f"it is not JSON: {message}"
    value, path = json.loads(text), []
    for part in error["loc"]:
        if not isinstance(value, dict) or part not in value:
            break  # an item of a list: the whole list is shown
        value = value[part]
        path.append(str(part))
    key = ".".join(path)
    if error["type"] == "missing" and isinstance(value, dict):
        return f"it lacks the key {'.'.join([*path, error['loc'][-1]])!r}"
    if error["type"] == "value_error":
        return ".".join([*path, message])
    return f"{key or 'it'} is {value!r:.80}; expected {message}"


def start_record(name: str, recipe: Recipe, device: "torch.device", **known: Any) -> Record:
    """What is known of a run before it starts, with further keys; `status` is "running" until it is set."""
    code = {"git": machine.git_state(), "package_sha256": machine.package_hash()}
    known |= code | {"versions": machine.versions(), "hardware": machine.describe(device)}
    return Record(name=name, status="running", recipe=recipe, seed=recipe.seed, started=now(), **known)


def identify(
    recipe: Recipe,
    limit: int | None,
    scored_on: str,
    images: Mapping[str, int] = NO_CHANGES,
    images_sha256: Mapping[str, str] = NO_CHANGES,
) -> dict[str, Any]:
    """What must be the same to resume a run, as JSON has it: settings and images, both as in a record."""
    identity = plain(asdict(recipe) | {"limit": limit, "scored_on": scored_on})
    identity |= {f"images in {split}": number for split, number in images.items()}
    return identity | {f"SHA-256 of {split}": digest for split, digest in images_sha256.items()}


def write_record(folder: Path, record: Record) -> None:
    """Write record.json in one step: a reader sees the old file or the new one, never half of one."""
    content = plain(record.model_dump(exclude_unset=True, warnings=False))
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    machine.write_whole(folder / "record.json", f"{text}\n".encode())


def read_record(folder: str | Path) -> Record:
    """The record in a run's folder. FileNotFoundError if there is none, BrokenRecordError if it is bad."""
    path = Path(folder) / "record.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {folder} is not the folder of a run")
    return parse_record(path.read_bytes(), path)


class Entry(NamedTuple):
    """A record and the folder that holds it."""

    folder: Path
    record: Record


def read_records(root: str | Path) -> tuple[list[Entry], list[str]]:
    """Records below `root`, without own images and copies in root/encoders; a sentence on each broken one."""
    entries, problems, root = [], [], Path(root)
    for path in sorted({*root.rglob("record.json")} - {*root.glob("encoders/*/record.json")}):
        try:
            entries.append(Entry(path.parent, read_record(path.parent)))
        except (BrokenRecordError, OSError) as error:
            problems.append(str(error))
    return [entry for entry in entries if entry.record.recipe.dataset != "folder"], problems


def by_seed(
    entries: Iterable[Entry],
    name: str,
    changes: Mapping[str, Any] = NO_CHANGES,
    ended: Callable[[Record], Any] = lambda record: record.status == "finished",
) -> dict[int, Record]:
    """Records of the recipe `name` with exactly these changes that have `ended`: the last of each seed."""
    runs = [record for _, record in entries if record.name == name and ended(record)]
    runs.sort(key=lambda record: record.finished)
    return {record.seed: record for record in runs if record.changes == changes}


def results_folder() -> Path:
    """The folder of the records that the book shows, relative to the working directory.

    That is $WMSE_RESULTS (NotADirectoryError if it is no folder); else `results` in the checkout that holds
    this package; else the nearest in the working directory or above it. Where there is none, a sentence says
    so, and the path returned holds no records.
    """
    chosen = os.environ.get("WMSE_RESULTS")
    if chosen and not machine.as_path(chosen).is_dir():
        raise NotADirectoryError(f"$WMSE_RESULTS is {chosen!r}, which is no folder: correct it, or unset it")
    checkout = Path(__file__).resolve().parents[1]
    # Beside an installed package lie other packages, and a `results` among them is not the book's.
    roots = [checkout] * (checkout / "pyproject.toml").is_file() + [Path.cwd(), *Path.cwd().parents]
    for folder in [machine.as_path(chosen)] if chosen else [root / "results" for root in roots]:
        if folder.is_dir():
            return Path(os.path.relpath(folder))  # pages show it, without this machine's folders above it
    print(
        "No run is on record here. The records are in the folder `results` of the book's repository: "
        "clone it and set $WMSE_RESULTS to that folder. Without it, tables say that there is no run yet."
    )
    return Path("results")


def held(folder: Path) -> list[str]:
    """The names in a folder that a run writes, NAME.tmp included; none if there is no such folder."""
    try:
        present = set(os.listdir(folder))
    except FileNotFoundError:
        return []
    return [name for one in WRITTEN for name in (one, f"{one}.tmp") if name in present]


def numbered(folder: Path) -> Iterator[Path]:
    """folder, folder-2, folder-3, ..."""
    return chain([folder], (folder.with_name(f"{folder.name}-{number}") for number in count(2)))


def free_folder(folder: Path, resume: bool = False) -> Path:
    """The first of folder, folder-2, ... that holds no run; to resume, the last that holds one."""
    taken = list(takewhile(held, numbered(folder)))
    return taken[-1] if resume and taken else next(islice(numbered(folder), len(taken), None))


def write_metrics(folder: Path, rows: Sequence[Mapping[str, float | None]]) -> None:
    """Write metrics.csv, a row an epoch, in one step. Without rows the file is empty."""
    lines = [rows[0].keys(), *(row.values() for row in rows)] if rows else []
    text = [",".join("nan" if value is None else str(value) for value in line) + "\n" for line in lines]
    machine.write_whole(folder / "metrics.csv", "".join(text).encode())


def read_metrics(folder: str | Path) -> list[dict[str, float]]:
    """The rows of metrics.csv as numbers, or none if there is no such file. ValueError if it is torn."""
    path = Path(folder) / "metrics.csv"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    reader = csv.DictReader(text.splitlines())
    with suppress(TypeError, ValueError, csv.Error):
        rows = [{name: float(value) for name, value in row.items()} for row in reader]
        if not text or text.endswith("\n"):
            return rows
    raise ValueError(f"{path} is torn at line {reader.line_num}; resume its run, which writes it anew")


def now() -> str:
    """The time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def plain(value: Any) -> Any:
    """Values as JSON has them: tuples become lists; infinities and NaN, which JSON lacks, become null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
