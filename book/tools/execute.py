"""Execute the notebooks for the site, those that have changed, several at a time. Called by `build.py`."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from threading import Lock

import nbformat
import papermill
from plain import merge_setup

from wmse.machine import usable_cores

CELL_TIMEOUT = 3600  # seconds: a cell that hangs must not hang the build for ever
# Chapters by the views that they train on, for a build that has no times of an earlier one.
TRAIN_MOST = ("05_training", "08_baselines", "06_evaluating", "10_ablations", "12_family", "01_first_run")
# SVG without its date: the same figure is the same file. The resolution is for what is rasterized in it.
FIGURES = """\
c.InlineBackend.figure_formats = ["svg"]
c.InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "dpi": 200, "metadata": {"Date": None}}
"""
ANSI = re.compile(r"\x1b\[[0-9;]*m")
# What tells whoever waits how a training comes on, and is of no use to who reads what came of it. It differs
# from build to build, because another chapter may have trained the run before.
_STATES = "no checkpoint: from the beginning|resuming after step \\d+"
_BEGINNINGS = r".*/.*, seed \d+, .*: loading the images|[\d,]+ images: [\d,]+ epochs of .* steps in all"
PROGRESS = re.compile(
    rf"^(epoch \d+/\d+, loss .* left|{_BEGINNINGS}|.*: ({_STATES})|.* is finished already: nothing to do)\n",
    re.MULTILINE,
)


class BuildError(Exception):
    """Something that the reader of the message can mend; shown without a traceback."""


def parameters_for(notebook: Path, chosen: dict[str, str]) -> dict[str, str]:
    """The parameters to execute `notebook` with; a name that its `parameters` cell lacks is refused."""
    known = list(papermill.inspect_notebook(str(notebook)))
    parameters = {"out": "../_build/runs", **chosen}  # one folder for all: chapters share runs
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise BuildError(
            f"{notebook.name} has no parameter {', '.join(unknown)}; "
            f"it has {', '.join(known) or 'none (is a cell tagged `parameters`?)'}"
        )
    return parameters


def fingerprint(root: Path, notebook: Path, parameters: dict[str, str]) -> str:
    """Hash of all that an executed notebook depends on: `code`, its source and parameters, the records."""
    digest = hashlib.sha256(json.dumps([parameters, code(root)], sort_keys=True).encode())
    _update(digest, root, [notebook, *(root / "results").rglob("*")])
    return digest.hexdigest()


def code(root: Path) -> str:
    """Hash of all that a run depends on: the package, the requirements and the versions installed."""
    digest = hashlib.sha256(sys.version.encode())
    requirements = root / "requirements.txt"
    for name in re.findall(r"^[A-Za-z][\w.-]*", requirements.read_text(), re.MULTILINE):
        try:
            digest.update(f"{name}=={metadata.version(name)}\n".encode())
        except metadata.PackageNotFoundError:
            digest.update(f"{name} absent\n".encode())
    _update(digest, root, [requirements, *(root / "wmse").rglob("*.py")])
    return digest.hexdigest()


def _update(digest: "hashlib._Hash", root: Path, paths: list[Path]) -> None:
    """Add the files among `paths`, names and contents."""
    for path in sorted(path for path in paths if path.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)


def drop_old_runs(root: Path) -> None:
    """Empty the chapters' folder of runs if other code or other versions trained them."""
    runs, now = root / "_build" / "runs", code(root)
    mark = runs / "code"
    if not mark.exists() or mark.read_text() != now:
        shutil.rmtree(runs, ignore_errors=True)
        runs.mkdir(parents=True)
        mark.write_text(now)


def times(root: Path) -> dict[str, float]:
    """Seconds of processor time that each chapter took last, as `_build/times.json` has them."""
    with suppress(OSError, ValueError):
        return json.loads((root / "_build" / "times.json").read_text())["processor_seconds"]
    return {}


def longest_first(names: list[str], seconds: dict[str, float]) -> list[str]:
    """The chapters by falling time, so that the pool does not wait for one of them alone at the end.

    Those without a time come first, and among them those that train most.
    """
    first = [*(name for name in TRAIN_MOST if name in names), *names]
    return sorted(names, key=lambda name: (-seconds.get(name, float("inf")), first.index(name)))


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

    Papermill's cell gets a fixed id and is hidden, solutions get a label to unfold them by, setup and imports
    become one cell, and the lines of progress, the times and the paths of this machine go.
    """
    merge_setup(notebook)
    notebook.metadata.pop("papermill", None)
    notebook.metadata["build"] = build
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = PROGRESS.sub("", output.text)
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("text", "something")]
        tags = cell.metadata.get("tags", [])
        if "solution" in tags:
            prompts = {"code_prompt_show": "Show a solution", "code_prompt_hide": "Hide the solution"}
            cell.metadata["mystnb"] = {**prompts, **cell.metadata.get("mystnb", {})}
        if "injected-parameters" in tags:
            cell.id = "injected-parameters"
            cell.metadata["tags"] = ["injected-parameters", "remove-cell"]


def execute(
    root: Path, name: str, parameters: dict[str, str], state: str, environment: dict
) -> tuple[float, float]:
    """Execute one notebook with papermill, stage the result, return its seconds and those of processor time.

    `state` is the fingerprint to record. Raises BuildError with the failing cell; its output stays
    in `_build/unfinished`.
    """
    notebook = root / "notebooks" / f"{name}.ipynb"
    unfinished = root / "_build" / "unfinished" / notebook.name
    staged = root / "_build" / "stage" / "notebooks" / notebook.name
    for path in (unfinished, staged):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    for own in (root / "_build" / "runs").glob(f"{name[:2]}-*"):  # not shared, by its number
        shutil.rmtree(own)

    command = [sys.executable, "-m", "papermill", str(notebook), str(unfinished), "--no-progress-bar"]
    command += ["--cwd", str(notebook.parent), "-k", "python3", "--execution-timeout", str(CELL_TIMEOUT)]
    for key, value in parameters.items():
        command += ["-p", key, value]
    start = time.perf_counter()
    with subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    ) as process:
        log = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)  # the kernel's processor time is in it
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds, processor = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    if process.returncode:
        kept = unfinished.relative_to(root)
        place = failure(unfinished, log)
        raise BuildError(f"notebooks/{name}.ipynb failed in {place}\n(kept as {kept})")

    executed = nbformat.read(unfinished, as_version=4)
    tidy(executed, {"fingerprint": state, "seconds": round(seconds, 1)})
    nbformat.write(executed, unfinished)
    unfinished.replace(staged)
    return seconds, processor


def execute_all(root: Path, names: list[str], chosen: dict[str, str], jobs: int) -> None:
    """Execute the notebooks whose staged copy is not current, `jobs` at a time; BuildError names failures."""
    stage = root / "_build" / "stage" / "notebooks"
    parameters = {name: parameters_for(root / "notebooks" / f"{name}.ipynb", chosen) for name in names}
    # Few threads each: two processes whose threads wait for each other on the same cores run many times
    # slower than one after the other, so a core has one thread of one notebook.
    threads = max(1, usable_cores() // jobs)
    environment = kernel_environment(root, threads)
    drop_old_runs(root)
    took, lock = times(root), Lock()
    print(f"Notebooks, {jobs} at a time, {environment['OMP_NUM_THREADS']} threads each:", flush=True)

    def bring_up_to_date(name: str) -> str | None:
        notebook = root / "notebooks" / f"{name}.ipynb"
        before = recorded(stage / notebook.name)
        state = fingerprint(root, notebook, parameters[name])
        if before.get("fingerprint") == state:
            print(f"  {name}: current (took {before['seconds']:.0f} s)", flush=True)
            return None
        try:
            seconds, processor = execute(root, name, parameters[name], state, environment)
        except BuildError as error:
            print(f"  {name}: FAILED", flush=True)
            return str(error)
        print(f"  {name}: {seconds:.0f} s, of processor time {processor:.0f} s", flush=True)
        with lock:
            took[name] = round(processor, 1)
            text = json.dumps({"processor_seconds": took}, indent=2, sort_keys=True)
            (root / "_build" / "times.json").write_text(f"{text}\n")
        return None

    start = time.perf_counter()
    with ThreadPoolExecutor(jobs) as pool:
        order = longest_first(names, took)
        failures = [message for message in pool.map(bring_up_to_date, order) if message]
    print(f"  all: {time.perf_counter() - start:.0f} s", flush=True)
    if failures:
        raise BuildError("\n\n".join(failures))


def captured(command: list[str], **options) -> subprocess.CompletedProcess:
    """Run a command to its end, its two outputs together in `stdout`."""
    return subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
