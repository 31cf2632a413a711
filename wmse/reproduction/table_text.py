"""A table as text: aligned for a terminal, or Markdown. What stands in it, `tables` decides."""

from collections.abc import Iterable, Sequence

from wmse.figures import DATASET_TITLES, METHOD_TITLES
from wmse.reproduction.paper import Figure
from wmse.reproduction.tables import MARGIN, Measured, Row, Score, Table

MARKS = {"second-hand": "†", "unsure": "?"}
OWN_PROTOCOL = "‡"
REACHED = {True: " ✓", False: " ✗", None: ""}
LEGEND = f"""† second-hand: read in later work that copies it. ? unsure: remembered, seen nowhere.
{OWN_PROTOCOL} in a protocol of its own, to which a difference may be due.
"paper" and "later work" are quoted; "ours" is measured: mean ± standard deviation over seeds.
✓ reached, at the paper's own number of epochs: less than {MARGIN:g} point below its figure. ✗ not reached."""
NO_RUN, QUOTED_ONLY = "no run yet", "quoted only"
HEADER = ("method", "paper", "later work", "rung", "ours", "ours - paper", "seeds", "scored on", "records")


def as_text(table: Table) -> str:
    """For a terminal: columns padded with spaces."""
    blocks = [f"{table.name}: {title(table)}"]
    for dataset, lines in _blocks(table):
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = (
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        )
        blocks.append("\n".join([dataset, *(f"  {line.rstrip()}" for line in padded)]))
    return "\n\n".join([*blocks, LEGEND, "\n".join(notes(table))])


def as_markdown(table: Table) -> str:
    """As Markdown: a heading and a table a data set, with all columns, then the notes as a list."""
    blocks = [f"## {table.name}", title(table) + "."]
    for dataset, (header, *lines) in _blocks(table):
        body = [[escaped(cell) for cell in line] for line in lines]
        rows = "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *body))
        blocks.append(f"### {dataset}\n\n{rows}")
    return "\n\n".join(
        [*blocks, "\n".join(f"- {escaped(note)}" for note in (*LEGEND.splitlines(), *notes(table)))]
    )


def title(table: Table) -> str:
    """What the table is of, and its metrics."""
    return f"{table.outline.title} ({' / '.join(table.outline.metrics.values())})"


def _blocks(table: Table) -> Iterable[tuple[str, list[Sequence[str]]]]:
    """Each data set with its lines: the header, then one a method and rung."""
    metrics = table.outline.metrics
    for dataset in table.outline.datasets:
        rows = [row for row in table.rows if row.dataset == dataset]
        yield dataset, [HEADER, *(line for row in rows for line in _lines(row, metrics))]


def _lines(row: Row, metrics: Iterable[str]) -> list[Sequence[str]]:
    quoted = [_pair(figure_cells(figures, metrics)) for figures in (row.paper, row.later)]
    start = [row.method, *quoted]
    if not row.measured:
        return [[*start, "-", NO_RUN if row.has_recipe else QUOTED_ONLY, "-", "-", "-", "-"]]
    lines = [_cells(measured, row.paper, metrics) for measured in row.measured]
    return [start + lines[0], *([row.method, "", ""] + line for line in lines[1:])]


def _cells(measured: Measured, paper: dict[str, Figure], metrics: Iterable[str]) -> list[str]:
    return [
        measured.rung,
        _pair(mean_cells(measured, metrics)),
        "not compared" if measured.refusal and paper else _pair(difference_cells(measured, paper, metrics)),
        f"{len(measured.seeds)}: {', '.join(map(str, measured.seeds))}",
        f"{measured.images:,}",
        ", ".join(str(entry.folder) for entry in measured.entries),
    ]


def figure_cells(figures: dict[str, Figure], metrics: Iterable[str]) -> list[str]:
    """The published figure of each metric with its marks, or "-"."""
    return [_figure(figures.get(metric)) for metric in metrics]


def mean_cells(measured: Measured, metrics: Iterable[str]) -> list[str]:
    """The mean of each metric, with the standard deviation where there are seeds."""
    return [_mean(measured.scores.get(metric)) for metric in metrics]


def difference_cells(measured: Measured, paper: dict[str, Figure], metrics: Iterable[str]) -> list[str]:
    """Ours less the paper's of each metric, with a mark for reached or not."""
    return [_difference(measured.scores.get(metric), paper.get(metric)) for metric in metrics]


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    mark = MARKS.get(figure.certainty, "") + (OWN_PROTOCOL if figure.protocol == "own" else "")
    return f"{figure.value:.2f}{mark}"


def _mean(score: Score | None) -> str:
    if score is None:
        return "not measured"
    return f"{score.mean:.2f}" + ("" if score.deviation is None else f" ± {score.deviation:.2f}")


def _difference(score: Score | None, figure: Figure | None) -> str:
    """A difference to an unsure figure is marked as that is; to another, whether it was reached."""
    if score is None or score.difference is None or figure is None:
        return "-"
    unsure = "?" if figure.certainty == "unsure" else ""
    return f"{score.difference:+.2f}{unsure}{REACHED[score.reached]}"


def _pair(cells: Iterable[str]) -> str:
    cells = list(cells)
    return "-" if set(cells) == {"-"} else " / ".join(cells)


def notes(table: Table) -> list[str]:
    """Sources of what is quoted, why some runs are not compared, and what was left out."""
    groups: dict[tuple[str, ...], list[Figure]] = {}
    for row in table.rows:
        for figure in (*row.paper.values(), *row.later.values()):
            origin = (figure.origin, figure.encoder, figure.source, figure.note)
            groups.setdefault(origin, []).append(figure)
    told = [_source(figures) for figures in groups.values()]
    told += [
        f"not compared, {DATASET_TITLES[row.dataset]} {METHOD_TITLES[row.method]}, "
        f"{measured.rung}: {measured.refusal}"
        for row in table.rows
        for measured in row.measured
        if measured.refusal and row.paper
    ]
    return told + list(table.remarks)


def _source(figures: list[Figure]) -> str:
    """Where figures come from that have that in common; networks other than ResNet-18 are named."""
    one = figures[0]
    datasets = list(dict.fromkeys(DATASET_TITLES[figure.dataset] for figure in figures))
    methods = list(dict.fromkeys(METHOD_TITLES[figure.method] for figure in figures))
    work = "paper" if one.origin == "paper" else "later work"
    where = f"{datasets[0]}, " if len(datasets) == 1 else ""
    encoder = "" if one.encoder == "resnet18" else f" ({one.encoder})"
    return f"{work}, {where}{', '.join(methods)}{encoder}: {one.source}" + (
        f"; {one.note}" if one.note else ""
    )


def escaped(text: str) -> str:
    return text.replace("|", "\\|")
