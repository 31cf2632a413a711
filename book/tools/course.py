"""The computed parts of `course.md`: how long the chapters run, and what a project's runs cost.

Called by `build.py`; the page includes what this writes beside it in the stage.
"""

from pathlib import Path

import nbformat

TIMES, COSTS = "course-times.md", "course-costs.md"
RUNS = {  # recipes that projects are made of, and the least that they need
    "digits/w-mse-2": "cpu",
    "cifar10-cpu/w-mse-2": "cpu",
    "cifar10-cpu/w-mse-4": "cpu",
    "cifar10-200/w-mse-2": "cuda",
    "cifar10/w-mse-2": "cuda",
    "cifar10/w-mse-4": "cuda",
}
DEVICES = {"cpu": "two processor cores", "cuda": "a large GPU"}


def write_parts(results: Path, notebooks: Path, names: list[str], folder: Path) -> None:
    """Write both parts into `folder`, from the records below `results` and the executed chapters."""
    from wmse.records import read_records

    entries, _ = read_records(results)
    folder.mkdir(parents=True, exist_ok=True)
    seconds = {}
    for name in names:
        path = notebooks / f"{name}.ipynb"
        if path.exists():
            executed = nbformat.read(path, as_version=4)
            title = executed.cells[0].source.splitlines()[0].removeprefix("# ")
            seconds[name] = title, executed.metadata.get("build", {}).get("seconds")
    (folder / TIMES).write_text(times(seconds), "utf-8")
    (folder / COSTS).write_text(costs(entries, seconds.get("01_first_run", ("", None))[1]), "utf-8")


def times(seconds: dict[str, tuple[str, float | None]]) -> str:
    """A row a chapter: how long its execution took in the last build."""
    lines = ["| chapter | seconds |", "| :-- | --: |"]
    for name, (title, spent) in seconds.items():
        lines.append(f"| [{int(name[:2])} {title}](../notebooks/{name}.ipynb) | {spent or 'not known'} |")
    return "\n".join(lines) + "\n"


def costs(entries, first_chapter: float | None) -> str:
    """A row a recipe: time of one run, and whether that was measured or is assumed.

    On *digits*, as long as no run is on record, the time of chapter 1 stands, which trains that very recipe.
    """
    from wmse.machine import duration
    from wmse.recipes import get_recipe
    from wmse.reproduction.queue import speed, views_to_train

    lines = ["| one run of | on | training | basis |", "| :-- | :-- | --: | :-- |"]
    for name, device in RUNS.items():
        recipe = get_recipe(name)
        per_second, basis = speed(recipe, device, entries)
        seconds = views_to_train(recipe) / per_second
        basis = basis.rsplit(", ", 1)[0]  # the page needs no path
        if name.startswith("digits/") and basis == "assumed" and first_chapter:
            seconds, basis = first_chapter, "all of chapter 1, as executed for this site"
        lines.append(f"| `{name}` | {DEVICES[device]} | {duration(seconds)} | {basis} |")
    return "\n".join(lines) + "\n"
