"""The lectures name cells that exist, stay short, and show what the chapters have drawn and printed."""

import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
import slides
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "book" / "slides.yml"
LECTURES = slides.lectures(FILE)
WORKS = slides.plain.read_works(ROOT / "book" / "references.bib", "")
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="{}pt" height="100pt" viewBox="0 0 9 9"></svg>'
each_slide = pytest.mark.parametrize(
    "slide", [pytest.param(slide, id=slide["title"]) for lecture in LECTURES for slide in lecture["slides"]]
)


def source(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


class Slides(HTMLParser):
    """Of each slide: text of its heading, the pictures' alt texts, and all that it loads or links to."""

    def __init__(self, text):
        super().__init__()
        self.slides, self.heading = [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "section":
            self.slides.append({"id": attributes["id"], "heading": "", "alts": [], "text": ""})
        elif tag == "img":
            assert attributes["src"].startswith("data:image/svg+xml;base64,")
            self.slides[-1]["alts"].append(attributes["alt"])
        self.heading = tag in ("h1", "h2") or (self.heading and tag in ("em", "strong", "code"))

    def handle_endtag(self, tag):
        if tag in ("h1", "h2"):
            self.heading = False

    def handle_data(self, data):
        if self.slides:
            self.slides[-1]["text"] += data
            if self.heading:
                self.slides[-1]["heading"] += data


def test_there_are_three_lectures_of_an_hour():
    assert len(LECTURES) == 3
    for lecture in LECTURES:
        assert 12 <= len(lecture["slides"]) + 1 <= 16, "with the first"
        titles = [slide["title"] for slide in lecture["slides"]]
        assert len(set(titles)) == len(titles)


@each_slide
def test_a_slide_is_no_page_of_prose(slide):
    lines = slide.get("lines", [])
    assert len(lines) <= 4 and all(len(line) <= 120 for line in lines)
    assert sum(map(len, lines)) <= 330 and len(slide["title"]) <= 60
    assert 40 <= len(slide.get("notes", "")) <= 200, "each slide has notes, and short ones"
    assert slides.SHOWN & set(slide), "a slide of words alone is half empty"


@each_slide
def test_a_slide_states_no_measured_number(slide):
    """Numbers in words are counts and formulas; a decimal or a percentage would be a result."""
    words = slide["title"], slide.get("notes", ""), slide.get("table", ""), *slide.get("lines", [])
    for text in words:
        assert not re.search(r"\d\.\d|\d\s*(%|percent|points?\b)", text), text


@each_slide
def test_the_cell_is_in_the_chapter_and_is_not_a_solution(slide):
    if "cell" not in slide:
        return
    notebook = source(slide["notebook"])
    (cell,) = [cell for cell in notebook.cells if cell.id == slide["cell"]]
    assert cell.cell_type == "code" and not {"solution", "exercise"} & set(cell.metadata.get("tags", []))
    draws = "figure" in cell.metadata.get("tags", [])
    assert draws or any(call in cell.source for call in ("print(", "shown(", "tell(", "Markdown("))
    assert not (draws and {"between", "only"} & set(slide)), "these are for text"


@each_slide
def test_a_picture_of_digits_is_said_to_be_of_digits(slide):
    """Of the cells that slides show, these train on the book's own images or draw them."""
    of_digits = {
        "01_first_run": ("fig-images", "fig-views", "one-step"),
        "02_collapse": ("fig-watch", "fig-spectrum", "shift"),
        "05_training": ("curves", "fig-scale", "scores"),
        "06_evaluating": ("fig-labels",),
        "07_scattering": ("fig-riddle",),
        "08_baselines": ("train",),
        "10_ablations": ("three-figure",),
    }
    if slide.get("cell") in of_digits.get(slide.get("notebook"), ()):
        assert "digits" in " ".join([slide["title"], *slide["lines"]]).lower()


@pytest.mark.parametrize("lecture", LECTURES, ids=lambda lecture: lecture["title"])
def test_works_that_are_named_are_in_the_bibliography(lecture):
    for slide in lecture["slides"]:
        assert set(slide.get("sources", [])) <= set(WORKS)
    if lecture is LECTURES[2]:
        named = sum("sources" in slide for slide in lecture["slides"])
        assert named >= 12, "what others have found has its source"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The chapters as if executed: a picture from each figure cell, lines that every pattern lets through."""
    folder = tmp_path_factory.mktemp("executed")
    wanted = [slide for lecture in LECTURES for slide in lecture["slides"] if "cell" in slide]
    for name in {slide["notebook"] for slide in wanted}:
        notebook = source(name)
        for number, cell in enumerate(notebook.cells):
            if "figure" in cell.metadata.get("tags", []):
                data = {"image/svg+xml": SVG.format(100 + number), "text/plain": "<Figure>"}
                cell.outputs = [new_output("display_data", data)]
            elif cell.cell_type == "code":
                cell.outputs = [new_output("stream", name="stdout", text=f"of {cell.id} W-MSE 2 & more\n")]
        nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder


def test_each_slide_has_its_title_and_its_figure(executed, tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "excerpt", lambda text, slide: text)
    pages = slides.write(FILE, executed, tmp_path)
    assert [page.name for page in pages] == [f"lecture-{number}.html" for number in (1, 2, 3)]
    figures = 0
    for page, lecture in zip(pages, LECTURES, strict=True):
        text = page.read_text("utf-8")
        first, *rest = Slides(text).slides
        assert first["heading"] and len(rest) == len(lecture["slides"])
        assert "$" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL), (
            "a formula left in Markdown"
        )
        for place, (found, slide) in enumerate(zip(rest, lecture["slides"], strict=True), start=2):
            assert found["id"] == f"slide-{place}"
            assert found["heading"] == re.sub(r"[*`]", "", slide["title"])
            alts = []
            if "cell" in slide:
                (cell,) = [cell for cell in source(slide["notebook"]).cells if cell.id == slide["cell"]]
                if "figure" in cell.metadata.get("tags", []):
                    alts = [cell.metadata["mystnb"]["image"]["alt"]]
                else:
                    assert f"of {cell.id} W-MSE 2 & more" in found["text"]
            if "drawing" in slide:
                svg = (ROOT / "book" / "_static" / slide["drawing"]).read_text("utf-8")
                alts = [re.search(r"<desc[^>]*>(.*?)</desc>", svg)[1]]
            assert found["alts"] == alts
            if "table" in slide:
                assert slide["table"].split("|")[1].strip() in found["text"]
            for key in slide.get("sources", []):
                assert f"{WORKS[key].authors}, {WORKS[key].year}" in found["text"]
            figures += len(alts)
        addresses = re.findall(r'(?:src|href)="([^"]+)"', text)
        assert "../_static/tex-svg.js" in addresses and not [a for a in addresses if "//" in a[:9]]
    assert figures >= 20


@pytest.fixture
def small(tmp_path):
    """Write a chapter and a lecture of one slide; returns what makes the page."""

    def write(slide, outputs=(), **metadata):
        cell = new_code_cell("print(1)", id="cell", metadata=metadata, outputs=list(outputs))
        title = new_markdown_cell("# A chapter", id="title")
        nbformat.write(new_notebook(cells=[title, cell]), tmp_path / "01_a.ipynb")
        lecture = {"title": "T", "question": "Q", "slides": [{"title": "One", **slide}]}
        (tmp_path / "slides.yml").write_text(yaml.safe_dump([lecture]))
        (page,) = slides.write(tmp_path / "slides.yml", tmp_path, tmp_path / "out")
        return page.read_text("utf-8")

    return write


def printed(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def test_formulas_text_and_tables(small):
    text = small({"lines": ["where $a < b$ and **c**"], "formula": "x & y"})
    assert r"\(a &lt; b\)" in text and "<strong>c</strong>" in text and r"\[x &amp; y\]" in text
    here = {"notebook": "01_a", "cell": "cell"}
    text = small(here, [printed("a <1>\nb 2\n"), printed("progress", name="stderr")])
    assert '<pre style="--columns: 5; --rows: 2">a &lt;1&gt;\nb 2</pre>' in text
    assert "progress" not in text and "“A chapter”" in text
    table = "note\n\n| a | b |\n| - | - |\n| [r](../x.html) | 2 |\n"
    text = small(here, [new_output("display_data", {"text/markdown": table})])
    assert "<td>r</td>" in text and "x.html" not in text
    assert '<div class="table" style="--columns: 6; --rows: 4">' in text
    figure = {"tags": ["figure"], "mystnb": {"image": {"alt": 'A "picture"'}, "figure": {"name": "fig-a"}}}
    wide, tall = (
        small(here, [new_output("display_data", {"image/svg+xml": SVG.format(w)})], **figure)
        for w in (300, 100)
    )
    assert 'class="wide"' in wide and 'class="tall"' in tall and 'alt="A &quot;picture&quot;"' in wide
    assert 'href="../notebooks/01_a.html#fig-a"' in wide


def test_tables_and_sources(small, tmp_path):
    (tmp_path / "references.bib").write_text(
        "@misc{one2020, author = {One, Ada and Two, B. and Three, C.}, title = {T}, year = {2020}}"
    )
    text = small({"table": "| a | $k$ |\n| - | - |\n| 1 | 2 |\n", "sources": ["one2020"]})
    assert "<td>1</td>" in text and r"\(k\)" in text
    assert '<a href="../book/references.html">One et al., 2020</a>' in text
    with pytest.raises(ValueError, match="no two2021"):
        small({"lines": ["x"], "sources": ["two2021"]})


def test_excerpts():
    text = "\nhead\nA 1\nB 2\nend\nA 3\n"
    assert slides.excerpt(text, {}) == "head\nA 1\nB 2\nend\nA 3"
    assert slides.excerpt(text, {"between": ["head", "end"], "cell": "c"}) == "A 1\nB 2"
    assert slides.excerpt(text, {"only": "^A", "cell": "c"}) == "A 1\nA 3"
    assert slides.excerpt("head\n  A 1\n    A 2\nend", {"only": "A", "cell": "c"}) == "A 1\n  A 2"
    many = slides.excerpt("\n".join(map(str, range(50))), {}).splitlines()
    assert len(many) == slides.MOST_LINES + 1 and many[-1] == slides.CUT


@pytest.mark.parametrize(
    ("slide", "outputs", "message"),
    [
        ({"notebook": "01_a", "cell": "gone"}, [], "has no cell gone"),
        ({"notebook": "01_a", "cell": "cell"}, [], "neither drawn nor printed"),
        ({"notebook": "01_a", "cell": "cell", "only": "never"}, [printed("x")], "nothing is left"),
        ({"notebook": "01_a", "cell": "cell", "between": ["never", "x"]}, [printed("x")], "no line"),
        ({"notebook": "01_a"}, [], "go together"),
        ({"drawing": "gone.svg"}, [], "has no gone.svg"),
        ({"drawing": "favicon.svg"}, [], "has no <desc>"),
        ({"picture": "x"}, [], "unknown picture"),
        ({"drawing": "method.svg", "table": "| a |"}, [], "show one of cell, drawing, table"),
        ({"title": ""}, [], "needs a title"),
    ],
)
def test_what_is_wrong_is_said(small, slide, outputs, message):
    with pytest.raises(ValueError, match=message):
        small(slide, outputs)
