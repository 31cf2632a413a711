"""Build the book: stage its sources, execute the notebooks, make the pages, check their links.

    python book/build.py --help

Everything is written under `_build/`:
    stage/       what Jupyter Book reads: configuration, pages, results, executed notebooks
    unfinished/  notebooks being executed; one that failed stays here, its error inside
    runs/        what the notebooks trained, a folder for each
    html/        the site, with the lectures in slides/
A notebook is executed again only when something that it depends on has changed: see `fingerprint`.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import nbformat
import papermill
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import course
import landing
import links
import record_pages
import report
import slides

from benchmarks import page
from wmse.machine import usable_cores

ROOT = Path(__file__).resolve().parents[1]
PAGE_FILES = shutil.ignore_patterns("*.py", "__pycache__")
RESULT_FILES = shutil.ignore_patterns("*.safetensors", "*.pt")
CELL_TIMEOUT = 3600  # seconds: a cell that hangs must not hang the build for ever
# SVG without its date: the same figure is the same file. The resolution is for what is rasterized in it.
FIGURES = """\
c.InlineBackend.figure_formats = ["svg"]
c.InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "dpi": 200, "metadata": {"Date": None}}
"""
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class BuildError(Exception):
    """Something that the reader of the message can mend; shown without a traceback."""


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


def parameters_for(notebook: Path, chosen: dict[str, str]) -> dict[str, str]:
    """The parameters to execute `notebook` with; a name that its `parameters` cell lacks is refused."""
    known = list(papermill.inspect_notebook(str(notebook)))
    parameters = {"out": f"../_build/runs/{notebook.stem}", **chosen}
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise BuildError(
            f"{notebook.name} has no parameter {', '.join(unknown)}; "
            f"it has {', '.join(known) or 'none (is a cell tagged `parameters`?)'}"
        )
    return parameters


def fingerprint(root: Path, notebook: Path, parameters: dict[str, str]) -> str:
    """Hash of all that an executed notebook depends on.

    Its source and parameters, the package, the records, the requirements and the versions installed.
    """
    digest = hashlib.sha256(json.dumps([parameters, sys.version], sort_keys=True).encode())
    requirements = root / "requirements.txt"
    for name in re.findall(r"^[A-Za-z][\w.-]*", requirements.read_text(), re.MULTILINE):
        try:
            digest.update(f"{name}=={metadata.version(name)}\n".encode())
        except metadata.PackageNotFoundError:
            digest.update(f"{name} absent\n".encode())
    sources = [notebook, requirements, *(root / "wmse").rglob("*.py"), *(root / "results").rglob("*")]
    for path in sorted(path for path in sources if path.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def recorded(staged: Path) -> dict:
    """What an earlier build wrote into a staged notebook: fingerprint and seconds; empty without one."""
    try:
        return nbformat.read(staged, as_version=4).metadata.get("build", {})
    except (OSError, ValueError, nbformat.reader.NotJSONError):
        return {}


def kernel_environment(root: Path, threads: int) -> dict[str, str]:
    """What notebooks run in: this Python as their kernel, nothing read from or written to the user's home."""
    kernel = root / "_build" / "jupyter" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    ipython = root / "_build" / "jupyter" / "ipython" / "profile_default" / "ipython_kernel_config.py"
    ipython.parent.mkdir(parents=True, exist_ok=True)
    ipython.write_text(FIGURES)

    environment = dict(os.environ)
    environment.pop("MPLBACKEND", None)  # Agg, say, would leave the pages without figures
    environment.pop("WMSE_RESULTS", None)  # the site shows this checkout's records
    environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
        "JUPYTER_PATH": str(root / "_build" / "jupyter"),
        "JUPYTER_CONFIG_DIR": str(root / "_build" / "jupyter" / "config"),
        "JUPYTER_RUNTIME_DIR": str(root / "_build" / "jupyter" / "runtime"),
        "IPYTHONDIR": str(ipython.parents[1]),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        environment.setdefault(variable, str(threads))
    return environment


def failure(unfinished: Path, log: str) -> str:
    """The cell that failed and its traceback; where the kernel died without one, the end of the log."""
    cells = nbformat.read(unfinished, as_version=4).cells if unfinished.exists() else []
    for number, cell in enumerate(cells, start=1):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                source = "\n".join(f"    {line}" for line in cell.source.splitlines())
                traceback = ANSI.sub("", "\n".join(output.traceback))
                return f"cell {number}, id {cell.id}:\n{source}\n{traceback}"
    return "\n".join(ANSI.sub("", log).splitlines()[-20:])


def tidy(notebook: nbformat.NotebookNode, build: dict) -> None:
    """Make an executed notebook fit for the site.

    Papermill's cell gets a fixed id and is hidden, solutions get a label to unfold them by, and the times and
    paths of this machine go.
    """
    notebook.metadata.pop("papermill", None)
    notebook.metadata["build"] = build
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        tags = cell.metadata.get("tags", [])
        if "solution" in tags:
            prompts = {"code_prompt_show": "Show a solution", "code_prompt_hide": "Hide the solution"}
            cell.metadata["mystnb"] = {**prompts, **cell.metadata.get("mystnb", {})}
        if "injected-parameters" in tags:
            cell.id = "injected-parameters"
            cell.metadata["tags"] = ["injected-parameters", "remove-cell"]


def execute(root: Path, name: str, parameters: dict[str, str], state: str, environment: dict) -> float:
    """Execute one notebook with papermill, stage the result, return the seconds that it took.

    `state` is the fingerprint to record. Raises BuildError with the failing cell; its output stays
    in `_build/unfinished`.
    """
    notebook = root / "notebooks" / f"{name}.ipynb"
    unfinished = root / "_build" / "unfinished" / notebook.name
    staged = root / "_build" / "stage" / "notebooks" / notebook.name
    for path in (unfinished, staged):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    shutil.rmtree(root / "_build" / "runs" / name, ignore_errors=True)

    command = [sys.executable, "-m", "papermill", str(notebook), str(unfinished), "--no-progress-bar"]
    command += ["--cwd", str(notebook.parent), "-k", "python3", "--execution-timeout", str(CELL_TIMEOUT)]
    for key, value in parameters.items():
        command += ["-p", key, value]
    start = time.perf_counter()
    run = captured(command, env=environment)
    seconds = time.perf_counter() - start
    if run.returncode:
        kept = unfinished.relative_to(root)
        place = failure(unfinished, run.stdout)
        raise BuildError(f"notebooks/{name}.ipynb failed in {place}\n(kept as {kept})")

    executed = nbformat.read(unfinished, as_version=4)
    tidy(executed, {"fingerprint": state, "seconds": round(seconds, 1)})
    nbformat.write(executed, unfinished)
    unfinished.replace(staged)
    return seconds


def execute_all(root: Path, names: list[str], chosen: dict[str, str], jobs: int) -> None:
    """Execute the notebooks whose staged copy is not current, `jobs` at a time; BuildError names failures."""
    stage = root / "_build" / "stage" / "notebooks"
    parameters = {name: parameters_for(root / "notebooks" / f"{name}.ipynb", chosen) for name in names}
    # Few threads each: two processes whose threads wait for each other on the same cores run many times
    # slower than one after the other, so a core has one thread of one notebook.
    threads = max(1, usable_cores() // jobs)
    environment = kernel_environment(root, threads)
    print(f"Notebooks, {jobs} at a time, {environment['OMP_NUM_THREADS']} threads each:", flush=True)

    def bring_up_to_date(name: str) -> str | None:
        notebook = root / "notebooks" / f"{name}.ipynb"
        before = recorded(stage / notebook.name)
        state = fingerprint(root, notebook, parameters[name])
        if before.get("fingerprint") == state:
            print(f"  {name}: current (took {before['seconds']:.0f} s)", flush=True)
            return None
        try:
            seconds = execute(root, name, parameters[name], state, environment)
        except BuildError as error:
            print(f"  {name}: FAILED", flush=True)
            return str(error)
        print(f"  {name}: {seconds:.0f} s", flush=True)
        return None

    start = time.perf_counter()
    with ThreadPoolExecutor(jobs) as pool:
        # The last chapters train longest: first in, so that the pool does not wait for one of them alone.
        failures = [message for message in pool.map(bring_up_to_date, reversed(names)) if message]
    print(f"  all: {time.perf_counter() - start:.0f} s", flush=True)
    if failures:
        raise BuildError("\n\n".join(failures))


def captured(command: list[str], **options) -> subprocess.CompletedProcess:
    """Run a command to its end, its two outputs together in `stdout`."""
    return subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


def mathjax() -> Path:
    """MathJax 3 in one file, so that formulas show without a network; from the package that carries it."""
    for file in metadata.files("sphinx-mathjax-offline") or []:
        if file.name == "tex-svg.js":
            return Path(file.locate())
    raise BuildError("tex-svg.js is missing from the environment: reinstall sphinx-mathjax-offline")


def stage_pages(root: Path, names: list[str]) -> None:
    """Copy all that Jupyter Book reads but notebooks, and drop staged notebooks that are no longer listed."""
    stage = root / "_build" / "stage"
    for folder, ignored in (("book", PAGE_FILES), ("results", RESULT_FILES)):
        shutil.rmtree(stage / folder, ignore_errors=True)
        if (root / folder).exists():
            shutil.copytree(root / folder, stage / folder, ignore=ignored)
    shutil.copy2(root / "_config.yml", stage / "_config.yml")
    contents = yaml.safe_load((root / "_toc.yml").read_text("utf-8"))
    index, *pages = record_pages.write_pages(root / "results", stage)
    runs = {"file": index} | ({"sections": [{"file": page} for page in pages]} if pages else {})
    report.write_parts(root / "results", stage / "book")
    course.write_parts(root / "results", stage / "notebooks", names, stage / "book")
    landing.write_part(root / "results", stage / "book")
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
