"""The tables of the book's page on speed, in Markdown, from the JSON that benchmarks leave behind."""

import json
import re
from pathlib import Path
from typing import Any

from wmse.figures import markdown_table

ORDER = ("step", "launches", "host", "loss", "reference", "views", "evaluation", "book")
GOAL = 90_000  # views a second of W-MSE 2 on a large GPU, set before a GPU had been measured
NONE_YET = "No benchmark has been run yet: `make bench` runs them all."
NO_GPU = (
    ":::{{note}}\nNo GPU has been measured yet. `{command}` does, and its tables appear here when the book "
    "is built again.\n:::"
)
GPU_COMMAND = "python -m benchmarks --device cuda --profile"


def read(results: Path) -> list[dict[str, Any]]:
    """All tables below `results`, by benchmark, then machine; what a GPU has measured comes first.

    ValueError names a file that is not such a table.
    """
    tables = []
    for path in sorted(results.glob("*/*.json")):
        try:
            table = json.loads(path.read_text("utf-8"))
            _section(table), _subject(table), table["machine"], table["title"], table["hardware"]["device"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not what a benchmark writes: {error!r}") from None
        tables.append(table)
    on_gpu = {_subject(table) for table in tables if _is_of_gpu(table)}
    return sorted(tables, key=lambda table: _place(table, _subject(table) in on_gpu))


def markdown(results: Path) -> str:
    """A section for each table, the tables of one benchmark on several machines one after another."""
    tables = read(results)
    if not tables:
        return NONE_YET + "\n"
    steps = [table for table in tables if _is_of_gpu(table) and table["benchmark"].startswith("step-")]
    parts, title = [at_a_glance(steps)] if steps else [], None
    for table in tables:
        section = _section(table)
        if table["benchmark"].startswith("profile"):  # long, and for who wants to improve it
            parts += [by_kind(table)] if _is_of_gpu(table) else []
            parts.append(f":::{{dropdown}} {table['title']}: {table['machine']}\n{section}\n:::")
            continue
        if table["title"] != title:
            title = table["title"]
            parts.append(f"## {title}")
        parts.append(section)
    if not any(map(_is_of_gpu, tables)):
        parts.insert(0, NO_GPU.format(command=GPU_COMMAND))
    return "\n\n".join(parts) + "\n"


def at_a_glance(steps: list[dict[str, Any]]) -> str:
    """The speed of training on GPUs beside the goal, from the tables of steps."""
    rows = []
    for table in steps:
        whole = next(row for row in table["rows"] if row.get("views"))
        cells = [table["machine"], f"`{table['title'].rsplit(' ', 1)[-1]}`", shown(whole["views"])]
        rows.append([*cells, f"{100 * whole['views'] / GOAL:.0f}", shown(whole["times"])])
    columns = ["GPU", "recipe", "views/s", f"% of {GOAL:,}", "times the floor"]
    return "## Training on a GPU\n\n" + markdown_table(columns, rows, (2, 3, 4))


KINDS = {
    "BatchNorm": "batch_?norm|bn_[fb]w",  # PyTorch's kernels, then cuDNN's
    "convolutions and other products": "gemm|conv|cutlass|xmma|cudnn",
    "passes element by element": "elementwise",
}


def kernel_kind(name: str) -> str:
    """The kind of a GPU's kernel: a key of `KINDS`, or "all others"."""
    found = (kind for kind, words in KINDS.items() if re.search(words, name, re.IGNORECASE))
    return next(found, "all others")


def by_kind(profile: dict[str, Any]) -> str:
    """A sentence on a GPU's profile: the time of its kernels, by kind."""
    taken = dict.fromkeys([*KINDS, "all others"], 0.0)
    for row in profile["rows"]:
        taken[kernel_kind(row["operator"])] += row["ms"]
    most = sorted(KINDS, key=lambda name: -taken[name])
    times = ", ".join(f"{name} {taken[name]:.1f} ms" for name in [*most, "all others"])
    return (
        f"Of a step's kernels, the {len(profile['rows'])} that take the most time need "
        f"{sum(taken.values()):.1f} ms together on {profile['machine']}: {times}."
    )


def _is_of_gpu(table: dict[str, Any]) -> bool:
    return table["hardware"]["device"] != "cpu"


def _subject(table: dict[str, Any]) -> tuple[str, str]:
    """What a table is about: the kind of benchmark, and the recipe, if any. A profile is of a step."""
    kind, _, recipe = table["benchmark"].partition("-")
    return "step" if kind == "profile" else kind, recipe


def _place(table: dict[str, Any], on_gpu: bool) -> tuple:
    """Where a table goes: a profile after its step. on_gpu: whether any GPU has measured its subject."""
    kind, recipe = _subject(table)
    is_profile = table["benchmark"].startswith("profile")
    return [*ORDER, kind].index(kind), not on_gpu, recipe, not _is_of_gpu(table), table["machine"], is_profile


def _section(table: dict[str, Any]) -> str:
    """What was measured where, and the rows; numbers stand to the right."""
    columns, found = table["columns"], table["rows"]
    if "operator" in columns:
        found = _merged(found)
    rows = [[_cell(key, row.get(key)) for key in columns] for row in found]
    words = {key for key in columns if any(isinstance(row.get(key), str) for row in found)}
    numbers = [place for place, key in enumerate(columns) if key not in words]
    commit = "no commit known (a copy outside its repository)"
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


def short_name(name: str) -> str:
    """A kernel's name as a table has room for it: no namespaces, types and sizes of tiles; other names stay.

    What one general kernel was given to compute stays, where the profile has not cut it off.
    """
    if name.startswith("_Z"):  # a C++ name as the linker sees it: its first word of several capitals
        word = re.search(r"(?:[A-Z][a-z]+){2,}", name)
        return word[0] if word else name[:40]
    if tiled := re.match(r"(?:sm\d+_)?(xmma_[a-z_]*[a-z])_(?:t?b?f\d)", name):
        return tiled[1]
    if not name.startswith("void "):
        return name
    plain = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    outer, _, inner = plain.partition("<")
    short = outer.rsplit("::", 1)[-1].removesuffix("_kernel").removesuffix("_channels_last")
    given = re.search(r"(\w+Functor\w*|cutlass_\w+?)(?:_(?:b?f\d\w*)|<|$)", inner)
    if given and short == "vectorized_elementwise":
        return f"{short} {given[1]}"
    return given[1] if given and short == "Kernel" else short


def _merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a profile under their short names, those of one name added up, most time first."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = short_name(row["operator"])
        before = found.get(name, {})
        added = {key: before.get(key, 0) + value for key, value in row.items() if key != "operator"}
        found[name] = {"operator": name} | added
    return sorted(found.values(), key=lambda row: -row["ms"])


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
