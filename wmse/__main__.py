"""The command line: `python -m wmse train | evaluate | table | queue`.

tyro derives the flags of a command from its function. Each function imports what it needs, so that help,
tables and the queue, which need no torch, start at once.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

from wmse.machine import as_path
from wmse.recipes import RECIPES, Recipe, at_size, get_recipe

if TYPE_CHECKING:
    import tyro

USAGE = """\
usage: python -m wmse train RECIPE [--out DIR] [--resume] [--epochs N] [--seed S] ...
       python -m wmse train folder/METHOD --data DIR [--size 32] ...
       python -m wmse evaluate RUN
       python -m wmse table [TABLE] [--results DIR] [--markdown]
       python -m wmse queue [--results DIR] [--write | --run]

Each explains its flags with --help; for train each field of a recipe is one: train RECIPE --help."""


def evaluate(run: tyro.conf.Positional[Path], data: Path | None = None, device: str | None = None) -> None:
    """Evaluate a run's saved networks again; the record stays as it is.

    Args:
        run: Folder of the run.
        data: Folder of the data sets: $WMSE_DATA, else data.
        device: cpu, cuda, cuda:1, ...: CUDA where there is any.
    """
    from wmse.records import read_record
    from wmse.training import evaluate_run

    told = "features, classifiers and measures; on processor cores minutes for 60,000 images"
    print(f"{run}: {told}", file=sys.stderr, flush=True)
    _show(evaluate_run(run, data, device), read_record(as_path(run)).images)


def table(
    name: tyro.conf.Positional[str] = "", results: Path = Path("results"), markdown: bool = False
) -> None:
    """Print a table computed from records, beside the published figures.

    Args:
        name: table-1 or imagenet-100; without a name, the tables are listed.
        results: Folder below which the records lie.
        markdown: Markdown, not text for a terminal.
    """
    from wmse.records import read_records
    from wmse.reproduction.tables import OUTLINES, as_markdown, as_text, make_table

    if not name:
        print("\n".join(f"{name:14}{outline.title}" for name, outline in OUTLINES.items()))
        return
    entries, problems = read_records(results := as_path(results))
    print((as_markdown if markdown else as_text)(make_table(name, entries, problems)))
    print(f"\nRecords below {results}: {len(entries)}, and {len(problems)} broken.")


def queue(
    results: Path = Path("results"),
    write: bool = False,
    run: bool = False,
    hours: float | None = None,
    device: str | None = None,
    only: str = "",
    data: Path | None = None,
) -> None:
    """Print the runs wanted next, with what they cost and their commands, or make them.

    Args:
        results: Folder below which the records lie; the commands put theirs there too.
        write: Write them to QUEUE.md in that folder.
        run: Make those of this device, one after the other; runs that were cut off go on.
        hours: With --run: stop after so many hours, with a checkpoint.
        device: With --run: cpu, cuda, cuda:1, ...: CUDA where there is any.
        only: With --run: only runs in whose command this shell pattern stands: cifar10-laptop/w-mse-*.
        data: With --run: folder of the data sets: $WMSE_DATA, else data.
    """
    from wmse.records import read_records
    from wmse.reproduction.queue import queue_markdown

    results = as_path(results)
    if run:
        from wmse.reproduction.campaign import run_queue

        if write:
            raise ValueError("--write and --run are two things to do with the queue: give one of them")
        if not run_queue(results, device, hours, only, data):
            raise SystemExit(1)
        return
    if hours is not None or device or only or data:
        raise ValueError("--hours, --device, --only and --data say how to make runs: give them with --run")
    text = queue_markdown(*read_records(results), results)
    if write:
        (results / "QUEUE.md").write_text(text, encoding="utf-8")
    print(results / "QUEUE.md" if write else text, end="\n" if write else "")


def train_command(name: str, typed: list[str]) -> Callable[..., None]:
    """The command `train NAME`, whose defaults are the recipe's; `typed` is for the record."""
    chosen = get_recipe(name)

    def train(
        recipe: Annotated[Recipe, tyro.conf.arg(name="")] = chosen,
        out: Path | None = None,
        data: Path | None = None,
        device: str | None = None,
        resume: bool = False,
        restart: bool = False,
        limit: int | None = None,
        validate: bool = False,
        size: int | None = None,
    ) -> None:
        """Train a recipe, evaluate it, and leave a record.

        Args:
            recipe: The recipe.
            out: Folder of the run; runs/RECIPE/seed-S unless that is taken, then a numbered one.
            data: Folder of the data sets: $WMSE_DATA, else data. For folder/...: that of your images.
            device: cpu, cuda, cuda:1, ...: CUDA where there is any.
            resume: Go on from the newest whole checkpoint in --out, or from the beginning if there is none.
            restart: Begin anew in --out; what a run has left there is set aside under other names.
            limit: Use only the first so many images of each split, for trials.
            validate: To choose settings: learn from nine tenths of the training images, score on the others.
            size: Of your own images, for folder/...: 32, 64, 96, or 224, streamed. Sets stem and views.size.
        """
        from wmse import distributed, records, training

        if size is not None:
            if any(flag.startswith(("--stem", "--views.size")) for flag in typed):
                raise ValueError("--size sets --stem and --views.size: give either it or them")
            recipe = at_size(recipe, size)
        with distributed.joined(device):
            command = shlex.join([*distributed.launcher(), "-m", "wmse", "train", *typed])
            options = {"data": data, "device": device, "resume": resume, "limit": limit}
            options |= {"restart": restart, "validate": validate, "command": command}
            out = training.train(name, out, recipe=recipe, **options)
            if distributed.rank() == 0:
                print(f"\n{out}")
                record = records.read_record(out)
                _show(record.metrics, record.images)

    return train


def main(arguments: list[str]) -> int:
    """Run one command; the exit status is 2, with a line on stderr, for what the user can correct."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    command: Any = {"evaluate": evaluate, "table": table, "queue": queue}.get(name)
    if name == "train":
        if not rest or rest[0].startswith("-"):
            return _usage("the recipe comes first: train RECIPE" if rest else "", rest)
        name = f"train {rest[0]}"
    elif not command:
        return _usage(f"unknown command {name!r}" if name else "", arguments)
    try:
        if not command:
            if rest[0] not in RECIPES:
                raise ValueError(f"unknown recipe {rest[0]!r}; there are these {_recipes()}")
            command, rest = train_command(rest[0], rest), rest[1:]
        import tyro

        globals()["tyro"] = tyro  # tyro evaluates the annotations, which are strings, among these names
        tyro.cli(command, args=rest, prog=f"python -m wmse {name}")
    except (ValueError, OSError, ArithmeticError, MemoryError) as error:
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("wmse"):
            raise
        print(f"error: {error}; the command line needs more: pip install 'wmse[train]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        if type(error).__name__ != "ToldByFirst":  # rank 0 reports the reason; importing the class is slow
            raise
        return 2
    return 0


def _usage(problem: str, arguments: list[str]) -> int:
    """Print how to call, to stdout if that was asked for, else to stderr; the exit status."""
    asked = arguments in (["-h"], ["--help"])
    parts = [problem] * (not asked) + [USAGE, _recipes()]
    print("\n\n".join(filter(None, parts)), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def _recipes() -> str:
    """The names of all recipes, a paragraph for each data set and budget."""
    budgets = dict.fromkeys(name.split("/")[0] for name in RECIPES)
    groups = (" ".join(name for name in RECIPES if name.startswith(f"{budget}/")) for budget in budgets)
    indented = {"initial_indent": "  ", "subsequent_indent": "  ", "break_on_hyphens": False}
    return "\n".join(["recipes:", *(fill(names, 100, **indented) for names in groups)])


def _show(metrics: dict[str, float | None], images: dict[str, int]) -> None:
    """Print a run's metrics, and why some are None; `images` as in a record: how many, by split."""
    from wmse.records import is_percentage

    why = "the covariance of the embeddings is singular"
    if metrics.get("cca_dimensions") is None:
        why = f"{images.get('test', 'the')} test images, fewer than 2 per dimension of the embeddings"
    for name, value in metrics.items():
        shown = f"  not computed: {why}" if value is None else f"{value:8.3f}" + " %" * is_percentage(name)
        print(f"{name:28}{shown}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
