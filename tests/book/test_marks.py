"""Marks come from the book's own checks, for files as learning platforms name them."""

import csv
import time
import zipfile
from pathlib import Path

import marks
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).resolve().parents[2]
SLUGS = ("done", "wrong", "untouched", "early", "killed", "after", "removed")


def chapter(slugs, imports="import math"):
    cells = [new_code_cell(imports, id="imports", metadata={"tags": ["imports"]})]
    for slug in slugs:
        stub = f"def {slug}(x):\n    raise NotImplementedError"
        cells.append(new_code_cell(stub, id=f"exercise-{slug}", metadata={"tags": ["exercise"]}))
        check = f"assert {slug}(4) == math.sqrt(4), 'not the root'"
        cells.append(new_code_cell(check, id=f"check-{slug}", metadata={"tags": ["check"]}))
    return new_notebook(cells=cells)


@pytest.fixture
def root(tmp_path):
    """A repository with a chapter of seven exercises, and another with one of the same name."""
    (tmp_path / "notebooks").mkdir()
    nbformat.write(chapter(SLUGS), tmp_path / "notebooks" / "02_small.ipynb")
    nbformat.write(chapter(["done", "more"]), tmp_path / "notebooks" / "03_next.ipynb")
    return tmp_path


def hand_in(root, file, answers, change=lambda notebook: None, name="02_small"):
    """The chapter with `answers` in its stubs, as `file` below `root`/in."""
    notebook = nbformat.read(root / "notebooks" / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = answers.get(cell.id, cell.source)
    change(notebook)
    path = root / "in" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def without_removed(notebook):
    notebook.cells = [cell for cell in notebook.cells if not cell.id.endswith("-removed")]


ANSWERS = {
    "exercise-done": "def done(x):\n    print('1' * 100)\n    return math.sqrt(x)",
    "exercise-wrong": "def wrong(x):\n    return x",
    "check-wrong": "print('I say it is right')",
    "exercise-early": "import sys; sys.exit(0)",
    "exercise-killed": "import os; os._exit(0)",
    "exercise-after": "def after(x):\n    return x ** 0.5",
}


def test_checks_are_the_books_own_and_one_answer_spoils_no_other(root):
    file = hand_in(root, "02_ada.ipynb", ANSWERS, without_removed)
    name, found = marks.marks(file, marks.chapters(root))
    assert name == "02_small" and list(found) == list(SLUGS)
    assert found["done"] == found["after"] == "right"
    assert found["wrong"] == "wrong: AssertionError: not the root", "the student's check does not count"
    assert found["untouched"] == "not done" and found["removed"].startswith("missing")
    assert found["early"] == "wrong: SystemExit: 0" and found["killed"] == "wrong: Python ended with 0"


def test_one_process_runs_all_exercises_and_goes_on_behind_a_slow_one(tmp_path):
    log = tmp_path / "started"
    imports = f"import os; open({str(log)!r}, 'a').write(f'{{os.getpid()}} ')"
    check = "assert found == 1"
    exercises = {
        "first": ["found = 1", check],
        "second": ["found = 2", check],
        "endless": ["while True: pass", check],
        "last": ["found = 1; import torch; torch.set_default_dtype(torch.float64)", check],
        "fresh": ["import torch; found = torch.ones(1).element_size() // 4", check],
    }
    begin = time.perf_counter()
    found = marks.verdicts(imports, exercises, seconds=10)
    assert time.perf_counter() - begin < 200
    assert found["endless"] == "too slow: not done after 10 seconds"
    assert found["second"].startswith("wrong: AssertionError")
    assert found["first"] == found["last"] == found["fresh"] == "right"
    assert len(set(log.read_text().split())) == 2, "one Python before the slow exercise, one after it"


def test_what_keeps_the_imports_from_running_is_said():
    with pytest.raises(ValueError, match="imports failed.*no_such_module"):
        marks.verdicts("import no_such_module", {"a": ["", ""]}, seconds=10)


@pytest.mark.parametrize(
    ("given", "file", "student", "number"),
    [
        # Canvas, as its own source writes them: late, handed in again, anonymous
        (None, "lovelaceada_12345_67890_03_whitening.ipynb", "lovelaceada", "12345"),
        (None, "lovelaceada_LATE_12345_67890_03_whitening-1.ipynb", "lovelaceada", "12345"),
        (None, "anon_aB3xY_67890_03_whitening.ipynb", "anon_aB3xY", "anon_aB3xY"),
        ("in", "in/LATE_anon_aB3xY_67890_solved (2).ipynb", "anon_aB3xY", "anon_aB3xY"),
        # Moodle, in folders (the older ones end in _) or not
        ("in", "in/Ada Lovelace_1234_assignsubmission_file_/03.ipynb", "Ada Lovelace", "1234"),
        ("in", "in/Ada Lovelace_1234_assignsubmission_file/a/03.ipynb", "Ada Lovelace", "1234"),
        (None, "Ada Lovelace_1234_assignsubmission_file_03_whitening.ipynb", "Ada Lovelace", "1234"),
        ("in", "in/Participant_77_assignsubmission_file_/x.ipynb", "Participant", "77"),
        (None, "in/Ada Lovelace_1234_assignsubmission_file_/03.ipynb", "Ada Lovelace", "1234"),
        # Blackboard
        (None, "Homework 1_ada_attempt_2026-11-01-10-00-00_03_whitening.ipynb", "ada", ""),
        (None, "Homework 1_j_doe_attempt_2026-11-01-10-00-00_03_whitening.ipynb", "j_doe", ""),
        (None, "Homework 1_a_doe_attempt_2026-11-01-10-00-00_my_attempt_.ipynb", "a_doe", ""),
        # by hand: a folder for each student, or a file
        ("in", "in/ada/03_whitening.ipynb", "ada", ""),
        ("in", "in/03_ada.ipynb", "03_ada", ""),
        (None, "in/03_ada.ipynb", "03_ada", ""),
    ],
)
def test_who_handed_in_a_file(given, file, student, number):
    assert marks.submission(Path(file), Path(given or file))[1:] == (student, number)


def test_the_chapter_is_told_from_metadata_and_otherwise_from_cells(root):
    book = marks.chapters(root)

    def named(notebook):
        notebook.metadata["wmse"] = {"chapter": "03_next"}

    assert marks.chapter_of(hand_in(root, "a.ipynb", {}, named), book).name == "03_next"
    for name in book:
        assert marks.chapter_of(hand_in(root, "b.ipynb", {}, name=name), book).name == name
    nbformat.write(new_notebook(cells=[new_code_cell("1 + 1")]), root / "other.ipynb")
    with pytest.raises(ValueError, match="no exercise or check of a chapter"):
        marks.chapter_of(root / "other.ipynb", book)
    (root / "broken.ipynb").write_text("{}")
    with pytest.raises(ValueError, match="no notebook|[Nn]otebook"):
        marks.chapter_of(root / "broken.ipynb", book)


def test_archives_are_named_with_what_to_do_and_leave_no_student_out(root, capsys):
    (root / "in").mkdir()
    whole, own = root / "all.zip", root / "in" / "gauss_34_56_solved.zip"
    for file in (whole, own):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("02_ada.ipynb", "{}")
    table = root / "marks.csv"
    assert marks.main([str(whole), str(root / "in"), "--csv", str(table)], root) == 1
    assert capsys.readouterr().out.count("zip archive: unpack it, and mark the folder") == 2
    assert 'gauss,34,,,,"not marked: this is a zip archive' in table.read_text("utf-8")
    (root / "picture.ipynb").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match="no notebook: it holds no text"):
        marks.code_cells(root / "picture.ipynb")


@pytest.mark.parametrize("kept", ["in the metadata", "not at all"])
def test_answers_are_found_although_an_editor_has_moved_or_dropped_the_ids(root, kept):
    def as_colab(notebook):
        notebook.nbformat_minor = 0
        for cell in notebook.cells:
            name = cell.pop("id")
            if kept == "in the metadata":
                cell.metadata["id"] = name

    file = hand_in(root, "a.ipynb", {"exercise-done": "def done(x):\n    return 2"}, as_colab)
    book = marks.chapters(root)
    assert marks.chapter_of(file, book).name == "02_small"
    found = marks.answers(marks.code_cells(file), book["02_small"])
    assert found["done"] == "def done(x):\n    return 2" and set(found) == set(SLUGS)


def test_the_command_marks_folders_writes_a_table_and_names_what_it_cannot_read(root, capsys):
    answer = {"exercise-done": "def done(x):\n    return 2"}
    hand_in(root, "Ada Lovelace_12_assignsubmission_file_/any name.ipynb", answer, name="03_next")
    hand_in(root, "gauss_34_56_03_next.ipynb", {}, name="03_next")
    hand_in(root, "gauss/.ipynb_checkpoints/03_next.ipynb", {}, name="03_next")
    (root / "in" / "broken_1_2_x.ipynb").write_text("not JSON")
    table = root / "marks.csv"
    arguments = [str(root / "in"), "--csv", str(table), "--jobs", "2"]
    assert marks.main(arguments, root) == 1, "one file could not be read"
    printed = capsys.readouterr().out
    assert "Ada Lovelace, 03_next: 1 of 2 right" in printed and "gauss, 03_next: 0 of 2 right" in printed
    assert "broken_1_2_x.ipynb: " in printed and "checkpoints" not in printed
    with table.open(encoding="utf-8", newline="") as opened:
        rows = {row["student"]: row for row in csv.DictReader(opened)}
    assert set(rows) == {"Ada Lovelace", "gauss", "broken"} and rows["gauss"]["id"] == "34"
    assert rows["Ada Lovelace"]["right"] == "1" and rows["Ada Lovelace"]["marks"] == "more: not done"
    assert rows["broken"]["marks"].startswith("not marked: ") and not rows["broken"]["right"]
    for wrong in ([], ["--jobs", "0", str(root)], [str(root / "notebooks" / "nothing")]):
        if wrong[-1:] == [str(root / "notebooks" / "nothing")]:
            (root / "notebooks" / "nothing").mkdir()
        with pytest.raises(SystemExit):
            marks.main(wrong, root)


def test_solutions_of_a_chapter_are_right():
    """The chapters' own imports run; `test_notebooks.py` runs every solution."""
    chosen = marks.chapters(ROOT)["03_whitening"]
    cells = nbformat.read(ROOT / "notebooks" / "03_whitening.ipynb", as_version=4).cells
    solutions = {cell.id.removeprefix("solution-"): cell.source for cell in cells if cell.cell_type == "code"}
    exercises = {name: [solutions[name], chosen.checks[name]] for name in chosen.stubs}
    assert set(marks.verdicts(chosen.imports, exercises, seconds=100).values()) == {"right"}
