"""Mark notebooks that students hand in: run the book's own checks on what stands in their stubs.

    python book/tools/marks.py SUBMITTED.ipynb ...  # named as the chapter, or anything that begins with NN_

For each exercise: `right`, `wrong` with the check's message, `not done`, or `too slow`. Checks come from the
repository, whatever was handed in. This runs code that others wrote: do it in a container or a spare account.
"""

import secrets
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120  # for an exercise, imports included


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


def main(files: list[str]) -> int:
    if not files:
        print(__doc__.strip())
        return 2
    for file in files:
        try:
            found = marks(Path(file))
        except (OSError, ValueError) as error:
            print(f"{file}: {error}")
            continue
        print(f"{file}: {sum(mark == 'right' for mark in found.values())} of {len(found)} right")
        for slug, mark in found.items():
            print(f"  {slug}: {mark}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
