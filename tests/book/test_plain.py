"""The plain notebooks hold no MyST, the code of the sources, and the numbers and links of the site."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from sphinx.util.nodes import _make_id

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book" / "tools"))
import plain  # noqa: E402
import student  # noqa: E402

CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BOOK = plain.read_book(ROOT)
EDITIONS = ("colab", "download", "student")
LEFT_OVER = re.compile(
    r"""\{[\w:.-]+\}`        # a role
      | ^\s*:::              # a fence, open or closed
      | ^\s*[`~]{3,}\{       # a directive in a fence of backticks
      | ^\s*\([\w:-]+\)=     # a label
      | \$\$[ \t]*\([\w:-]+\)  # an equation's label
      | ^\s*:\w+:            # an option
      | \]\(\.\./            # a link out of the folder""",
    re.MULTILINE | re.VERBOSE,
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FIGURE = '<svg xmlns="http://www.w3.org/2000/svg" width="9pt" height="9pt"></svg>'

each_chapter = pytest.mark.parametrize("name", [path.name for path in CHAPTERS])
each_edition = pytest.mark.parametrize("edition", EDITIONS)


def read(path):
    return nbformat.read(path, as_version=4)


def tags(cell):
    return cell.metadata.get("tags", [])


def as_executed(path):
    """A chapter as the build leaves it, with invented outputs: the download holds outputs, too."""
    notebook = read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = 1
            cell.outputs = [new_output("stream", text="printed\n")]
            if "figure" in tags(cell):
                cell.outputs = [new_output("display_data", {"image/svg+xml": FIGURE})]
            elif "../_static/" in cell.source:
                cell.outputs = [new_output("display_data", {"text/html": '<script src="../_static/a.js">'})]
    table = {"text/markdown": "| [run](../book/records/index.html) | {cite:p}`ermolov2021` |"}
    notebook.cells[-2:-2] = [new_code_cell("1", id="table", outputs=[new_output("display_data", table)])]
    injected = {"tags": ["injected-parameters", "remove-cell"]}
    notebook.cells.insert(2, new_code_cell('out = "/here"', id="injected-parameters", metadata=injected))
    notebook.metadata["build"] = {"seconds": 1}
    return notebook


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of each edition's notebooks."""
    place = tmp_path_factory.mktemp("editions")
    plain.write(place / "colab")
    download = place / "site" / "_sources" / "notebooks"
    download.mkdir(parents=True)
    for path in CHAPTERS:
        nbformat.write(as_executed(path), download / path.name)
    plain.replace_downloads(place / "site")
    student.write(ROOT, place / "student")
    return {
        "colab": place / "colab",
        "download": download,
        "student": place / "student" / "notebooks",
    }


def texts(notebook):
    """What is shown as Markdown, listings left out: text and outputs."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            yield re.sub(r"^```\w*\n.*?^```$", "", cell.source, flags=re.DOTALL | re.MULTILINE)
        for output in cell.get("outputs", []):
            yield output.get("data", {}).get("text/markdown", "")


@each_edition
def test_every_chapter_is_there(folders, edition):
    assert [path.name for path in sorted(folders[edition].iterdir())] == [path.name for path in CHAPTERS]
    for path in folders[edition].iterdir():
        nbformat.validate(read(path))


@each_edition
@each_chapter
def test_no_role_fence_or_label_is_left(folders, edition, name):
    found = [match[0] for text in texts(read(folders[edition] / name)) for match in LEFT_OVER.finditer(text)]
    assert not found


def test_the_sources_hold_what_is_looked_for():
    """So the test above can fail."""
    found = {
        match[0].strip()
        for path in CHAPTERS
        for text in texts(read(path))
        for match in LEFT_OVER.finditer(text)
    }
    assert {"{cite:p}`", "{term}`", "{eq}`", ":::", "(sec-samples)=", "$$ (eq-cca)", "](../"} <= found


@each_edition
@each_chapter
def test_code_is_unchanged_but_for_the_line_that_folds(folders, edition, name):
    def code(notebook):
        cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.id != "table"]
        left_out = {"injected-parameters"} | ({"solution"} if edition == "student" else set())
        return [cell for cell in cells if not left_out & set(tags(cell))]

    source, copy = code(read(ROOT / "notebooks" / name)), code(read(folders[edition] / name))
    setup, imports = (next(cell for cell in source if tag in tags(cell)) for tag in ("setup", "imports"))
    expected = {cell.id: cell.source for cell in source if cell is not imports}
    expected[setup.id] = f"{setup.source}\n\n{imports.source}"
    assert [cell.id for cell in copy] == list(expected)
    for cell in copy:
        folded = bool({"hide-input", "hide-cell"} & set(tags(cell)))
        first, _, rest = cell.source.partition("\n")
        assert (rest if folded else cell.source) == expected[cell.id]
        assert folded == (cell.metadata.get("cellView") == "form") == first.startswith("# @title ")
        assert folded == bool(cell.metadata.get("jupyter", {}).get("source_hidden"))
    assert copy[1].source.startswith("# @title Setup\n"), "after the parameters, one bar"
    assert not [cell for cell in copy[2:] if {"setup", "imports"} & set(tags(cell))]


@each_edition
@each_chapter
def test_links_lead_somewhere(folders, edition, name):
    """Within the folder to a file and an anchor; on the site to a page that the book has."""
    pages = {f"{path.relative_to(ROOT).with_suffix('.html')}" for path in (ROOT / "book").glob("*.md")}
    pages |= {f"notebooks/{path.stem}.html" for path in CHAPTERS} | {"book/records/index.html"}
    terms = set(BOOK.terms.values())
    for text in texts(read(folders[edition] / name)):
        for target in LINK.findall(text):
            path, _, anchor = target.partition("#")
            if path.startswith(BOOK.site):
                page = path.removeprefix(BOOK.site)
                assert page in pages or (ROOT / "book" / page).is_file(), target
                assert not anchor.startswith("term-") or anchor in terms
            elif not path.startswith("https://"):
                there = folders[edition] / (path or name)
                assert there.is_file(), target
                assert not anchor or f'<a id="{anchor}"' in "".join(texts(read(there))), target


def test_terms_are_named_as_sphinx_names_them():
    glossary = (ROOT / "book" / "glossary.md").read_text()
    for term in ("Cholesky factor", "k-NN", "standard deviation of the embeddings"):
        assert f"\n{term}\n" in glossary
        assert BOOK.terms[term.lower()] == f"term-{_make_id(term)}"


@each_chapter
def test_equations_and_figures_count_within_the_chapter(folders, name):
    text = "\n".join(texts(read(folders["colab"] / name)))
    number = int(name[:2])
    tagged = re.findall(r"\\tag\{([\d.]+)\}", text)
    assert tagged == [f"{number}.{place}" for place in range(1, len(tagged) + 1)]
    captions = re.findall(r"^\*\*Figure ([\d.]+)\.\*\*", text, re.MULTILINE)
    assert captions == [f"{number}.{place}" for place in range(1, len(captions) + 1)]
    labels = re.findall(r"\$\$ \(eq-[\w-]+\)", "\n".join(texts(read(ROOT / "notebooks" / name))))
    assert len(labels) == len(tagged)


@each_chapter
def test_nbconvert_renders_it(folders, name):
    page, _ = HTMLExporter().from_filename(str(folders["download"] / name))
    body = page[page.index("<body") :]
    shown = re.sub(r"<(script|style|pre).*?</\1>", "", body, flags=re.DOTALL)
    assert not re.search(r"\{[\w:]+\}<code>|:::", shown)
    source = "\n".join(texts(read(ROOT / "notebooks" / name)))
    folded = source.count("{dropdown}") + source.count(":class: dropdown")
    assert shown.count("<details>") == shown.count("</details>") == folded


def test_outputs_of_the_download(folders):
    notebook = read(folders["download"] / "03_whitening.ipynb")
    cells = {cell.id: cell for cell in notebook.cells}
    assert "injected-parameters" not in cells and "build" not in notebook.metadata
    table = cells["table"].outputs[0].data["text/markdown"]
    assert f"[run]({BOOK.site}book/records/index.html)" in table and "Ermolov et al., 2021" in table
    assert not cells["explorer"].outputs and BOOK.site in cells["site-explorer"].source
    assert cells["setup"].outputs and cells["fig-explorer"].outputs


def convert(text, chapter="03_whitening"):
    return plain.plain_text(text, chapter, BOOK)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{cite:p}`chen2020simclr`", "([Chen et al., 2020](https://arxiv.org/abs/2002.05709))"),
        ("{cite:t}`welch1947` and", "[Welch (1947)](https://doi.org/10.1093/biomet/34.1-2.28) and"),
        ("{cite:p}`wang2021behaviour`", "([Wang and Liu, 2021](https://arxiv.org/abs/2012.09740))"),
        ("{cite:p}`chen2020simclr,welch1947`", "2002.05709); [Welch, 1947]("),
        ("{cite:p}`ledoit2004`", "S0047-259X%2803%2900096-4))"),
        ("{cite:p}`dacosta2022sololearn`", f"[da Costa et al., 2022]({BOOK.site}book/references.html)"),
        ("{term}`views <view>`", f"[views]({BOOK.site}book/glossary.html#term-view)"),
        ("{eq}`eq-covariance`", "(3.1)"),
        ("{eq}`eq-mse-alone`", "[(2.1)](02_collapse.ipynb)"),
        ("{numref}`fig-whitening-family`", "[Figure 3.1](#fig-whitening-family)"),
        ("{numref}`picture %s <fig-first-knn>`", "](01_first_run.ipynb#fig-first-knn)"),
        ("{ref}`below <sec-samples>`", "[below](#sec-samples)"),
        ("{ref}`sec-samples`", "[How many samples does a slice need?](#sec-samples)"),
        ("{doc}`the how-to <../book/howto>`", f"[the how-to]({BOOK.site}book/howto.html)"),
        ("{math}`c^2`", "$c^2$"),
        ("`{eq}` and `` {eq}`x` `` stay", "`{eq}` and `` {eq}`x` `` stay"),
        ("```md\n{eq}`x`\n```", "```md\n{eq}`x`\n```"),
        ("$$ a $$ (eq-covariance)", r"$$ a \tag{3.1} $$"),
        ("$$\na\n$$ (eq-covariance)", "$$\na\n\\tag{3.1}\n$$"),
        ("(sec-samples)=\n## Samples", '<a id="sec-samples" name="sec-samples"></a>\n\n## Samples'),
        ("[p](../book/speed.md#log)", f"[p]({BOOK.site}book/speed.html#log)"),
        ("![p](../book/_static/logo.svg)", f"![p]({BOOK.site}_static/logo.svg)"),
        (":::{note}\nOne\n\ntwo\n:::", "> **Note**\n>\n> One\n>\n> two"),
        ("```{exercise} By $k$\nDo\n```", "> **By $k$**\n>\n> Do"),
        (":::{tip}\n$$\na\nb\n$$\n:::", "> $$ a b $$"),
        (":::{dropdown} Hint\n{eq}`eq-covariance`\n:::", "<summary>Hint</summary>\n\n(3.1)\n\n</details>"),
        (":::{admonition} Hint\n:class: dropdown\nx\n:::", "<details>\n<summary>Hint</summary>\n\nx\n\n</"),
        ("::::{note}\n:::{tip}\nx\n:::\ny\n::::", "> **Note**\n>\n> > **Tip**\n> >\n> > x\n>\n> y"),
    ],
)
def test_each_construct(source, expected):
    assert expected in convert(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{glue:text}`x:s`", "unknown role"),
        (":::{video} x\n:::", "unknown directive 'video'"),
        (":::{note}\nx", "not closed"),
        ("{cite:p}`nobody1900`", "no reference 'nobody1900'"),
        ("{term}`nothing`", "no term 'nothing'"),
        ("{eq}`eq-nothing`", "no equation"),
        ("{numref}`fig-nothing`", "no figure"),
        ("{ref}`sec-nothing`", "no section"),
    ],
)
def test_what_is_unknown_is_refused_by_name(source, message):
    with pytest.raises(ValueError, match=message):
        convert(source)
    cells = [new_markdown_cell("# T", id="title"), new_markdown_cell(source, id="broken")]
    with pytest.raises(ValueError, match=r"03_whitening\.ipynb, cell broken"):
        plain.plain_notebook(new_notebook(cells=cells), "03_whitening", BOOK)


def test_the_notebook_given_stays_as_it_is():
    notebook = read(CHAPTERS[0])
    before = nbformat.writes(notebook)
    edition = plain.plain_notebook(notebook, CHAPTERS[0].stem, BOOK)
    assert nbformat.writes(notebook) == before
    assert edition.cells[0].source.startswith("# 1. A first run\n\n*Chapter 1 of [")
