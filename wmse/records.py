"""One run, one folder: record.json (what, how, where, with what result), metrics.csv, encoder.safetensors."""

import csv
import hashlib
import json
import math
import os
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from wmse import machine
from wmse.recipes import RECIPES, Recipe
from wmse.schema import BrokenRecordError, validate
from wmse.schema import recipe_of as recipe_of

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
