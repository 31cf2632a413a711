"""Write the student's edition: the chapters without their solutions, and what they read.

    python book/tools/student.py

Everything lies under `_build/student/`: a folder to hand out. Stubs and checks are the book's own, unchanged.
"""

import re
import shutil
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
PAGE_LINK = re.compile(r"\[([^\]]+)\]\(\.\./book/[^)]*\)")  # pages of the site are not in the edition

WEIGHTS = shutil.ignore_patterns("*.safetensors", "*.pt")  # of encoders: large, and no chapter needs them

README = """\
# Student's edition

The chapters of *Whitening for Self-Supervised Learning*, without the solutions of their exercises.

1. In an environment with Python 3.11 or newer: `pip install jupyterlab "git+{address}"`, or the
   path of a copy of the repository in place of the address. In Colab the third cell of a chapter
   installs what it needs.
2. Open a notebook in `notebooks/` and run its cells in order. Where the text names a page of the
   book, such as the glossary, look there; links to other chapters work here.
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
    """A chapter as a student gets it: no cell tagged `solution`, no outputs, the other cells as they are.

    Links to pages of the site become plain text.
    """
    edition = nbformat.from_dict(notebook)
    edition.metadata.pop("build", None)
    edition.cells = [cell for cell in edition.cells if "solution" not in cell.metadata.get("tags", [])]
    for cell in edition.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        elif cell.cell_type == "markdown":
            cell.source = PAGE_LINK.sub(r"\1", cell.source)
    return edition


def write(root: Path = ROOT, folder: Path | None = None) -> Path:
    """Write the edition of the chapters in `root`/notebooks anew; returns its folder."""
    from repository import current

    folder = folder or root / "_build" / "student"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "notebooks").mkdir(parents=True)
    names = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        edition = without_solutions(nbformat.read(path, as_version=4))
        nbformat.validate(edition)
        nbformat.write(edition, folder / "notebooks" / path.name)
        names.append(path.stem)
    if (root / "results").exists():
        shutil.copytree(root / "results", folder / "results", ignore=WEIGHTS)
    address = "https://github.com/" + "/".join(current(root))
    chapters = ", ".join(f"`{name}`" for name in names)
    (folder / "README.md").write_text(README.format(address=address, chapters=chapters), "utf-8")
    return folder


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    print(f"The student's edition is in {write().relative_to(ROOT)}")
