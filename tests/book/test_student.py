"""The student's edition holds stubs and checks as they are tested in the chapters, and no solution."""

from pathlib import Path

import nbformat
import pytest
import student
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_chapter = pytest.mark.parametrize("name", [path.name for path in CHAPTERS])


@pytest.fixture(scope="module")
def edition(tmp_path_factory):
    return student.write(ROOT, tmp_path_factory.mktemp("student") / "edition")


def read(path):
    return nbformat.read(path, as_version=4)


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def test_every_chapter_is_there_with_what_it_reads(edition):
    assert [path.name for path in sorted((edition / "notebooks").iterdir())] == [p.name for p in CHAPTERS]
    records = {path.relative_to(ROOT / "results") for path in (ROOT / "results").rglob("record.json")}
    assert records == {p.relative_to(edition / "results") for p in (edition / "results").rglob("record.json")}
    readme = (edition / "README.md").read_text()
    assert all(path.stem in readme for path in CHAPTERS) and "{" not in readme


@each_chapter
def test_cells_are_the_tested_ones_in_their_order(edition, name):
    """`test_notebooks.py` runs stub, solution and check: the same text here behaves the same.

    `test_plain.py` looks at setup, imports and text, which differ.
    """
    source, copy = read(ROOT / "notebooks" / name), read(edition / "notebooks" / name)
    nbformat.validate(copy)
    assert len({cell.id for cell in copy.cells}) == len(copy.cells)
    kept = [
        cell.id for cell in source.cells if not {"solution", "imports"} & set(cell.metadata.get("tags", []))
    ]
    assert [cell.id for cell in copy.cells if not cell.id.startswith(("caption-", "site-"))] == kept
    before = {cell.id: cell for cell in source.cells}
    for after in copy.cells:
        if after.cell_type == "code":
            assert not after.outputs and after.execution_count is None
        else:
            assert "](../book/" not in after.source, f"{after.id} links to a page that is not there"
        if {"parameters", "exercise", "check"} & set(after.metadata.get("tags", [])):
            assert after.metadata == before[after.id].metadata and after.source == before[after.id].source
    for tag in ("parameters", "setup", "imports"):
        assert len(tagged(copy, tag)) == 1
    stubs, checks = tagged(copy, "exercise"), tagged(copy, "check")
    assert stubs and [c.id.removeprefix("check-") for c in checks] == [
        s.id.removeprefix("exercise-") for s in stubs
    ]


@each_chapter
def test_no_solution_is_left(edition, name):
    source = read(ROOT / "notebooks" / name)
    stubs = {
        cell.id.removeprefix("exercise-"): cell.source.splitlines() for cell in tagged(source, "exercise")
    }
    text = "\n".join(cell.source for cell in read(edition / "notebooks" / name).cells)
    raw = (edition / "notebooks" / name).read_text()
    assert tagged(source, "solution")
    for cell in tagged(source, "solution"):
        stub = stubs[cell.id.removeprefix("solution-")] if cell.cell_type == "code" else []
        own = [x for x in cell.source.splitlines() if x not in stub]
        assert own, f"{cell.id} adds nothing to its stub"
        assert cell.source not in text and "\n".join(own) not in text and f'"{cell.id}"' not in raw


def test_outputs_and_build_marks_go_and_text_stays():
    cells = [
        new_markdown_cell("See [2](02_b.ipynb).", id="text"),
        new_code_cell("1 + 1", id="sum", execution_count=3, outputs=[]),
        new_code_cell("secret = 7", id="solution-x", metadata={"tags": ["solution", "hide-cell"]}),
    ]
    cells[1].outputs = [nbformat.v4.new_output("stream", text="2")]
    executed = new_notebook(cells=cells, metadata={"build": {"seconds": 1}})
    edition = student.without_solutions(executed)
    assert [cell.id for cell in edition.cells] == ["text", "sum"] and "build" not in edition.metadata
    assert edition.cells[0].source == "See [2](02_b.ipynb)."
    assert edition.cells[1].outputs == [] and edition.cells[1].execution_count is None
    assert executed.cells[1].outputs and len(executed.cells) == 3, "the source is left alone"


@pytest.fixture
def small(tmp_path):
    """A repository with one chapter of five exercises, and that chapter as handed in."""
    cells = [new_code_cell("import math", id="imports", metadata={"tags": ["imports"]})]
    for slug in ("done", "wrong", "untouched", "early", "removed"):
        stub = f"def {slug}(x):\n    raise NotImplementedError"
        cells.append(new_code_cell(stub, id=f"exercise-{slug}", metadata={"tags": ["exercise"]}))
        check = f"assert {slug}(4) == math.sqrt(4), 'not the root'"
        cells.append(new_code_cell(check, id=f"check-{slug}", metadata={"tags": ["check"]}))
    (tmp_path / "notebooks").mkdir()
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / "02_small.ipynb")
    handed_in = read(tmp_path / "notebooks" / "02_small.ipynb")
    given = {
        "exercise-done": "def done(x):\n    return math.sqrt(x)",
        "exercise-wrong": "def wrong(x):\n    return x",
        "check-wrong": "print('I say it is right')",
        "exercise-early": "import sys; sys.exit(0)",
    }
    handed_in.cells = [cell for cell in handed_in.cells if cell.id != "exercise-removed"]
    for cell in handed_in.cells:
        cell.source = given.get(cell.id, cell.source)
    nbformat.write(handed_in, tmp_path / "02_ada.ipynb")
    return tmp_path


def test_marks_come_from_the_books_own_checks(small):
    found = student.marks(small / "02_ada.ipynb", small)
    assert found["done"] == "right"
    assert found["wrong"] == "wrong: AssertionError: not the root", "the student's check does not count"
    assert found["untouched"] == "not done"
    assert found["early"].startswith("wrong") and found["removed"].startswith("missing")
    assert student.verdict(["while True: pass"], seconds=1).startswith("too slow")
    with pytest.raises(ValueError, match="number of a chapter"):
        student.marks(small / "ada.ipynb", small)


def test_the_command_marks_every_file_and_says_which_it_cannot_read(tmp_path, capsys):
    """A chapter handed in untouched has no exercise done. A file that is not there stops no other."""
    handed_in = tmp_path / CHAPTERS[0].name
    handed_in.write_bytes(CHAPTERS[0].read_bytes())
    count = len(tagged(read(handed_in), "exercise"))
    assert student.main(["mark", str(handed_in)]) == 0
    assert student.main(["mark", str(tmp_path / "01_gone.ipynb"), str(handed_in)]) == 1
    printed = capsys.readouterr().out
    assert printed.count(f"0 of {count} right") == 2 and printed.count(": not done") == 2 * count
    assert "01_gone.ipynb: " in printed
    with pytest.raises(SystemExit):
        student.main(["mark"])
