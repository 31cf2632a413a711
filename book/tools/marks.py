"""For teachers: mark the notebooks that students hand in.

    python book/tools/marks.py handed-in/ --csv marks.csv
    python book/tools/marks.py 02_ada.ipynb 02_grace.ipynb

Folders are searched for notebooks. Files and folders may keep the names that Canvas, Moodle and Blackboard
give them in the archive of all submissions; unpack the archive first. The chapter is read from the notebook's
metadata, where the student's edition writes it, and otherwise told from its cells.

For each exercise the command prints `right`, `wrong` with the check's message, `not done`, `missing` or
`too slow`. Checks come from the repository, whatever was handed in. One process runs all exercises of a file,
because the imports take longer than most checks.

This runs code that others wrote: do it in a container or a spare account (the course page has a recipe).
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import nbformat

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60  # for an exercise
START = 120  # for the imports
COLUMNS = ("student", "id", "chapter", "right", "exercises", "marks", "file")

# Canvas: the sorted name without spaces, LATE perhaps, the numbers of student and file; or anon_ and a code.
CANVAS = re.compile(r"(?:(?!LATE_|anon_)(?P<student>\w+?)_)?(?:LATE_)?(?P<id>\d+|anon_\w+?)_\d+_.*\.\w+")
# Moodle: the same as the beginning of a file's name or, if downloaded in folders, as a folder's name.
MOODLE = re.compile(r"(?P<student>.+?)_(?P<id>\d+)_assignsubmission_file(?:_.*)?")
# Blackboard: assignment, user, attempt. A user may hold "_" (j_doe), so the first "_" ends the assignment.
BLACKBOARD = re.compile(r"[^_]+_(?P<student>.+?)_attempt_\d{4}(?:-\d\d){5}(?:_.*)?")

# Runs in a Python of its own. If an exercise takes too long, a thread in C writes to "slow" and ends Python.
PROGRAM = """\
import faulthandler, json, os, sys
def report(place, mark, file=open("../report", "a", encoding="utf-8")):
    print(json.dumps([place, mark]), file=file, flush=True)
def at_most(seconds, file=open("../slow", "w")):
    faulthandler.dump_traceback_later(seconds, exit=True, file=file)
job = json.loads(sys.stdin.buffer.read())
at_most(job["start"])
exec(job["imports"], {"__name__": "__main__"})
import torch
for place, cells in job["exercises"]:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    at_most(job["seconds"])
    report(place, "begun")
    names = {"__name__": "__main__"}
    try:
        for cell in (job["imports"], *cells):
            exec(cell, names)
    except BaseException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        report(place, "wrong: " + ": ".join([type(error).__name__, *lines[-1:]]))
    else:
        report(place, "right")
faulthandler.cancel_dump_traceback_later()
"""


class Submission(NamedTuple):
    """A notebook that was handed in, and by whom as far as the names of file and folders tell."""

    file: Path
    student: str
    id: str  # of the student on the platform; empty if the name holds none


def submissions(paths: Iterable[Path]) -> list[Submission]:
    """All notebooks among `paths` and in the folders among them, by the names of their files.

    Archives come along, so that a student who has handed one in is in the table; `code_cells` refuses them.
    """
    found = []
    for path in paths:
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix in (".ipynb", ".zip"))
        hidden = (".ipynb_checkpoints", "__MACOSX")
        found += [submission(file, path) for file in files if not set(hidden) & set(file.parts)]
    return found


def submission(file: Path, given: Path) -> Submission:
    """Who handed in `file`, which was named itself or found in the folder `given`."""
    inside = file.relative_to(given).parts if file != given else (*file.parts[-2:-1], file.name)
    for part in reversed(inside):
        for pattern in (MOODLE, BLACKBOARD, CANVAS):
            if match := pattern.fullmatch(part):
                number = match.groupdict().get("id") or ""
                return Submission(file, match["student"] or number, number)
    in_own_folder = file != given and len(inside) > 1
    return Submission(file, inside[0] if in_own_folder else file.stem, "")


class Chapter(NamedTuple):
    """What marking needs of a chapter: sources by the name of the exercise, in the chapter's order."""

    name: str
    imports: str
    stubs: dict[str, str]
    checks: dict[str, str]


def chapters(root: Path = ROOT) -> dict[str, Chapter]:
    """The chapters in `root`/notebooks by name."""
    found = {}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells

        def tagged(tag, cells=cells):
            return {c.id: c.source for c in cells if tag in c.metadata.get("tags", [])}

        (imports,) = tagged("imports").values()
        stubs = {name.removeprefix("exercise-"): text for name, text in tagged("exercise").items()}
        checks = {name.removeprefix("check-"): text for name, text in tagged("check").items()}
        found[path.stem] = Chapter(path.stem, imports, stubs, checks)
    return found


def code_cells(file: Path) -> list[tuple[str, str]]:
    """Id and source of a notebook's code cells. Colab moves an id into the cell's metadata.

    Raises OSError or ValueError if the file cannot be read as a notebook.
    """
    if zipfile.is_zipfile(file):
        raise ValueError("this is a zip archive: unpack it, and mark the folder that comes out")
    try:
        cells = nbformat.read(file, as_version=4).cells
    except UnicodeDecodeError:
        raise ValueError("this is no notebook: it holds no text") from None
    except (AttributeError, KeyError, nbformat.ValidationError) as error:
        raise ValueError(f"this is no notebook: {error}") from None
    return [(c.get("id") or c.metadata.get("id", ""), c.source) for c in cells if c.cell_type == "code"]


def chapter_of(file: Path, book: dict[str, Chapter]) -> Chapter:
    """The chapter that a notebook was made from: by its metadata, else the one with most cells in common.

    ValueError if it has neither.
    """
    cells = code_cells(file)
    named = nbformat.read(file, as_version=4).metadata.get("wmse", {}).get("chapter")
    if named in book:
        return book[named]
    ids, texts = {name for name, _ in cells}, {text.strip() for _, text in cells}

    def common(chapter: Chapter) -> int:
        names = sum(f"exercise-{name}" in ids for name in chapter.stubs)
        return names + 2 * sum(text.strip() in texts for text in chapter.checks.values())

    best = max(book.values(), key=common)
    if not common(best):
        raise ValueError("no exercise or check of a chapter is in it; hand in the chapter's own notebook")
    return best


def answers(cells: Sequence[tuple[str, str]], chapter: Chapter) -> dict[str, str]:
    """What stands in the stubs: by the cell's id, else the code cell before the exercise's check."""
    by_id = dict(cells)
    found = {name: by_id[f"exercise-{name}"] for name in chapter.stubs if f"exercise-{name}" in by_id}
    for (_, before), (_, text) in zip(cells, cells[1:], strict=False):
        for name, check in chapter.checks.items():
            if text.strip() == check.strip() and before.strip() not in map(str.strip, found.values()):
                found.setdefault(name, before)
    return found


def marks(
    file: Path, book: dict[str, Chapter], seconds: float = SECONDS, start: float = START
) -> tuple[str, dict[str, str]]:
    """Name of the chapter, and what became of each exercise. ValueError if it is no chapter's notebook."""
    chapter = chapter_of(file, book)
    given = answers(code_cells(file), chapter)
    found, run = {}, {}
    for name, stub in chapter.stubs.items():
        if name not in given:
            found[name] = "missing: neither its cell nor its check is in the notebook"
        elif given[name].strip() == stub.strip():
            found[name] = "not done"
        else:
            found[name] = ""
            run[name] = [given[name], chapter.checks[name]]
    return chapter.name, found | verdicts(chapter.imports, run, seconds, start)


def verdicts(
    imports: str, exercises: dict[str, list[str]], seconds: float, start: float = START
) -> dict[str, str]:
    """Run the cells of each exercise after the imports; `right`, or what went wrong, by its name.

    All run in one Python; a new one goes on behind an exercise that ends Python or exceeds `seconds`.
    """
    found: dict[str, str] = {}
    environment = os.environ | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    environment["WMSE_RESULTS"] = os.environ.get("WMSE_RESULTS", str(ROOT / "results"))
    if not Path(environment["WMSE_RESULTS"]).is_dir():
        del environment["WMSE_RESULTS"]
    while left := {name: cells for name, cells in exercises.items() if name not in found}:
        job = {"imports": imports, "seconds": seconds, "start": start, "exercises": list(left.items())}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "work").mkdir()
            status, slow = 0, False
            with (folder / "errors").open("w") as errors:
                try:
                    status = subprocess.run(
                        [sys.executable, "-c", PROGRAM],
                        input=json.dumps(job).encode(),
                        stdout=subprocess.DEVNULL,
                        stderr=errors,
                        cwd=folder / "work",
                        env=environment,
                        timeout=start + len(left) * seconds + 10,  # if an answer has stopped the watchdog
                    ).returncode
                except subprocess.TimeoutExpired:
                    slow = True
            slow |= bool((folder / "slow").read_text())
            said = [json.loads(line) for line in (folder / "report").read_text("utf-8").splitlines()]
            lines = (folder / "errors").read_text(errors="replace").strip().splitlines()
        found |= {name: mark for name, mark in said if mark != "begun"}
        begun = [name for name, mark in said if mark == "begun"]
        if not begun:
            raise ValueError(f"the chapter's imports {'took too long' if slow else f'failed: {lines[-1:]}'}")
        if begun[-1] not in found:
            ended = f"wrong: Python ended with {status}"
            found[begun[-1]] = f"too slow: not done after {seconds:g} seconds" if slow else ended
    return found


def write_csv(file: Path, rows: Iterable[dict[str, str | int]]) -> None:
    """One row per notebook; the column `marks` holds those that are not `right`."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        table = csv.DictWriter(opened, COLUMNS)
        table.writeheader()
        table.writerows(rows)


def cores() -> int:
    """Processor cores that this process may use, at most 4: each job takes a gigabyte of memory."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 4)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a notebook or a folder of them")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a table, one row per notebook")
    parser.add_argument("--jobs", type=int, default=cores(), help="files at a time (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="for an exercise (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {options.jobs}")
    handed_in = submissions(options.paths)
    if not handed_in:
        parser.error(f"there is no notebook in {', '.join(map(str, options.paths))}")
    book = chapters(root)

    def marked(one: Submission) -> tuple[str, dict[str, str]] | str:
        try:
            return marks(one.file, book, options.seconds)
        except (OSError, ValueError) as error:
            return str(error)

    rows, unread = [], 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for one, result in zip(handed_in, pool.map(marked, handed_in), strict=True):
            row = {"student": one.student, "id": one.id, "file": str(one.file)}
            if isinstance(result, str):
                print(f"{one.file}: {result}")
                rows.append(row | {"marks": f"not marked: {result}"})
                unread += 1
                continue
            chapter, found = result
            right = sum(mark == "right" for mark in found.values())
            print(f"{one.student}, {chapter}: {right} of {len(found)} right")
            for name, mark in found.items():
                print(f"  {name}: {mark}")
            words = "; ".join(f"{name}: {mark}" for name, mark in found.items() if mark != "right")
            rows.append(row | {"chapter": chapter, "right": right, "exercises": len(found), "marks": words})
    if options.csv:
        write_csv(options.csv, rows)
    return int(unread > 0)


if __name__ == "__main__":
    sys.exit(main())
