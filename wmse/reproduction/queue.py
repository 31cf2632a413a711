"""The runs wanted next, from the recipes and the records: a run with a finished record leaves the list."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

from wmse.machine import duration, hardware_label
from wmse.recipes import FLOORS, SOLO_LEARN, TABLE_1, Recipe, get_recipe
from wmse.records import Entry, free_folder
from wmse.reproduction.ablations import ABLATIONS, SEEDS, three_w_mses

TRAINING_IMAGES = {"digits": 2_048, "cifar10": 50_000, "cifar100": 50_000, "tiny-imagenet": 100_000}
TRAINING_IMAGES |= {"stl10": 105_000, "imagenet100": 126_689}  # STL-10: labelled and unlabelled
# Assumed where nothing is measured yet, by kind of device: views a second of a ResNet-18 of this width on a
# grid of 32 x 32 after the stem. The time grows with the grid's area and with the width squared.
ASSUMED = {"cuda": {"speed": 60_000, "width": 64}, "cpu": {"speed": 1_100, "width": 16}}
STRIDES = {"32px": 1, "64px": 2, "224px": 4}  # of the stem with its pooling
IMAGE_SIDES = {"stl10": 96, "tiny-imagenet": 64, "imagenet100": 224}  # pixels; 32 on other sets

INTRODUCTION = """\
Written by `python -m wmse queue --write` from the recipes and the records in this folder: do not edit it.
A run whose record is finished leaves the list. Each command can be cut off and goes on with `--resume`.
CIFAR-10 is fetched on first use, or taken from `--data DIR` or `$WMSE_DATA`."""
TIMES = (
    "Times are of training alone; evaluation adds minutes. Where no record has measured a speed, one is "
    f"assumed: {ASSUMED['cuda']['speed']:,} views a second for ResNet-18 of width {ASSUMED['cuda']['width']} "
    f"on a large GPU, {ASSUMED['cpu']['speed']:,} for width {ASSUMED['cpu']['width']} on two cores, on a "
    "grid of 32 x 32 after the stem; the time grows with the grid's area and the width squared, and methods "
    "count as equally fast. ImageNet-100 is decoded as it is read, which may take longer than training on it."
)
ON_A_GPU_FIRST = ("python -m pytest tests/test_cuda.py", "python -m benchmarks --device cuda --profile")


class RunKey(NamedTuple):
    """A run by its recipe's name, its seed, and the changes to the recipe."""

    name: str
    seed: int
    changes: tuple[tuple[str, Any], ...] = ()  # fields and values

    @property
    def recipe(self) -> Recipe:
        return replace(get_recipe(self.name), **dict(self.changes))

    @property
    def flags(self) -> list[str]:
        return flags(dict(self.changes))


@dataclass(frozen=True)
class Stage:
    """Runs that are wanted at the same time, and for the same reason."""

    title: str
    device: str  # cuda | cpu: the least that they need
    runs: tuple[RunKey, ...]


@dataclass(frozen=True)
class QueuedRun:
    """A run that is wanted, where its record goes, and what it costs."""

    key: RunKey
    out: Path  # results/digits/w-mse-2/slice-size-33/seed-0, or the folder of its unfinished record
    status: str  # of that record, or ""
    views: int  # to train on, all epochs together
    seconds: float  # of training
    basis: str  # what the seconds are computed from

    @property
    def command(self) -> str:
        words = ["train", self.key.name, "--seed", str(self.key.seed), *self.key.flags]
        words += ["--out", self.out.as_posix()]
        return shlex.join(["python", "-m", "wmse", *words]) + (" --resume" if self.status else "")


def _runs(budgets: Iterable[str], methods: Sequence[str], seeds: Iterable[int] = (0,)) -> tuple[RunKey, ...]:
    names = [f"{budget}/{method}" for budget in budgets for method in methods]
    return tuple(RunKey(name, seed) for seed in seeds for name in names)


def _ablated() -> tuple[RunKey, ...]:
    """Every setting once, though some ablations share one; all runs of one seed before the next seed's."""
    ablations = (*ABLATIONS.values(), three_w_mses("digits"))
    settings = [setting for ablation in ablations for setting in ablation.settings]
    runs = [RunKey(s.name, seed, tuple(s.changes.items())) for seed in SEEDS for s in settings]
    return tuple(dict.fromkeys(runs))


_SLIM = (*TABLE_1, "mse", "supervised")
_CLAIMED = ("w-mse-4", "simclr", "byol", "mse", "random-encoder")  # W-MSE 2 is the ablations' first setting
_OURS_FIRST = ("w-mse-2", "w-mse-4", "simclr", "byol")
_LATER = ("cw-rgp-4", "barlow-twins", "vicreg", "supervised")
_DIFFERENCES = [f"w-mse-2-{name}" for name in SOLO_LEARN]
_OTHER_SETS = _runs(["cifar100", "stl10", "tiny-imagenet"], _OURS_FIRST)
_OTHER_SETS += _runs(["imagenet100"], ("w-mse-2", "w-mse-4"))
STAGES = (
    Stage("Table 1 on the slim rung, with what bounds it", "cpu", _runs(["cifar10-cpu"], (*_SLIM, *FLOORS))),
    Stage("The claims on the embedded images", "cpu", _runs(["digits"], _CLAIMED, SEEDS)),
    Stage("Ablations, and three W-MSEs", "cpu", _ablated()),
    Stage("Table 1 at 200 epochs", "cuda", _runs(["cifar10-200"], ("w-mse-2", "simclr", "byol", "w-mse-4"))),
    Stage("Table 1 at the paper's 1000 epochs", "cuda", _runs(["cifar10"], _OURS_FIRST)),
    Stage("Further seeds of the slim rung", "cpu", _runs(["cifar10-cpu"], (*_SLIM, FLOORS[0]), SEEDS[1:])),
    Stage("Three W-MSEs on the slim rung", "cpu", _runs(["cifar10-cpu"], _DIFFERENCES)),
    Stage("Further seeds at 200 epochs", "cuda", _runs(["cifar10-200"], _OURS_FIRST, SEEDS[1:])),
    Stage("What came after, and the upper bound", "cuda", _runs(["cifar10-200", "cifar10"], _LATER)),
    Stage("The other data sets", "cuda", _OTHER_SETS),
)


def wanted(stage: Stage, entries: Sequence[Entry], results: Path) -> list[QueuedRun]:
    """The stage's runs that neither finished nor broke down; their folders are below `results`."""
    runs = [(key, _records_of(key, entries)) for key in stage.runs]
    over = [key for key, own in runs if any(e.record.status == "finished" or e.record.breakdown for e in own)]
    return [_queued(key, stage.device, entries, results) for key, _ in runs if key not in over]


def views_to_train(recipe: Recipe) -> int:
    """How many views all epochs have together; incomplete batches are dropped."""
    whole = TRAINING_IMAGES[recipe.dataset] // recipe.batch_size * recipe.batch_size
    return recipe.epochs * whole * recipe.positives


def speed(recipe: Recipe, device: str, entries: Sequence[Entry]) -> tuple[float, str]:
    """Views a second in training and where that is from: a record on such a device, else `ASSUMED`.

    A record serves if its network is of the same kind, width, stem and size of view, in one process. One of
    the same method is preferred, then the fastest.
    """
    alike = [
        entry
        for entry in entries
        if entry.record.status == "finished"
        and entry.record.views_per_second
        and entry.record.processes == 1
        and entry.record.hardware.get("device") == device
        and _network(entry.record.recipe) == _network(recipe)
    ]
    if alike:
        by_preference = sorted(alike, key=lambda entry: -entry.record.views_per_second)
        best = min(by_preference, key=lambda entry: entry.record.recipe.method != recipe.method)
        on = hardware_label(best.record.hardware)
        return best.record.views_per_second, f"as measured on {on}, {best.folder.as_posix()}"
    assumed = ASSUMED[device]
    grid = _view_side(recipe) / STRIDES[recipe.stem]
    return assumed["speed"] / ((grid / 32) ** 2 * (recipe.width / assumed["width"]) ** 2), "assumed"


def estimate(name: str, device: str, entries: Sequence[Entry], results: str | Path) -> str:
    """How to make a run that nobody has made, in Markdown: what to add to `python -m wmse`, and the time.

    device: cuda | cpu, the kind that it would run on; where no record has measured it, at an assumed speed.
    """
    run = _queued(RunKey(name, 0), device, entries, Path(results))
    return f"`train {name}`" + (f", {duration(run.seconds)}" if run.views else "")


def queue_markdown(entries: Sequence[Entry], problems: Sequence[str], results: str | Path) -> str:
    """The queue as Markdown, as results/QUEUE.md holds it; `results` is the folder of the records."""
    unbroken = {"break_long_words": False, "break_on_hyphens": False}
    blocks = ["# Runs wanted, most valuable first"]
    blocks += [fill(text, 120, **unbroken) for text in (INTRODUCTION, TIMES)]
    if problems:
        blocks.append("\n".join(f"- broken record, not counted: {problem}" for problem in problems))
    blocks.append("## What only a GPU can tell\n\nNeeds a GPU; minutes.")
    blocks.append("\n".join(f"{number}. `{command}`" for number, command in enumerate(ON_A_GPU_FIRST, 1)))
    number = len(ON_A_GPU_FIRST) + 1
    for stage in STAGES:
        if runs := wanted(stage, entries, Path(results)):
            needs = "Needs a GPU" if stage.device == "cuda" else "Needs two processor cores, no GPU"
            total = duration(sum(run.seconds for run in runs))
            blocks.append(f"## {stage.title}\n\n{needs}; all together about {total}.")
            blocks.append("\n".join(f"{place}. {_line(run)}" for place, run in enumerate(runs, number)))
            number += len(runs)
    return "\n\n".join(blocks) + "\n"


def flags(changes: Mapping[str, Any]) -> list[str]:
    """Changes of a recipe as flags of `python -m wmse train`: ["--slice-size", "33", "--no-normalize"]."""
    words = []
    for field, value in changes.items():
        flag = field.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]
    return words


def _records_of(key: RunKey, entries: Sequence[Entry]) -> list[Entry]:
    """The records of exactly that run."""
    own = [entry for entry in entries if (entry.record.name, entry.record.seed) == key[:2]]
    return [entry for entry in own if entry.record.changes == dict(key.changes)]


def _queued(key: RunKey, device: str, entries: Sequence[Entry], results: Path) -> QueuedRun:
    unfinished = ("interrupted", "failed", "running")
    stopped = [entry for entry in _records_of(key, entries) if entry.record.status in unfinished]
    changes = "-".join(word.removeprefix("--") for word in key.flags)
    folder = results / key.name / changes / f"seed-{key.seed}"
    out, status = (stopped[-1].folder, stopped[-1].record.status) if stopped else (free_folder(folder), "")
    views = views_to_train(key.recipe)
    per_second, basis = speed(key.recipe, device, entries) if views else (1.0, "nothing is trained")
    return QueuedRun(key, out, status, views, views / per_second, basis)


def _line(run: QueuedRun) -> str:
    cost = f"{run.views / 1e6:,.1f} million views, {duration(run.seconds)} ({run.basis})"
    stopped = f"; its record says {run.status!r}: see first that it does not run" if run.status else ""
    return f"`{run.command}`: {cost if run.views else run.basis}{stopped}."


def _network(recipe: Recipe) -> tuple[str, int, str, int]:
    return recipe.encoder, recipe.width, recipe.stem, _view_side(recipe)


def _view_side(recipe: Recipe) -> int:
    return recipe.views.size or IMAGE_SIDES.get(recipe.dataset, 32)
