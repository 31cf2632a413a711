"""Chapters run by papermill as the page on it says: parameters, folders, exit status."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_notebook
from papermill.cli import papermill as command_line

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGE = (ROOT / "book" / "papermill.md").read_text(encoding="utf-8")
SHELL = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def call(*arguments, cwd):
    """papermill in another process, as a reader calls it."""
    command = [sys.executable, "-m", "papermill", *map(str, arguments), "--no-progress-bar"]
    return subprocess.run(command, cwd=cwd, text=True, capture_output=True, check=False)


@pytest.fixture
def chapter(tmp_path):
    """A function that writes a small chapter in a folder of its own."""

    def write(source):
        parameters = 'seed: int = 0  # of all\nout: str = "runs"  # where'
        cells = [
            new_code_cell(parameters, metadata={"tags": ["parameters"]}),
            new_code_cell(source),
            new_code_cell("print('the end')"),
        ]
        path = tmp_path / "notebooks" / "small.ipynb"
        path.parent.mkdir()
        nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), path)
        return path

    return write


def test_out_is_relative_to_where_papermill_is_called(chapter, tmp_path):
    path = chapter("from pathlib import Path\nPath(out).mkdir()\nPath(out, f'seed-{seed}').touch()")
    here = tmp_path / "elsewhere"
    here.mkdir()
    done = call(path, "out.ipynb", "-p", "seed", "3", "-p", "out", "mine", cwd=here)
    assert done.returncode == 0, done.stderr
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()) == [
        "elsewhere/mine/seed-3",
        "elsewhere/out.ipynb",
        "notebooks/small.ipynb",
    ]


def test_a_cell_that_fails_gives_the_status_and_stays_in_the_notebook(chapter, tmp_path):
    done = call(chapter("print('so far')\n1 / 0"), "out.ipynb", cwd=tmp_path)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    text = (tmp_path / "out.ipynb").read_text()
    assert "so far" in text and "ZeroDivisionError" in text and '"text": [\n      "the end' not in text


def test_the_chapter_on_tables_finds_the_records_from_the_root(tmp_path):
    out = tmp_path / "out.ipynb"
    done = call("notebooks/09_tables.ipynb", out, "-p", "out", tmp_path, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    printed = [
        output.get("text", "") for cell in nbformat.read(out, 4).cells for output in cell.get("outputs", [])
    ]
    count = re.search(r"(\d+) finished runs, .*\n(\d+) others", "".join(printed))
    paths = {*(ROOT / "results").rglob("record.json")} - {*(ROOT / "results").glob("encoders/*/record.json")}
    assert int(count[1]) + int(count[2]) == len(paths), "copies beside exported networks do not count"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_help_of_a_notebook_shows_type_default_and_meaning(path):
    shown = CliRunner().invoke(command_line, ["--help-notebook", str(path)])
    assert shown.exit_code == 0, shown.output
    text = " ".join(shown.output.split())
    for parameter in papermill.inspect_notebook(str(path)).values():
        name, kind, default = (parameter[key] for key in ("name", "inferred_type_name", "default"))
        assert f"{name}: {kind} (default {default})" in text
        assert " ".join(parameter["help"].split()) in text


@pytest.mark.parametrize("number", range(len(SHELL)))
def test_the_pages_commands_are_a_shells(number):
    done = subprocess.run(["bash", "-n"], input=SHELL[number], text=True, capture_output=True)
    assert not done.returncode, done.stderr


def test_the_pages_commands_name_chapters_and_parameters_that_exist():
    lines = "\n".join(SHELL).replace("\\\n", " ").splitlines()
    calls = [
        line for line in lines if re.search(r"\bpapermill (?!ipykernel)\S+\.ipynb|--help-notebook", line)
    ]
    assert len(calls) >= 6
    for line in calls:
        name = re.search(r"(?:notebooks/)?(\d\d_\w+\.ipynb)", line)[1]
        known = papermill.inspect_notebook(str(ROOT / "notebooks" / name))
        assert set(re.findall(r"-p (\w+)", line)) <= set(known), line
