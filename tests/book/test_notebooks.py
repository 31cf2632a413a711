"""The chapters keep the book's conventions; every exercise's check tells a stub from a solution."""

import ast
import re
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CLOSING = ["## Summary", "## What you should see", "## Exercises", "## Next step", "## Records used"]
PARAMETERS = ["profile", "seed", "data", "out"]
DRAWS = re.compile(
    r"\b(plt\.(?!rc|style|close)\w+|sns\.(?!set_|color_)\w+|figures\.(?!(?:use_style|load_umap)\b)[a-z]\w*|seeds_by_setting)\("
)
TORCH_INSTALL = re.compile(r"pip\s+install[^\n]*[\s\"']torch")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def draws(cell):
    """Whether a code cell draws when it is run; a cell that only defines functions does not."""
    if not DRAWS.search(cell.source):
        return False
    return not all(isinstance(statement, ast.FunctionDef) for statement in ast.parse(cell.source).body)


def tags(cell):
    return cell.metadata.get("tags", [])


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in tags(cell)]


def exercises():
    """(notebook, slug of the exercise) for each stub."""
    return [
        pytest.param(path, cell.id.removeprefix("exercise-"), id=f"{path.stem}-{cell.id}")
        for path in NOTEBOOKS
        for cell in tagged(read(path), "exercise")
    ]


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_the_contents_list_exactly_the_notebooks():
    listed = re.findall(r"file:\s*notebooks/(\S+)", (ROOT / "_toc.yml").read_text())
    assert listed == [path.stem for path in NOTEBOOKS]
    assert yaml.safe_load((ROOT / "_toc.yml").read_text())["root"] == "book/preface"


@each_notebook
def test_is_valid_and_stored_without_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5), "cell ids need format 4.5"
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None, cell.id
        assert not {"papermill", "execution"} & set(cell.metadata), cell.id


@each_notebook
def test_ids_are_there_unique_and_stable(path):
    ids = [cell.get("id") for cell in nbformat.read(path, as_version=nbformat.NO_CONVERT).cells]
    assert all(ids), "every cell has an id"
    assert len(set(ids)) == len(ids)
    assert not [name for name in ids if name.isdigit()], "numbers change when a cell is added"


@each_notebook
def test_cells_stand_in_the_order_of_the_book(path):
    notebook = read(path)
    title, *opening = notebook.cells[:4]
    assert title.cell_type == "markdown" and title.source.startswith("# ")
    assert "**Goals.**" in title.source and "**Time and memory.**" in title.source
    for cell, tag in zip(opening, ("parameters", "setup", "imports"), strict=True):
        assert cell.cell_type == "code" and tag in tags(cell), f"{cell.id}: expected the cell tagged {tag}"
        assert tagged(notebook, tag) == [cell]

    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    headings = [line for text in texts for line in text.splitlines() if re.match(r"#{1,2} ", line)]
    assert headings[-5:] == CLOSING
    assert sum(heading.startswith("# ") for heading in headings) == 1
    after = texts[texts.index(next(text for text in texts if text.startswith("## Next step")))]
    assert "### Further reading" in after and "{cite:" in after


@each_notebook
def test_parameters_are_typed_and_explained(path):
    (cell,) = tagged(read(path), "parameters")
    statements = ast.parse(cell.source).body
    assert all(isinstance(statement, ast.AnnAssign) for statement in statements), "only typed assignments"
    assert [statement.target.id for statement in statements][:4] == PARAMETERS
    for parameter in papermill.inspect_notebook(str(path)).values():
        assert parameter["help"].strip(), f"{parameter['name']} has no comment"
        assert parameter["inferred_type_name"] not in ("", "None"), parameter["name"]
    assert statements[0].value.value == "smoke", "a reader without a GPU gets what the site shows"


@each_notebook
def test_setup_installs_on_colab_only_and_leaves_torch_alone(path):
    notebook = read(path)
    (setup,) = tagged(notebook, "setup")
    guard = re.search(r'^if "google\.colab" in sys\.modules:\n((?:[ \t]+.*\n)+)', setup.source, re.MULTILINE)
    assert guard and "pip install" in guard[1]
    assert setup.source.count("pip install") == guard[1].count("pip install"), "every install is guarded"
    assert not TORCH_INSTALL.search(setup.source)
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell is not setup:
            assert not re.search(r"^\s*[%!]", cell.source, re.MULTILINE), f"{cell.id}: magics go into setup"


@each_notebook
@pytest.mark.parametrize(
    ("parameter", "value", "words"),
    [
        ("profile", "Smoke", "there are: smoke, colab, paper"),
        ("seed", 1e3, "seed is 1000.0; give a whole number from 0 to 4294967295 .*, such as 1000"),
        ("seed", 2**32, "give a whole number from 0"),
        ("data", "file", "file is no folder"),
        ("out", "file/runs", "file is no folder"),
        ("out", "", "the path is empty"),
    ],
)
def test_setup_refuses_parameters_that_cannot_be_meant(path, parameter, value, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WMSE_DATA", raising=False)
    (tmp_path / "file").touch()
    notebook, given = read(path), {}
    (parameters,), (setup,) = tagged(notebook, "parameters"), tagged(notebook, "setup")
    exec(parameters.source, given)
    given |= {parameter: value, "__name__": "__main__"}
    with pytest.raises((ValueError, OSError), match=words):
        exec(TransformerManager().transform_cell(setup.source), given)
    assert "device" not in given and [name.name for name in tmp_path.iterdir()] == ["file"]


def test_setup_expands_the_parameters_that_are_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = {"profile": "paper", "seed": 3, "data": "$HOME/sets", "out": "~/runs"}
    exec(TransformerManager().transform_cell(tagged(read(NOTEBOOKS[0]), "setup")[0].source), given)
    assert (given["data"], given["out"]) == (str(tmp_path / "sets"), str(tmp_path / "runs"))


def test_the_pattern_for_torch_finds_what_it_should():
    assert TORCH_INSTALL.search('%pip install --quiet "torch>=2.6"')
    assert TORCH_INSTALL.search("!pip install torch")
    assert not TORCH_INSTALL.search('%pip install --quiet "git+https://example.org/a/b"\n\nimport torch')


@each_notebook
def test_figures_have_words(path):
    notebook = read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code" and draws(cell) and "exercise" not in tags(cell):
            assert {"figure", "solution", "check"} & set(tags(cell)), f"{cell.id} draws: tag it `figure`"
    for cell in tagged(notebook, "figure"):
        assert "hide-input" in tags(cell), f"{cell.id}: code that draws is folded"
        words = cell.metadata["mystnb"]
        assert len(words["image"]["alt"]) >= 20, f"{cell.id}: say what is to be seen"
        assert words["figure"]["caption"].strip()
        assert words["figure"]["name"].startswith("fig-")


def test_names_of_figures_are_unique_in_the_book():
    cells = [cell for path in NOTEBOOKS for cell in tagged(read(path), "figure")]
    names = [cell.metadata["mystnb"]["figure"]["name"] for cell in cells]
    assert len(names) == len(set(names))


@each_notebook
def test_exercises_come_as_stub_solution_check(path):
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    stubs = [number for number, cell in enumerate(code) if "exercise" in tags(cell)]
    assert len(stubs) >= 3
    for number in stubs:
        stub, solution, check = code[number : number + 3]
        slug = stub.id.removeprefix("exercise-")
        assert [stub.id, solution.id, check.id] == [f"exercise-{slug}", f"solution-{slug}", f"check-{slug}"]
        assert {"solution", "hide-cell"} <= set(tags(solution)) and "check" in tags(check)
    for tag in ("solution", "check"):  # a solution in words may stand beside the one in code
        assert len([cell for cell in tagged(notebook, tag) if cell.cell_type == "code"]) == len(stubs)


@pytest.fixture(scope="module")
def imports():
    """A function that returns a fresh namespace in which a notebook's `imports` cell has run."""

    def run(path):
        (cell,) = tagged(read(path), "imports")
        namespace = {"__name__": "__main__"}
        exec(cell.source, namespace)
        return namespace

    return run


@pytest.fixture(autouse=True)
def no_windows(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].switch_backend("Agg")


@pytest.mark.parametrize(("path", "slug"), exercises())
def test_check_fails_on_the_stub_and_passes_on_the_solution(path, slug, imports):
    cells = {cell.id: cell.source for cell in read(path).cells}
    stub, solution, check = (cells[f"{kind}-{slug}"] for kind in ("exercise", "solution", "check"))

    namespace = imports(path)
    exec(stub, namespace)
    with pytest.raises((NotImplementedError, AssertionError)):
        exec(check, namespace)

    namespace = imports(path)
    exec(stub, namespace)
    exec(solution, namespace)
    exec(check, namespace)
