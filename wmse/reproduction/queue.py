"""The runs wanted next, from the recipes and the records: a run with a finished record leaves the list."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

from wmse.machine import duration, hardware_label
from wmse.recipes import FLOORS, Recipe, get_recipe
from wmse.records import Entry, free_folder
from wmse.reproduction.ablations import ABLATIONS, LATER_SEEDS, SEEDS, Ablation, three_w_mses
from wmse.reproduction.tuning import TUNED, trials

TRAINING_IMAGES = {"digits": 2_048, "cifar10": 50_000, "cifar100": 50_000, "tiny-imagenet": 100_000}
TRAINING_IMAGES |= {"stl10": 105_000, "imagenet100": 126_689}  # STL-10: labelled and unlabelled
# Assumed where no run has been recorded, by kind of device: views per second of a ResNet-18 of this width on
# a grid of 32 x 32 after the stem. The time grows with the grid's area and with the width squared. The GPU's
# are those of a step that `benchmarks.step` timed on an H100. BYOL, not timed, has a second network.
ASSUMED = {"cuda": {"speed": 50_000, "width": 64}, "cpu": {"speed": 1_100, "width": 16}}
OF_FOUR_VIEWS, OF_BYOL = 47_000, 38_000  # on a GPU
STRIDES = {"32px": 1, "64px": 2, "224px": 4}  # of the stem with its pooling
IMAGE_SIDES = {"stl10": 96, "tiny-imagenet": 64, "imagenet100": 224}  # pixels; 32 on other sets

INTRODUCTION = """\
Written by `python -m wmse queue --write` from the recipes and the records in this folder: do not edit it.
A run whose record is finished leaves the list. Each command can be cut off and goes on with `--resume`.
CIFAR-10 is fetched on first use, or taken from `--data DIR` or `$WMSE_DATA`."""
TIMES = (
    "Times are of training alone; evaluation adds minutes, on a large GPU half a minute. Where no record has "
    f"measured a speed, one is assumed. On a large GPU it is {ASSUMED['cuda']['speed']:,} views per second "
    f"for ResNet-18 of width {ASSUMED['cuda']['width']} and {OF_FOUR_VIEWS:,} for methods of four views, "
    f"as timed on an H100, and {OF_BYOL:,} for BYOL, which was not timed. On two cores it is "
    f"{ASSUMED['cpu']['speed']:,} for width {ASSUMED['cpu']['width']}. All are for a grid of 32 x 32 after "
    "the stem; the time grows with the grid's area and the width squared. ImageNet-100 is decoded as it is "
    "read, which may take longer than training on it."
)
ON_A_GPU_FIRST = ("python -m benchmarks.first_half_hour", "python -m benchmarks --device cuda --profile")
LENT = (
    "Needs a GPU. The first command is for one that is lent for half an hour (`--minutes 30`). It runs "
    "`tests/test_cuda.py`, times a step of two recipes by part, compiled and not, in bfloat16 and float16, "
    "and takes the fastest way. Then the runs of Table 1 at 200 epochs train two at a time, because more "
    "would only share the card. The lease may end at any second: the same command goes on from the last "
    "checkpoints. "
    "`--budget digits --epochs 2 --limit 512` rehearses it on a processor.",
    "A machine that has only torch and torchvision needs four small wheels besides, with what they need "
    "themselves. `pip download -d wheels tyro pydantic safetensors tqdm` fetches them where there is a "
    "network, and `pip install --no-index --find-links wheels tyro pydantic safetensors tqdm` installs them. "
    'Without tyro there is no command line, but `wmse.training.train("cifar10/w-mse-2", "runs/x")` works.',
)


@dataclass(frozen=True)
class QueuedRun:
    """A run that is wanted; where its record goes and what it costs follow from the records."""

    name: str  # of the recipe
    seed: int
    changes: tuple[tuple[str, Any], ...] = ()  # as `Record.changes`
    folder: str = field(default="", compare=False)  # below the results; empty: as the three above say
    out: Path = field(default=Path(), compare=False)  # of an unfinished record, or a free folder
    status: str = field(default="", compare=False)  # of the unfinished record
    views: int = field(default=0, compare=False)  # to train on, all epochs together
    seconds: float = field(default=0.0, compare=False)  # of training
    basis: str = field(default="", compare=False)  # what the seconds are computed from

    @property
    def recipe(self) -> Recipe:
        fields = {key: value for key, value in self.changes if key not in ("limit", "scored_on")}
        return replace(get_recipe(self.name), **fields)

    @property
    def command(self) -> str:
        words = ["train", self.name, "--seed", str(self.seed), *flags(dict(self.changes))]
        words += ["--out", self.out.as_posix()] + ["--resume"] * bool(self.status)
        return shlex.join(["python", "-m", "wmse", *words])

    @property
    def remark(self) -> str:
        cost = f"{self.views / 1e6:,.1f} million views, {duration(self.seconds)} ({self.basis})"
        stopped = f"; its record says {self.status!r}: see first that it does not run" if self.status else ""
        return (cost if self.views else self.basis) + stopped


class Stage(NamedTuple):
    """Runs that are wanted at the same time, and for the same reason."""

    title: str
    device: str  # cuda | cpu: the least that they need
    runs: tuple[QueuedRun, ...]


def _runs(budget: str, methods: Sequence[str], seeds: Iterable[int] = (0,)) -> tuple[QueuedRun, ...]:
    return tuple(QueuedRun(f"{budget}/{method}", seed) for seed in seeds for method in methods)


def _ablated(ablations: Iterable[Ablation], seeds: Iterable[int]) -> tuple[QueuedRun, ...]:
    """Every setting once, though some ablations share one; all runs of one seed before the next seed's."""
    settings = [setting for ablation in ablations for setting in ablation.settings]
    runs = [QueuedRun(s.name, seed, tuple(s.changes.items())) for seed in seeds for s in settings]
    return tuple(dict.fromkeys(runs))


def _tuning() -> tuple[QueuedRun, ...]:
    """All trials; those of one learning rate and value for all methods, before the next."""
    by_method = [trials(method) for method in TUNED]
    return tuple(
        QueuedRun(
            trial.name,
            0,
            tuple(trial.changes.items()),
            trial.folder,
        )
        for alike in zip(*by_method, strict=True)
        for trial in alike
    )


_CLAIMED = ("w-mse-4", "simclr", "byol", "mse", "random-encoder")  # W-MSE 2 is the ablations' first setting
_OURS_FIRST = ("w-mse-2", "w-mse-4", "simclr", "byol")
_LATER = ("cw-rgp-4", "barlow-twins", "vicreg", "supervised")
_BOUNDS = ("mse", *FLOORS, "supervised")
_REPEATED = (*_OURS_FIRST, "mse", *FLOORS)
_CAME_AFTER = _runs("cifar10-200", _LATER) + _runs("cifar10", _LATER)
_OTHER_SETS = _runs("cifar100", _OURS_FIRST) + _runs("stl10", _OURS_FIRST)
_OTHER_SETS += _runs("tiny-imagenet", _OURS_FIRST) + _runs("imagenet100", ("w-mse-2", "w-mse-4"))
_LONGER = ABLATIONS["longer"]
_ONE_MINUTE = [*(one for one in ABLATIONS.values() if one is not _LONGER), three_w_mses("digits")]
_LAPTOP, _DETACHED = "cifar10-laptop", ("w-mse-2-detached",)
STAGES = (
    Stage("Settings for the laptop's rung, chosen on validation images", "cpu", _tuning()),
    Stage("Table 1 on the laptop's rung", "cpu", _runs(_LAPTOP, _OURS_FIRST)),
    Stage("What bounds it", "cpu", _runs(_LAPTOP, _BOUNDS)),
    Stage("Two further seeds", "cpu", _runs(_LAPTOP, _REPEATED, SEEDS[1:])),
    Stage("CIFAR-100 on the laptop's rung", "cpu", _runs("cifar100-laptop", _OURS_FIRST)),
    Stage("Later methods", "cpu", _runs(_LAPTOP, ("barlow-twins", "vicreg", "cw-rgp-2"))),
    Stage("W-MSE 2 with the second view detached", "cpu", _runs(_LAPTOP, _DETACHED)),
    Stage("Seeds 3 and 4", "cpu", _runs(_LAPTOP, _OURS_FIRST, (3, 4))),
    Stage("The claims on the embedded images", "cpu", _runs("digits", _CLAIMED, SEEDS)),
    Stage("LeJEPA on the embedded images", "cpu", _runs("digits", ("lejepa",), SEEDS)),
    Stage("Ablations, and three W-MSEs", "cpu", _ablated(_ONE_MINUTE, SEEDS)),
    Stage("Three ablations at four times the epochs", "cpu", _ablated([_LONGER], SEEDS)),
    Stage("Table 1 at 25 epochs, half the width", "cuda", _runs("cifar10-25", _REPEATED, SEEDS)),
    Stage("Table 1 at 200 epochs", "cuda", _runs("cifar10-200", ("w-mse-2", "simclr", "byol", "w-mse-4"))),
    Stage("Table 1 at the paper's 1000 epochs", "cuda", _runs("cifar10", _OURS_FIRST)),
    Stage("Further seeds at 200 epochs", "cuda", _runs("cifar10-200", _OURS_FIRST, SEEDS[1:])),
    Stage("What came after, and the upper bound", "cuda", _CAME_AFTER),
    Stage("The other data sets", "cuda", _OTHER_SETS),
    Stage("Seven more seeds of the ablations of a minute", "cpu", _ablated(_ONE_MINUTE, LATER_SEEDS)),
)


def wanted(stage: Stage, entries: Sequence[Entry], results: Path) -> list[QueuedRun]:
    """The stage's runs that neither finished nor broke down; their folders are below `results`."""
    queued = []
    for run in stage.runs:
        same = [e for e in entries if (e.record.name, e.record.seed) == (run.name, run.seed)]
        own = [e for e in same if e.record.changes == dict(run.changes) and e.record.status != "obsolete"]
        if any(record.status == "finished" or record.breakdown for _, record in own):
            continue
        changes = "-".join(word.removeprefix("--") for word in flags(dict(run.changes)))
        folder = Path(run.folder or Path(run.name, changes, f"seed-{run.seed}"))
        out, status = (own[-1].folder, own[-1].record.status) if own else (free_folder(results / folder), "")
        share = 0.9 if ("scored_on", "validation") in run.changes else 1.0
        costs = cost(run.recipe, stage.device, entries, share)
        queued.append(replace(run, folder=folder.as_posix(), out=out, status=status, **costs))
    return queued


def cost(recipe: Recipe, device: str, entries: Sequence[Entry], share: float = 1.0) -> dict[str, Any]:
    """Views, seconds and basis as in `QueuedRun`, on a kind of device, cuda or cpu, for a share of images."""
    views = views_to_train(recipe, share)
    per_second, basis = speed(recipe, device, entries) if views else (1.0, "nothing is trained")
    return {"views": views, "seconds": views / per_second, "basis": basis}


def views_to_train(recipe: Recipe, share: float = 1.0) -> int:
    """How many views all epochs on this share of the images have together; incomplete batches are dropped."""
    whole = round(share * TRAINING_IMAGES[recipe.dataset]) // recipe.batch_size * recipe.batch_size
    return recipe.epochs * whole * recipe.positives


def speed(recipe: Recipe, device: str, entries: Sequence[Entry]) -> tuple[float, str]:
    """Views a second in training and where that is from: a record on such a device, else `ASSUMED`.

    A record serves if its network is of the same kind, width, stem and size of view, in one process. One of
    the same method is preferred, then the fastest.
    """
    alike = [
        e
        for e in entries
        if e.record.status == "finished" and e.record.views_per_second and e.record.processes == 1
        if e.record.hardware.get("device") == device and _network(e.record.recipe) == _network(recipe)
    ]
    if alike:
        best = max(alike, key=lambda e: (e.record.recipe.method == recipe.method, e.record.views_per_second))
        on = hardware_label(best.record.hardware)
        return best.record.views_per_second, f"as measured on {on}, {best.folder.as_posix()}"
    assumed = ASSUMED[device]
    grid = _network(recipe)[-1] / STRIDES[recipe.stem]
    views_per_second = assumed["speed"]
    if device == "cuda" and (recipe.method == "byol" or recipe.positives > 2):
        views_per_second = OF_BYOL if recipe.method == "byol" else OF_FOUR_VIEWS
    return views_per_second / ((grid / 32) ** 2 * (recipe.width / assumed["width"]) ** 2), "assumed"


def estimate(name: str, device: str, entries: Sequence[Entry]) -> str:
    """How to make a run that nobody has made, in Markdown: what to add to `python -m wmse`, and the time.

    device: cuda | cpu, the kind that it would run on; where no record has measured it, at an assumed speed.
    """
    seconds = cost(get_recipe(name), device, entries)["seconds"]
    return f"`train {name}`" + (f", {duration(seconds)}" if seconds else "")


def queue_markdown(entries: Sequence[Entry], problems: Sequence[str], results: str | Path) -> str:
    """The queue as Markdown, as results/QUEUE.md holds it; `results` is the folder of the records."""
    unbroken = {"break_long_words": False, "break_on_hyphens": False}
    blocks = ["# Runs wanted, most valuable first"]
    blocks += [fill(text, 120, **unbroken) for text in (INTRODUCTION, TIMES)]
    if problems:
        blocks.append("\n".join(f"- broken record, not counted: {problem}" for problem in problems))
    numbers = count(1)
    blocks += ["## What only a GPU can tell", *(fill(text, 120, **unbroken) for text in LENT)]
    blocks.append("\n".join(f"{next(numbers)}. `{command}`" for command in ON_A_GPU_FIRST))
    for stage in STAGES:
        if runs := wanted(stage, entries, Path(results)):
            needs = "Needs a GPU" if stage.device == "cuda" else "Needs two processor cores, no GPU"
            total = duration(sum(run.seconds for run in runs))
            blocks.append(f"## {stage.title}\n\n{needs}; all together about {total}.")
            blocks.append("\n".join(f"{next(numbers)}. `{run.command}`: {run.remark}." for run in runs))
    return "\n\n".join(blocks) + "\n"


def flags(changes: Mapping[str, Any]) -> list[str]:
    """A record's changes as flags of `python -m wmse train`: ["--slice-size", "33", "--no-normalize"]."""
    words = []
    for key, value in changes.items():
        flag = key.replace("_", "-")
        if key == "scored_on":
            words.append("--validate")
        elif isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]
    return words


def _network(recipe: Recipe) -> tuple[str, int, str, int]:
    """What the speed depends on: kind, width and stem of the encoder, and the side of a view in pixels."""
    side = recipe.views.size or IMAGE_SIDES.get(recipe.dataset, 32)
    return recipe.encoder, recipe.width, recipe.stem, side
