"""The student's edition holds stubs and checks as they are tested in the chapters, and no solution."""

import re
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import repository
import student
from IPython.core.inputtransformer2 import TransformerManager
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


def test_each_notebook_names_its_chapter(edition):
    for path in (edition / "notebooks").iterdir():
        assert read(path).metadata["wmse"] == {"chapter": path.stem}


def test_an_edition_without_a_published_repository_installs_from_a_wheel_beside_it(tmp_path):
    """What the wheel holds is tested by installing it where no `wmse` is."""
    site = "https://course.example/wmse"
    folder = student.write(ROOT, tmp_path / "edition", wheel=True, site=site)
    (wheel,) = (folder / "notebooks").glob("wmse-*.whl")
    assert f'"./notebooks/{wheel.name}[book]"' in (folder / "README.md").read_text()
    for path in sorted((folder / "notebooks").glob("*.ipynb")):
        (setup,) = tagged(read(path), "setup")
        assert "git+" not in setup.source
        assert setup.source.count(f'%pip install --quiet "./{wheel.name}[book]"') == 1
        text = path.read_text("utf-8")
        assert "github.io" not in text and f"{site}/notebooks/{path.stem}.html" in text
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    assert (tmp_path / "installed" / "wmse" / "reproduction" / "paper.csv").exists()

    # The setup cell as IPython runs it, with a stand-in for pip.
    (setup,) = tagged(read(folder / "notebooks" / "03_whitening.ipynb"), "setup")
    begin, end = setup.source.index("from importlib.util"), setup.source.index("import torch")
    code = TransformerManager().transform_cell(setup.source[begin:end])
    asked = []
    shell = SimpleNamespace(run_line_magic=lambda *words: asked.append(words))
    names = {"get_ipython": lambda: shell}
    exec(code, dict(names))
    assert not asked, "wmse is installed here"
    absent = code.replace('find_spec("wmse")', "None")
    with pytest.raises(FileNotFoundError, match=f"Put {re.escape(wheel.name)}"):
        exec(absent, dict(names))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "notebooks")
        exec(absent, dict(names))
    assert asked == [("pip", f'install --quiet "./{wheel.name}[book]"')]


def test_an_address_of_ones_own_counts_as_published(tmp_path):
    (tmp_path / "_config.yml").write_text((ROOT / "_config.yml").read_text("utf-8"))
    placeholder = "https://github.com/" + "/".join(repository.PLACEHOLDER)
    repository.rename(placeholder, tmp_path)
    assert not repository.published(tmp_path)
    repository.rename("https://github.com/me/fork", tmp_path)
    assert repository.published(tmp_path)


def test_the_command_asks_for_a_wheel_as_long_as_the_address_is_the_placeholder(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(student, "write", lambda **how: asked.append(how) or ROOT / "_build" / "student")
    for name, words, expected in (
        (repository.PLACEHOLDER, [], True),
        (("me", "fork"), [], False),
        (("me", "fork"), ["--wheel"], True),
    ):
        monkeypatch.setattr(student, "published", lambda root, name=name: name != repository.PLACEHOLDER)
        assert student.main(words) == 0
        assert asked[-1] == {"wheel": expected, "site": None}


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


def test_the_edition_does_not_speak_of_folded_solutions(edition):
    texts = [
        cell.source
        for path in edition.rglob("*.ipynb")
        for cell in read(path).cells
        if cell.cell_type == "markdown"
    ]
    assert sum("Fill in the stub, then run" in text for text in texts) >= 4
    assert not [text for text in texts if "folded solution" in text or "unfold the solution" in text]
