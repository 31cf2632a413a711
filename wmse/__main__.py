"""The command line: `python -m wmse train RECIPE` and `python -m wmse evaluate RUN`."""

import itertools
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from wmse.recipes import RECIPES, Recipe, get_recipe

USAGE = f"""usage: python -m wmse train RECIPE [--out DIR] [--resume] [--epochs N] [--seed S] ...
       python -m wmse evaluate RUN

recipes: {", ".join(RECIPES)}

python -m wmse train RECIPE --help explains every flag: each field of the recipe is one."""


@dataclass(frozen=True)
class Train:
    """Train a recipe, evaluate it, and leave a record."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder of the run; runs/RECIPE/seed-S unless that is taken, then a numbered one."""
    data: Path | None = None
    """Folder of the data sets: $WMSE_DATA, else data."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...: CUDA where there is any."""
    resume: bool = False
    """Go on from the newest whole checkpoint in --out, or from the beginning if there is none."""
    limit: int | None = None
    """Use only the first so many images of each split, for trials."""


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a run's saved networks again; the record stays as it is."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    data: Path | None = None
    """Folder of the data sets: $WMSE_DATA, else data."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...: CUDA where there is any."""


def main(arguments: list[str]) -> int:
    """Run one command and return its exit status: 2 for what the user can mend, with one line saying what."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command not in COMMANDS:
        asked = command in ("-h", "--help")
        print(
            USAGE if asked or not command else f"unknown command {command!r}\n{USAGE}",
            file=sys.stdout if asked else sys.stderr,
        )
        return 0 if asked else 2
    try:
        return COMMANDS[command](rest)
    except (ValueError, OSError, ArithmeticError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _train(arguments: list[str]) -> int:
    name = next((word for word in arguments if word in RECIPES), None)
    if name is None:
        if not arguments or arguments[0].startswith("-"):
            print(USAGE)
            return 0 if {"-h", "--help"} & set(arguments) else 2
        get_recipe(arguments[0])
    rest = list(arguments)
    rest.remove(name)
    chosen = tyro.cli(
        Train, args=rest, default=Train(recipe=get_recipe(name)), prog=f"python -m wmse train {name}"
    )
    from wmse.training import train

    out = train(
        name,
        chosen.out or _free_folder(Path("runs", name, f"seed-{chosen.recipe.seed}"), chosen.resume),
        recipe=chosen.recipe,
        data=chosen.data,
        device=chosen.device,
        resume=chosen.resume,
        limit=chosen.limit,
        command=shlex.join(["python", "-m", "wmse", "train", *arguments]),
    )
    print(f"\n{out}")
    _show(json.loads((out / "record.json").read_text())["metrics"])
    return 0


def _evaluate(arguments: list[str]) -> int:
    chosen = tyro.cli(Evaluate, args=arguments, prog="python -m wmse evaluate")
    from wmse.training import evaluate_run

    _show(evaluate_run(chosen.run, chosen.data, chosen.device))
    return 0


def _free_folder(folder: Path, resume: bool) -> Path:
    """The first of folder, folder-2, ... that holds no run; to resume, the last that holds one."""
    taken = list(
        itertools.takewhile(
            lambda path: (path / "record.json").exists(),
            (
                folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
                for number in itertools.count(1)
            ),
        )
    )
    if resume:
        return taken[-1] if taken else folder
    return folder.with_name(f"{folder.name}-{len(taken) + 1}") if taken else folder


def _show(metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        print(f"{name:28}{value:8.3f}" + (" %" if name.endswith("top1") else ""))


COMMANDS = {"train": _train, "evaluate": _evaluate}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
