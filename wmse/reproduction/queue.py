"""The runs wanted next, from the recipes and the records: a run with a record leaves the list by itself."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

from wmse import machine
from wmse.recipes import FLOORS, SOLO_LEARN, TABLE_1, Recipe, get_recipe
from wmse.records import Entry, free_folder
from wmse.reproduction.ablations import ABLATIONS, SEEDS, Ablation, three_w_mses

TRAINING_IMAGES = {
    "digits": 2_048,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "stl10": 105_000,  # labelled and unlabelled
    "tiny-imagenet": 100_000,
    "imagenet100": 126_689,
}

# Where nothing has been measured yet, by kind of device: views a second of ResNet-18 at `width` on a grid of
# 32 x 32 after the stem. On other grids and widths the time grows with the grid's area and the width squared.
ASSUMED = {"cuda": {"speed": 60_000, "width": 64}, "cpu": {"speed": 1_100, "width": 16}}
STRIDES = {"32px": 1, "64px": 2, "224px": 4}  # of the stem, pooling included
IMAGE_SIDES = {"stl10": 96, "tiny-imagenet": 64, "imagenet100": 224}  # pixels, where they are not 32

INTRODUCTION = """\
Written by `python -m wmse queue --write` from the recipes and the records in this folder: do not edit it.
A run whose record is finished leaves the list. Each command can be cut off and goes on with `--resume`.
CIFAR-10 is fetched on first use, or taken from `--data DIR` or `$WMSE_DATA`."""
UNBROKEN = {"break_long_words": False, "break_on_hyphens": False}
ON_A_GPU_FIRST = ("python -m pytest tests/test_cuda.py", "python -m benchmarks --device cuda --profile")


class Wanted(NamedTuple):
    """A run by its recipe's name and seed, and what is changed of the recipe."""

    name: str
    seed: int
    changes: tuple[tuple[str, Any], ...] = ()  # fields and values

    @property
    def recipe(self) -> Recipe:
        return replace(get_recipe(self.name), **dict(self.changes))

    @property
    def flags(self) -> list[str]:
        return flags(dict(self.changes))

    def folder(self, results: Path) -> Path:
        """Where its record goes: results/digits/w-mse-2/slice-size-33/seed-0."""
        changed = "-".join(word.removeprefix("--") for word in self.flags)
        return results / self.name / changed / f"seed-{self.seed}"


@dataclass(frozen=True)
class Stage:
    """Runs that are wanted at the same time, and for the same reason."""

    title: str
    device: str  # cuda | cpu: the least that they need
    runs: tuple["Wanted", ...]


@dataclass(frozen=True)
class Plan:
    """One run that is wanted."""

    run: Wanted
    out: Path
    status: str  # of the unfinished record of it in `out`, or nothing
    views: int  # to train on, all epochs together
    seconds: float  # of training
    basis: str  # what the time was reckoned from

    @property
    def command(self) -> str:
        resume = " --resume" if self.status else ""
        folder = shlex.quote(self.out.as_posix())
        changed = "".join(f" {word}" for word in self.run.flags)
        return f"python -m wmse train {self.run.name} --seed {self.run.seed}{changed} --out {folder}{resume}"


def _runs(rungs: Iterable[str], methods: Iterable[str], seeds: Iterable[int] = (0,)) -> tuple[Wanted, ...]:
    methods, rungs = tuple(methods), tuple(rungs)
    return tuple(Wanted(f"{rung}/{method}", seed) for seed in seeds for rung in rungs for method in methods)


def _ablated(ablations: Iterable[Ablation]) -> tuple[Wanted, ...]:
    """Every setting once, though several ablations share some; all of one seed before the next."""
    settings = [setting for ablation in ablations for setting in ablation.settings]
    runs = [Wanted(s.name, seed, tuple(s.changes.items())) for seed in SEEDS for s in settings]
    return tuple(dict.fromkeys(runs))


_SLIM = (*TABLE_1, "mse", "supervised")
_BESIDE = ("w-mse-4", "simclr", "byol", "mse", "random-encoder")  # W-MSE 2 itself is the ablations' first
_OURS_FIRST = ("w-mse-2", "w-mse-4", "simclr", "byol")
STAGES = (
    Stage("Table 1 on the slim rung, with what bounds it", "cpu", _runs(["cifar10-cpu"], (*_SLIM, *FLOORS))),
    Stage("The claims on the embedded images", "cpu", _runs(["digits"], _BESIDE, SEEDS)),
    Stage("Ablations, and three W-MSEs", "cpu", _ablated((*ABLATIONS.values(), three_w_mses("digits")))),
    Stage("Table 1 at 200 epochs", "cuda", _runs(["cifar10-200"], ("w-mse-2", "simclr", "byol", "w-mse-4"))),
    Stage("Table 1 at the paper's 1000 epochs", "cuda", _runs(["cifar10"], _OURS_FIRST)),
    Stage(
        "Further seeds of the slim rung", "cpu", _runs(["cifar10-cpu"], (*_SLIM, "random-encoder"), (1, 2))
    ),
    Stage(
        "Three W-MSEs on the slim rung",
        "cpu",
        _runs(["cifar10-cpu"], [f"w-mse-2-{name}" for name in SOLO_LEARN]),
    ),
    Stage("Further seeds at 200 epochs", "cuda", _runs(["cifar10-200"], _OURS_FIRST, (1, 2))),
    Stage(
        "What came after, and the upper bound",
        "cuda",
        _runs(["cifar10-200", "cifar10"], ("cw-rgp-4", "barlow-twins", "vicreg", "supervised")),
    ),
    Stage(
        "The other data sets",
        "cuda",
        (
            *_runs(["cifar100", "stl10", "tiny-imagenet"], _OURS_FIRST),
            *_runs(["imagenet100"], ("w-mse-2", "w-mse-4")),
        ),
    ),
)


def wanted(stage: Stage, entries: Sequence[Entry], results: Path) -> list[Plan]:
    """The stage's runs that have no finished record among `entries`; their folders are below `results`."""
    return [_plan(run, stage.device, entries, results) for run in stage.runs if not _ended(run, entries)]


def views_to_train(recipe: Recipe) -> int:
    """How many views all epochs have together; incomplete batches are dropped."""
    whole = TRAINING_IMAGES[recipe.dataset] // recipe.batch_size * recipe.batch_size
    return recipe.epochs * whole * recipe.positives


def speed(recipe: Recipe, device: str, entries: Sequence[Entry]) -> tuple[float, str]:
    """Views a second in training and where that is from: a record on such a device, else `ASSUMED`.

    A record serves if its network is of the same kind, width, stem and size of view, in one process; one of
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
        best = max(
            alike,
            key=lambda entry: (
                entry.record.recipe.method == recipe.method,
                entry.record.views_per_second,
            ),
        )
        on = machine.hardware_label(best.record.hardware)
        return best.record.views_per_second, f"as measured on {on}, {best.folder.as_posix()}"
    assumed = ASSUMED[device]
    grid = _view_side(recipe) / STRIDES[recipe.stem]
    slower = (grid / 32) ** 2 * (recipe.width / assumed["width"]) ** 2
    return assumed["speed"] / slower, "assumed"


def estimate(name: str, device: str, entries: Sequence[Entry], results: str | Path) -> str:
    """How to make a run that nobody has made, in Markdown: what to add to `python -m wmse`, and the time.

    device: cuda | cpu, the kind that it would run on; where no record has measured it, at an assumed speed.
    """
    plan = _plan(Wanted(name, 0), device, entries, Path(results))
    return f"`train {name}`" + (f", {machine.duration(plan.seconds)}" if plan.views else "")


def queue_markdown(entries: Sequence[Entry], problems: Sequence[str], results: str | Path) -> str:
    """The queue as Markdown, as results/QUEUE.md holds it; `results` is the folder of the records."""
    blocks = [
        "# Runs wanted, most valuable first",
        *(fill(text, 120, **UNBROKEN) for text in (INTRODUCTION, _rule())),
    ]
    if problems:
        blocks.append("\n".join(f"- broken record, not counted: {problem}" for problem in problems))
    blocks.append("## What only a GPU can tell\n\nNeeds a GPU; minutes.")
    blocks.append("\n".join(f"{number}. `{command}`" for number, command in enumerate(ON_A_GPU_FIRST, 1)))
    number = len(ON_A_GPU_FIRST) + 1
    for stage in STAGES:
        plans = wanted(stage, entries, Path(results))
        if plans:
            needs = "Needs a GPU" if stage.device == "cuda" else "Needs two processor cores, no GPU"
            total = machine.duration(sum(plan.seconds for plan in plans))
            blocks.append(f"## {stage.title}\n\n{needs}; all together about {total}.")
            blocks.append("\n".join(_line(number + index, plan) for index, plan in enumerate(plans)))
            number += len(plans)
    return "\n\n".join(blocks) + "\n"


def _plan(run: Wanted, device: str, entries: Sequence[Entry], results: Path) -> Plan:
    recipe = run.recipe
    stopped = _found(run, ("interrupted", "failed", "running"), entries)
    out = stopped[-1].folder if stopped else free_folder(run.folder(results))
    views = views_to_train(recipe)
    per_second, basis = speed(recipe, device, entries) if views else (1.0, "nothing is trained")
    status = stopped[-1].record.status if stopped else ""
    return Plan(run, out, status, views, views / per_second, basis)


def _ended(run: Wanted, entries: Sequence[Entry]) -> bool:
    """Whether the run is finished, or broke down by its own numbers and would again."""
    failed = _found(run, ("failed",), entries)
    return bool(_found(run, ("finished",), entries)) or any(entry.record.breakdown for entry in failed)


def _found(run: Wanted, statuses: Iterable[str], entries: Sequence[Entry]) -> list[Entry]:
    """The records of that very run in one of these states."""
    return [
        entry
        for entry in entries
        if entry.record.status in statuses
        and (entry.record.name, entry.record.seed) == (run.name, run.seed)
        and entry.record.changes == dict(run.changes)
    ]


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


def _network(recipe: Recipe) -> tuple:
    return recipe.encoder, recipe.width, recipe.stem, _view_side(recipe)


def _view_side(recipe: Recipe) -> int:
    return recipe.views.size or IMAGE_SIDES.get(recipe.dataset, 32)


def _rule() -> str:
    cuda, cpu = ASSUMED["cuda"], ASSUMED["cpu"]
    return (
        "Times are of training alone; evaluation adds minutes. Where no record has measured a speed, one is "
        f"assumed: {cuda['speed']:,} views a second for ResNet-18 of width {cuda['width']} on a large GPU, "
        f"{cpu['speed']:,} for width {cpu['width']} on two cores, on a grid of 32 x 32 after the stem; the "
        "time grows with the grid's area and the width squared, and methods count as equally fast. "
        "ImageNet-100 is decoded as it is read, which may take longer than training on it."
    )


def _line(number: int, plan: Plan) -> str:
    cost = f"{plan.views / 1e6:,.1f} million views, {machine.duration(plan.seconds)} ({plan.basis})"
    stopped = f"; its record says {plan.status!r}: see first that it does not run" if plan.status else ""
    return f"{number}. `{plan.command}`: {cost if plan.views else plan.basis}{stopped}."
