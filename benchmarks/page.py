"""The tables of the book's page on speed, in Markdown, from the JSON that benchmarks leave behind."""

import json
from pathlib import Path
from typing import Any

from wmse.figures import markdown_table

ORDER = ("reference", "loss", "step", "views", "evaluation", "book")
NONE_YET = "No benchmark has been run yet: `make bench` runs them all."
NO_GPU = (
    ":::{{note}}\nNo GPU has been measured yet. `{command}` does, and its tables appear here when the book "
    "is built again.\n:::"
)
GPU_COMMAND = "python -m benchmarks --device cuda --profile"


def read(results: Path) -> list[dict[str, Any]]:
    """All tables below `results`, by benchmark, then machine. ValueError names a file that is not one."""
    tables = []
    for path in sorted(results.glob("*/*.json")):
        try:
            table = json.loads(path.read_text("utf-8"))
            _section(table), _place(table), table["title"], table["hardware"]["device"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not what a benchmark writes: {error!r}") from None
        tables.append(table)
    return sorted(tables, key=_place)


def markdown(results: Path) -> str:
    """A section for each table, the tables of one benchmark on several machines one after another."""
    tables = read(results)
    if not tables:
        return NONE_YET + "\n"
    parts, title = [], None
    for table in tables:
        section = _section(table)
        if table["benchmark"].startswith("profile"):  # long, and for who wants to improve it
            parts.append(f":::{{dropdown}} {table['title']}\n{section}\n:::")
            continue
        if table["title"] != title:
            title = table["title"]
            parts.append(f"## {title}")
        parts.append(section)
    if all(table["hardware"]["device"] == "cpu" for table in tables):
        parts.insert(0, NO_GPU.format(command=GPU_COMMAND))
    return "\n\n".join(parts) + "\n"


def _place(table: dict[str, Any]) -> tuple:
    """Where a table goes: a step's profile after the step."""
    kind, _, recipe = table["benchmark"].partition("-")
    kinds = [*ORDER, kind]
    return kinds.index("step" if kind == "profile" else kind), recipe, kind == "profile", table["machine"]


def _section(table: dict[str, Any]) -> str:
    """What was measured where, and the rows; numbers stand to the right."""
    columns = table["columns"]
    rows = [[_cell(key, row.get(key)) for key in columns] for row in table["rows"]]
    words = {key for key in columns if any(isinstance(row.get(key), str) for row in table["rows"])}
    numbers = [place for place, key in enumerate(columns) if key not in words]
    commit = "an unknown commit"
    if table["git"]:
        changed = " and changes since" if table["git"]["dirty"] else ""
        commit = f"commit {table['git']['commit'][:7]}{changed}"
    lines = [
        f"**{table['machine']}**, torch {table['versions']['torch']}, Python {table['versions']['python']}, "
        f"{table['measured'][:10]}, {commit}. {table['notes']}",
        "",
        markdown_table(list(columns.values()), rows, numbers),
    ]
    return "\n".join(lines)


def _cell(key: str, value: Any) -> str:
    """Names of operators hold what Markdown would take for HTML; shares of a whole have one decimal each."""
    if key == "share" and value is not None:
        return f"{value:.1f}"
    return f"`{value}`" if key == "operator" else shown(value)


def shown(value: Any) -> str:
    """A cell: numbers to about three digits, none of them in powers of ten; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 4
        return f"{value:,.{digits}f}" if value else "0"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
