"""For teachers: write the student's edition of the book. `marks.py` marks what students hand in.

    python book/tools/student.py                  # into _build/student/
    python book/tools/student.py --site https://course.example/wmse/

The edition is a folder to hand out: the chapters without their solutions, and what they read. Stubs and
checks are the book's own, unchanged. Each notebook names its chapter in its metadata, so that marking finds
it whatever the file is called.

As long as the repository's address is not public, a wheel of the package lies beside the notebooks, and
their setup cell installs from it. `--wheel` asks for the same for a private fork.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import util
from pathlib import Path

import nbformat
import plain
from repository import current, published

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = shutil.ignore_patterns("*.safetensors", "*.pt")  # of encoders: large, and no chapter needs them
COLAB = re.compile(r'^if "google\.colab" in sys\.modules:\n(?:[ \t]+.*\n)+', re.MULTILINE)
FROM_WHEEL = """\
from importlib.util import find_spec
from pathlib import Path

if find_spec("wmse") is None:  # once; then this cell installs nothing
    if not Path("{wheel}").exists():
        raise FileNotFoundError(f"Put {wheel}, which came with this notebook, into {{Path.cwd()}}")
    %pip install --quiet "./{wheel}[book]"
"""

REPOSITORY = """\
In an environment with Python 3.11 or newer: `pip install jupyterlab "wmse[book] @ git+{address}"`,
   or `"PATH[book]"` with the path of a copy of the repository. In Colab the third cell of a chapter
   installs what it needs."""
WHEEL = """\
In an environment with Python 3.11 or newer, in this folder:
   `pip install jupyterlab "./notebooks/{wheel}[book]"`. In Colab, first put the wheel into the
   session's files (the folder icon on the left); then the second code cell of a chapter installs it."""

README = """\
# Student's edition

The chapters of *Whitening for Self-Supervised Learning*, without the solutions of their exercises.

1. {install}
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


# Where a chapter has solutions, its exercises say to skip them; here there are none.
SKIP_SOLUTION = re.compile(
    r"(Fill in the stub, then run (?:the|its) check), and skip the folded solution[^.]*\."
)


def without_solutions(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A chapter without cells tagged `solution`, outputs, and words on what to do with a folded solution."""
    edition = nbformat.from_dict(notebook)
    edition.metadata.pop("build", None)
    edition.cells = [cell for cell in edition.cells if "solution" not in cell.metadata.get("tags", [])]
    for cell in edition.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        else:
            cell.source = SKIP_SOLUTION.sub(r"\1.", cell.source)
    return edition


def install_from(notebook: nbformat.NotebookNode, wheel: str) -> None:
    """Let the setup cell install from `wheel` in the notebook's folder, where `wmse` is not installed."""
    (setup,) = (cell for cell in notebook.cells if "setup" in cell.metadata.get("tags", []))
    setup.source, count = COLAB.subn(lambda _: FROM_WHEEL.format(wheel=wheel), setup.source)
    if count != 1:
        raise ValueError(f"cell {setup.id} has no line that installs the package on Colab")


def write(
    root: Path = ROOT, folder: Path | None = None, wheel: bool = False, site: str | None = None
) -> Path:
    """Write the edition of the chapters in `root`/notebooks anew; returns its folder.

    Args:
        wheel: whether the notebooks install the package from a wheel beside them, or from the repository.
        site: address of the site that links lead to; None for the one in the configuration.
    """
    folder = folder or root / "_build" / "student"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "notebooks").mkdir(parents=True)
    book, names = plain.read_book(root), []
    wheel_name = build_wheel(root, folder / "notebooks").name if wheel else ""
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        edition = without_solutions(nbformat.read(path, as_version=4))
        edition = plain.plain_notebook(edition, path.stem, book)
        edition.metadata["wmse"] = {"chapter": path.stem}
        if wheel:
            install_from(edition, wheel_name)
        text = nbformat.writes(edition)
        if site:
            text = text.replace(book.site, site.rstrip("/") + "/")
        (folder / "notebooks" / path.name).write_text(text + "\n", "utf-8")
        names.append(path.stem)
    if (root / "results").exists():
        shutil.copytree(root / "results", folder / "results", ignore=WEIGHTS)
    address = "https://github.com/" + "/".join(current(root))
    install = (WHEEL if wheel else REPOSITORY).format(address=address, wheel=wheel_name)
    chapters = ", ".join(f"`{name}`" for name in names)
    (folder / "README.md").write_text(README.format(install=install, chapters=chapters), "utf-8")
    return folder


def build_wheel(root: Path, folder: Path) -> Path:
    """Build the wheel of `wmse` from the sources in `root` into `folder`, without a network if possible.

    Raises RuntimeError with pip's last lines if that fails.
    """
    with tempfile.TemporaryDirectory() as name:  # setuptools leaves its build folders beside the sources
        copy = Path(name)
        shutil.copytree(root / "wmse", copy / "wmse", ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy2(root / file, copy)
        command = [sys.executable, *"-m pip wheel --quiet --no-deps --wheel-dir".split(), str(folder)]
        if util.find_spec("setuptools"):  # else pip fetches it
            command.append("--no-build-isolation")
        done = subprocess.run([*command, str(copy)], text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"the wheel of wmse was not built:\n{done.stderr[-1000:]}")
    (wheel,) = folder.glob("wmse-*.whl")
    return wheel


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--wheel", action="store_true", help="install from a wheel although the repository is published"
    )
    parser.add_argument(
        "--site", metavar="URL", help="where the course's own copy of the site is, for links to it"
    )
    options = parser.parse_args(arguments)
    folder = write(wheel=options.wheel or not published(ROOT), site=options.site)
    print(f"The student's edition is in {folder.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
