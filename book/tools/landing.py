"""The landing page's table: what is measured so far on CIFAR-10, a column a rung, beside the paper's figures.

Called by `build.py`; `preface.md` includes what this writes beside it in the stage.
"""

from collections.abc import Sequence
from pathlib import Path

RESULTS = "landing-results.md"
METRIC = "linear_top1"
METHODS = ("w-mse-2", "w-mse-4", "simclr", "byol", "mse")
NONE_YET = "No run is on record yet."


def write_part(results: Path, folder: Path) -> None:
    """Write the table into `folder`, from the records below `results`."""
    from wmse.records import read_records

    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).write_text(table(read_records(results)[0]), "utf-8")


def table(entries: Sequence) -> str:
    """Markdown: methods by rungs with a run of an unchanged recipe; what has none is left out or says so."""
    from wmse import figures
    from wmse.recipes import RECIPES
    from wmse.reproduction.claims import RUNGS
    from wmse.reproduction.table_text import MARKS
    from wmse.reproduction.tables import make_table

    rows = {row.method: row for row in make_table("table-1", entries).rows if row.dataset == "cifar10"}
    cells = {
        (method, entry.record["name"].split("/")[0]): _cell(measured)
        for method in METHODS
        for measured in rows[method].measured
        if METRIC in measured.scores and ", but " not in measured.rung and not measured.refusal
        for entry in measured.entries[:1]
    }
    rungs = [rung for rung in RUNGS if any(column == rung for _, column in cells)]
    header = ["CIFAR-10, linear classifier, %"]
    for rung in rungs:
        recipe = RECIPES[f"{rung}/w-mse-2"]
        slim = ", slim network" if recipe.width < RECIPES["cifar10/w-mse-2"].width else ""
        header.append(f"ours, {recipe.epochs} epochs{slim}")
    if not rungs:
        header.append("ours")
    header.append(f"paper, quoted, {RECIPES['cifar10/w-mse-2'].epochs} epochs")
    lines = [header, [":--", *["--:"] * (len(header) - 1)]]
    titles = figures.METHOD_TITLES | {"mse": "the same loss without whitening"}
    for method in METHODS:
        measured = [cells.get((method, rung), "no run yet") for rung in rungs or [""]]
        figure = rows[method].paper.get(METRIC)
        if figure or set(measured) != {"no run yet"}:
            quoted = f"{figure.value:.2f}{MARKS.get(figure.certainty, '')}" if figure else "none"
            lines.append([titles[method], *measured, quoted])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    return text if rungs else f"{text}\n{NONE_YET}\n"


def _cell(measured) -> str:
    score, count = measured.scores[METRIC], len(measured.seeds)
    spread = "" if score.deviation is None else f" ± {score.deviation:.2f}"
    return f"{score.mean:.2f}{spread} ({count} seed{'s' * (count > 1)})"
