"""Building the book: a chapter at a time, from nothing and again, beside what it must not exceed.

    python -m benchmarks.book

The sources are copied to a temporary folder and built there, as in a fresh clone whose environment exists.
Then what a kernel waits for before a chapter begins: imports, and the first UMAP, which is compiled.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks import measuring

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "book",
    "notebooks",
    "wmse",
    "results",
    "benchmarks",
    "_config.yml",
    "_toc.yml",
    "requirements.txt",
)
BUDGET = 480.0  # seconds for the whole book on two cores
STARTS = {
    "import torch": "import torch",
    "import wmse's training": "import wmse.training",
    "import umap": "import umap",
    "import umap, first fit (compiled)": (
        "import numpy, umap; umap.UMAP(n_epochs=5).fit(numpy.random.rand(200, 8))"
    ),
}


def python(*arguments: str, folder: Path) -> float:
    """Seconds of one Python process; RuntimeError, with what it printed, if it fails."""

    def work() -> None:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            raise RuntimeError(f"python {' '.join(arguments)} failed:\n{done.stdout}")

    return measuring.seconds(work, torch.device("cpu"))


def copied(root: Path, target: Path) -> None:
    """What a build reads, without what earlier ones left behind."""
    for name in SOURCES:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, target / name)


def main(arguments: list[str] | None = None) -> None:
    options = measuring.parse(__doc__, arguments=arguments)
    rows = []

    def add(what: str, seconds: float) -> None:
        rows.append({"what": what, "seconds": seconds, "share": 100 * seconds / BUDGET})

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copied(ROOT, folder)
        whole = python("book/tools/build.py", folder=folder)
        again = python("book/tools/build.py", folder=folder)
        staged = sorted((folder / "_build" / "stage" / "notebooks").glob("*.ipynb"))
        for path in staged:
            add(f"chapter {path.stem}", json.loads(path.read_text("utf-8"))["metadata"]["build"]["seconds"])
        add("the book, from nothing", whole)
        add("the book, nothing changed", again)
        for what, code in STARTS.items():
            add(what, python("-c", code, folder=folder))
    table = measuring.Table(
        "book",
        "Building the book",
        {"what": "what", "seconds": "s", "share": "share of eight minutes, %"},
        rows,
        "In a copy without outputs, the environment installed. Chapters run as many at a time as there are "
        "cores, at most four, with a core each. Once, with files in the system's cache.",
    )
    measuring.finish(table, torch.device("cpu"), options.out)


if __name__ == "__main__":
    main()
