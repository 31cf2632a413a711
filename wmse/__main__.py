"""The command line: `python -m wmse train | evaluate | table | queue`."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Annotated

import tyro

from wmse import records
from wmse.recipes import RECIPES, Recipe, get_recipe
from wmse.records import is_percentage

USAGE = """\
usage: python -m wmse train RECIPE [--out DIR] [--resume] [--epochs N] [--seed S] ...
       python -m wmse evaluate RUN
       python -m wmse table [TABLE] [--results DIR] [--markdown]
       python -m wmse queue [--results DIR] [--write]

Each explains its flags with --help; for train each field of a recipe is one: train RECIPE --help."""


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


@dataclass(frozen=True)
class Table:
    """Print a table computed from records, beside the published figures."""

    name: tyro.conf.Positional[str] = ""
    """table-1 or imagenet-100; without a name, the tables are listed."""
    results: Path = Path("results")
    """Folder below which the records lie."""
    markdown: bool = False
    """Markdown, not text for a terminal."""


@dataclass(frozen=True)
class Queue:
    """Print the runs wanted next, with what they cost and their commands."""

    results: Path = Path("results")
    """Folder below which the records lie; the commands put theirs there too."""
    write: bool = False
    """Write them to QUEUE.md in that folder."""


def main(arguments: list[str]) -> int:
    """Run one command and return its exit status: 2 for what the user can mend, with one line saying what."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command not in COMMANDS:
        return _usage(f"unknown command {command!r}" if command else "", arguments)
    try:
        return COMMANDS[command](rest)
    except (ValueError, OSError, ArithmeticError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        if type(error).__name__ != "ToldByFirst":  # by another process; importing its class would be slow
            raise
        return 2


def _train(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        return _usage("the recipe comes first: train RECIPE" if arguments else "", arguments)
    name, *rest = arguments
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; there are these {_recipes()}")
    chosen = tyro.cli(
        Train, args=rest, default=Train(recipe=get_recipe(name)), prog=f"python -m wmse train {name}"
    )
    from wmse import distributed
    from wmse.training import train

    folder = Path("runs", name, f"seed-{chosen.recipe.seed}")
    with distributed.joined(chosen.device):
        out = train(
            name,
            chosen.out or distributed.from_first(lambda: records.free_folder(folder, chosen.resume)),
            recipe=chosen.recipe,
            data=chosen.data,
            device=chosen.device,
            resume=chosen.resume,
            limit=chosen.limit,
            command=shlex.join([*distributed.launcher(), "-m", "wmse", "train", *arguments]),
        )
        if distributed.rank() == 0:
            print(f"\n{out}")
            _show(records.read_record(out).metrics)
    return 0


def _evaluate(arguments: list[str]) -> int:
    chosen = tyro.cli(Evaluate, args=arguments, prog="python -m wmse evaluate")
    from wmse.training import evaluate_run

    _show(evaluate_run(chosen.run, chosen.data, chosen.device))
    return 0


def _table(arguments: list[str]) -> int:
    chosen = tyro.cli(Table, args=arguments, prog="python -m wmse table")
    from wmse.reproduction.tables import OUTLINES, as_markdown, as_text, make_table

    if not chosen.name:
        print("\n".join(f"{name:14}{outline.title}" for name, outline in OUTLINES.items()))
        return 0
    entries, problems = records.read_records(chosen.results)
    print((as_markdown if chosen.markdown else as_text)(make_table(chosen.name, entries, problems)))
    print(f"\nRecords below {chosen.results}: {len(entries)}, and {len(problems)} broken.")
    return 0


def _queue(arguments: list[str]) -> int:
    chosen = tyro.cli(Queue, args=arguments, prog="python -m wmse queue")
    from wmse.reproduction.queue import queue_markdown

    text = queue_markdown(*records.read_records(chosen.results), chosen.results)
    if chosen.write:
        path = chosen.results / "QUEUE.md"
        path.write_text(text, encoding="utf-8")
        print(path)
    else:
        print(text, end="")
    return 0


def _usage(problem: str, arguments: list[str]) -> int:
    """Say how to call, on stdout if that was asked for; the exit status."""
    asked = arguments in (["-h"], ["--help"])
    parts = [USAGE, _recipes()] if asked or not problem else [problem, USAGE, _recipes()]
    print("\n\n".join(parts), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def _recipes() -> str:
    """The names of all recipes, a paragraph a rung."""
    groups: dict[str, list[str]] = {}
    for name in RECIPES:
        groups.setdefault(name.split("/")[0], []).append(name)
    indented = {"initial_indent": "  ", "subsequent_indent": "  ", "break_on_hyphens": False}
    return "\n".join(["recipes:", *(fill(" ".join(names), 100, **indented) for names in groups.values())])


def _show(metrics: dict[str, float | None]) -> None:
    for name, value in metrics.items():
        shown = "  not computed" if value is None else f"{value:8.3f}" + " %" * is_percentage(name)
        print(f"{name:28}{shown}")


COMMANDS = {"train": _train, "evaluate": _evaluate, "table": _table, "queue": _queue}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
