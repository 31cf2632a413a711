"""For teachers: write the student's edition of the book, and mark what students hand in.

    python book/tools/student.py                           # the edition, into _build/student/
    python book/tools/student.py mark SUBMITTED.ipynb ...  # each named as its chapter, or beginning with NN_

The edition is a folder to hand out: the chapters without their solutions, and what they read. Stubs and
checks are the book's own, unchanged.

Marking runs the book's own checks on what stands in the stubs. For each exercise it prints `right`, `wrong`
with the check's message, `not done`, or `too slow`. Checks come from the repository, whatever was handed in.
This runs code that others wrote: do it in a container or a spare account.
"""

import argparse
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import plain
from repository import current

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = shutil.ignore_patterns("*.safetensors", "*.pt")  # of encoders: large, and no chapter needs them
SECONDS = 120  # for an exercise, imports included

README = """\
# Student's edition

The chapters of *Whitening for Self-Supervised Learning*, without the solutions of their exercises.

1. In an environment with Python 3.11 or newer: `pip install jupyterlab "wmse[book] @ git+{address}"`,
   or `"PATH[book]"` with the path of a copy of the repository. In Colab the third cell of a chapter
   installs what it needs.
2. Open a notebook in `notebooks/` and run its cells in order. Links to other chapters lead to the
   notebooks here, links to the glossary and to other pages to the book's site.
3. An exercise is two code cells. The first, the *stub*, raises `NotImplementedError("your turn")`
   or holds `answer = None`: write your answer into it, imports and helper functions included. The
   second is its *check*: it prints a line if the answer is right, and says what is wrong if it is
   not. Leave the checks as they are. "Run all" stops at the first check whose exercise is not done
   yet.
4. Chapters that show results on record read them from `results/`; nothing of it is needed to solve
   an exercise.

Chapters: {chapters}.
"""


def without_solutions(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A chapter without cells tagged `solution` and without outputs; the other cells as they are."""
    edition = nbformat.from_dict(notebook)
    edition.metadata.pop("build", None)
    edition.cells = [cell for cell in edition.cells if "solution" not in cell.metadata.get("tags", [])]
    for cell in edition.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return edition


def write(root: Path = ROOT, folder: Path | None = None) -> Path:
    """Write the edition of the chapters in `root`/notebooks anew; returns its folder."""
    folder = folder or root / "_build" / "student"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "notebooks").mkdir(parents=True)
    book, names = plain.read_book(root), []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        edition = without_solutions(nbformat.read(path, as_version=4))
        edition = plain.plain_notebook(edition, path.stem, book)
        nbformat.write(edition, folder / "notebooks" / path.name)
        names.append(path.stem)
    if (root / "results").exists():
        shutil.copytree(root / "results", folder / "results", ignore=WEIGHTS)
    address = "https://github.com/" + "/".join(current(root))
    chapters = ", ".join(f"`{name}`" for name in names)
    (folder / "README.md").write_text(README.format(address=address, chapters=chapters), "utf-8")
    return folder


def chapter_of(submitted: Path, root: Path = ROOT) -> Path:
    """The chapter that a file was made from, by the two digits that its name begins with."""
    found = sorted((root / "notebooks").glob(f"{submitted.name[:2]}_*.ipynb"))
    if len(found) != 1 or not submitted.name[:2].isdigit():
        raise ValueError(f"{submitted.name}: its name must begin with the number of a chapter, such as 02_")
    return found[0]


def marks(submitted: Path, root: Path = ROOT, seconds: float = SECONDS) -> dict[str, str]:
    """What became of each exercise of the chapter, by its name."""
    chapter = {cell.id: cell for cell in nbformat.read(chapter_of(submitted, root), as_version=4).cells}
    answers = {cell.id: cell.source for cell in nbformat.read(submitted, as_version=4).cells}
    (imports,) = (cell.source for cell in chapter.values() if "imports" in cell.metadata.get("tags", []))
    found = {}
    for name, cell in chapter.items():
        if "exercise" not in cell.metadata.get("tags", []):
            continue
        slug = name.removeprefix("exercise-")
        answer = answers.get(name)
        if answer is None:
            found[slug] = "missing: the cell with this id is gone"
        elif answer.strip() == cell.source.strip():
            found[slug] = "not done"
        else:
            found[slug] = verdict([imports, answer, chapter[f"check-{slug}"].source], seconds)
    return found


def verdict(cells: list[str], seconds: float) -> str:
    """Run the cells in order in a Python of their own; `right`, or the last line of the error."""
    end = secrets.token_hex(8)  # printed last: an answer that ends Python early is not right
    program = f"import matplotlib; matplotlib.use('Agg')\nfor cell in {cells!r}: exec(cell, globals())\n"
    program += f"print('{end}')\n"
    try:
        run = subprocess.run(
            [sys.executable, "-"], input=program, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"too slow: not done after {seconds:g} seconds"
    if run.returncode == 0 and run.stdout.rstrip().endswith(end):
        return "right"
    return "wrong: " + (run.stderr.strip().splitlines() or [f"Python ended with {run.returncode}"])[-1]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("write", help="write the edition into _build/student/ (the default)")
    marking = commands.add_parser("mark", help="mark notebooks that were handed in")
    marking.add_argument("files", nargs="+", type=Path, metavar="SUBMITTED.ipynb")
    options = parser.parse_args(arguments)
    if options.command != "mark":
        print(f"The student's edition is in {write().relative_to(ROOT)}")
        return 0
    unread = 0
    for file in options.files:
        try:
            found = marks(file)
        except (OSError, ValueError) as error:
            print(f"{file}: {error}")
            unread += 1
            continue
        print(f"{file}: {sum(mark == 'right' for mark in found.values())} of {len(found)} right")
        for slug, mark in found.items():
            print(f"  {slug}: {mark}")
    return int(unread > 0)


if __name__ == "__main__":
    sys.exit(main())
