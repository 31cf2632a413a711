"""Build the book: stage its sources, execute the notebooks, make the pages, check their links.

    python book/tools/build.py --help

Everything is written under `_build/`:
    stage/       what Jupyter Book reads: configuration, pages, results, executed notebooks
    unfinished/  notebooks being executed; one that failed stays here, its error inside
    runs/        what the notebooks trained, which they share; emptied when the package has changed
    times.json   processor time of each notebook: the longest is executed first
    html/        the site, with the lectures in slides/
A notebook is executed again only when something that it depends on has changed: see `execute.fingerprint`.
"""

import argparse
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import links
import pages
import plain
import slides
from execute import BuildError, captured, execute_all
from student import WEIGHTS

from benchmarks import page
from wmse.machine import usable_cores

ROOT = Path(__file__).resolve().parents[2]
PAGE_FILES = shutil.ignore_patterns("tools", "teacher", "__pycache__")  # no part of the site


def chapters(root: Path) -> list[str]:
    """Names of the notebooks that `_toc.yml` lists, in its order, without folder and ending."""

    def files(entry):
        if isinstance(entry, dict):
            for key, value in entry.items():
                yield from [value] if key in ("file", "root") else files(value)
        elif isinstance(entry, list):
            for value in entry:
                yield from files(value)

    listed = files(yaml.safe_load((root / "_toc.yml").read_text()))
    return [Path(file).name for file in listed if file.startswith("notebooks/")]


def mathjax() -> Path:
    """MathJax 3 in one file, so that formulas show without a network; from the package that carries it."""
    for file in metadata.files("sphinx-mathjax-offline") or []:
        if file.name == "tex-svg.js":
            return Path(file.locate())
    raise BuildError("tex-svg.js is missing from the environment: reinstall sphinx-mathjax-offline")


def stage_pages(root: Path, names: list[str]) -> None:
    """Copy all that Jupyter Book reads but notebooks, and drop staged notebooks that are no longer listed."""
    stage = root / "_build" / "stage"
    for folder, ignored in (("book", PAGE_FILES), ("results", WEIGHTS)):
        shutil.rmtree(stage / folder, ignore_errors=True)
        if (root / folder).exists():
            shutil.copytree(root / folder, stage / folder, ignore=ignored)
    shutil.copy2(root / "_config.yml", stage / "_config.yml")
    contents = yaml.safe_load((root / "_toc.yml").read_text("utf-8"))
    index, *records = pages.write(root / "results", stage, names)
    runs = {"file": index} | ({"sections": [{"file": record} for record in records]} if records else {})
    if "parts" in contents:
        contents["parts"].append({"caption": "The runs behind it", "chapters": [runs]})
    else:
        contents["chapters"].append(runs)
    (stage / "_toc.yml").write_text(yaml.safe_dump(contents, sort_keys=False), "utf-8")
    # What book/speed.md includes.
    try:
        tables = page.markdown(root / "benchmarks" / "results")
    except ValueError as error:
        raise BuildError(str(error)) from None
    (stage / "book" / "speed-tables.md").write_text(tables, "utf-8")
    if (root / "benchmarks" / "LOG.md").exists():
        shutil.copy2(root / "benchmarks" / "LOG.md", stage / "book" / "speed-log.md")
    shutil.copy2(mathjax(), stage / "book" / "_static" / "tex-svg.js")
    for staged in (stage / "notebooks").glob("*.ipynb"):
        if staged.stem not in names:
            staged.unlink()


def make_site(root: Path) -> Path:
    """Run Jupyter Book, warnings as errors, add the lectures, check links; returns the site's first page."""
    site = root / "_build" / "html"
    shutil.rmtree(site, ignore_errors=True)  # pages of files that are gone would stay
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(root / "_build" / "stage")]
    command += ["--path-output", str(root), "-W", "-n", "--keep-going", "-q", "--all"]
    run = captured(command, cwd=root)
    if run.returncode or not (site / "index.html").exists():
        raise BuildError(f"Jupyter Book failed; its warnings count as errors:\n{run.stdout}")
    lectures = root / "book" / "slides.yml"
    try:
        plain.replace_downloads(site, root)
        slides.write(lectures, root / "_build" / "stage" / "notebooks", site / "slides")
    except ValueError as error:
        raise BuildError(str(error)) from None
    problems = links.problems(site)
    if problems:
        raise BuildError("Broken in the built site:\n  " + "\n  ".join(problems))
    return site / "index.html"


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, help="notebooks at a time (default: one a core, at most 4)")
    parser.add_argument("--profile", default="smoke", help="the notebooks' profile (default: %(default)s)")
    parser.add_argument(
        "--parameter", action="append", default=[], metavar="NAME=VALUE", help="of a notebook"
    )
    parser.add_argument("--only", action="append", metavar="NN_slug", help="execute this notebook only")
    parser.add_argument("--execute-only", action="store_true", help="stop before the pages are made")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    try:
        names = chapters(root)
        selected = options.only or names
        if missing := sorted(set(selected) - set(names)):
            raise BuildError(f"_toc.yml lists no notebook {', '.join(missing)}; it lists {', '.join(names)}")
        if absent := [name for name in selected if not (root / "notebooks" / f"{name}.ipynb").exists()]:
            raise BuildError(f"_toc.yml lists {', '.join(absent)}, but notebooks/ has no such file")
        if malformed := [given for given in options.parameter if "=" not in given]:
            raise BuildError(f"--parameter {malformed[0]}: write it as NAME=VALUE")
        chosen = {"profile": options.profile, **dict(given.split("=", 1) for given in options.parameter)}
        jobs = min(options.jobs or min(4, usable_cores()), len(selected))
        if jobs < 1:
            raise BuildError(f"--jobs must be at least 1, not {jobs}")
        execute_all(root, selected, chosen, jobs)
        if not options.execute_only:
            stage_pages(root, names)
            page = make_site(root)
            print(f"Built in {time.perf_counter() - start:.0f} s: {page}")
    except BuildError as error:
        print(f"\nThe book was not built.\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
