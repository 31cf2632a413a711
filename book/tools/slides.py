"""Make the lectures: slides whose figures and numbers are outputs of the executed chapters.

`slides.yml` says which cell each slide shows, and the few lines beside it; its first comment explains the
fields. `build.py` calls `write` once the site is there. Each lecture is one page that fetches nothing from
outside: pictures are inside it, the site's own copy of MathJax draws formulas. It prints a slide a page.
"""

import base64
import re
import textwrap
from html import escape
from pathlib import Path
from string import Template

import nbformat
import plain
import yaml
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

HERE = Path(__file__).resolve().parents[1]
PAGE = Template((HERE / "slides.html").read_text("utf-8"))
FIELDS = {
    "title",
    "lines",
    "formula",
    "notebook",
    "cell",
    "drawing",
    "table",
    "between",
    "only",
    "notes",
    "sources",
}
SHOWN = {"cell", "drawing", "table"}
MOST_LINES = 12  # of printed output on a slide
CUT = "…"
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
MARKUP = re.compile(r"[`*$\\{}]")

markdown = MarkdownIt("commonmark").enable("table")
markdown.use(
    dollarmath_plugin,
    renderer=lambda tex, options: escape(rf"\[{tex}\]" if options["display_mode"] else rf"\({tex}\)"),
)


def lectures(file: Path) -> list[dict]:
    """The lectures of `slides.yml`, checked: no unknown field, a title everywhere, cell with notebook."""
    try:
        found = yaml.safe_load(file.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file.name} is not YAML: {error}") from None
    for lecture in found:
        for slide in lecture["slides"]:
            name = f"{file.name}, {lecture['title']!r}, {slide.get('title')!r}"
            if unknown := sorted(set(slide) - FIELDS):
                raise ValueError(
                    f"{name}: unknown {', '.join(unknown)}; known are {', '.join(sorted(FIELDS))}"
                )
            if not slide.get("title") or ("cell" in slide) != ("notebook" in slide):
                raise ValueError(f"{name}: a slide needs a title, and `notebook` and `cell` go together")
            if len(SHOWN & set(slide)) > 1:
                raise ValueError(f"{name}: show one of {', '.join(sorted(SHOWN))}")
    return found


def write(file: Path, notebooks: Path, folder: Path) -> list[Path]:
    """Write lecture-1.html and so on into `folder`, from the executed chapters in `notebooks`.

    ValueError names the slide whose cell is not there or has nothing to show.
    """
    read, works = {}, None
    folder.mkdir(parents=True, exist_ok=True)
    pages = []
    for number, lecture in enumerate(lectures(file), start=1):
        parts, total = [], len(lecture["slides"]) + 1
        parts.append(opening(lecture, number, total))
        for place, slide in enumerate(lecture["slides"], start=2):
            if name := slide.get("notebook"):
                if name not in read:
                    read[name] = nbformat.read(notebooks / f"{name}.ipynb", as_version=4)
            if "sources" in slide and works is None:
                works = plain.read_works(file.parent / "references.bib", "")
            try:
                parts.append(section(slide, read.get(name), place, total, works or {}))
            except ValueError as error:
                raise ValueError(f"{file.name}, lecture {number}, {slide['title']!r}: {error}") from None
        page = folder / f"lecture-{number}.html"
        text = PAGE.substitute(title=escape(f"Lecture {number}: {lecture['title']}"), slides="\n".join(parts))
        page.write_text(text, "utf-8")
        pages.append(page)
    return pages


def opening(lecture: dict, number: int, total: int) -> str:
    """The first slide: what the lecture is about, and how to move through it."""
    return (
        f'<section id="slide-1" class="opening" tabindex="-1" aria-label="Slide 1 of {total}">\n'
        f"<p>Lecture {number}</p>\n<h1>{inline(lecture['title'])}</h1>\n"
        f"<p>{inline(lecture['question'])}</p>\n"
        "<p class='keys'>Arrow keys, Home and End move; N shows the speaker's notes; print for a PDF.</p>\n"
        f'<footer><a href="../book/course.html">The course</a><span>1 / {total}</span></footer>\n</section>'
    )


def section(slide: dict, notebook, place: int, total: int, works: dict[str, plain.Work]) -> str:
    """One slide; `works` are those that `sources` can name."""
    shown, source = "", cited(slide.get("sources", []), works)
    if "table" in slide:
        shown = f'<div class="own">{markdown.render(slide["table"])}</div>'
    if "drawing" in slide:
        shown = drawing(HERE / "_static" / slide["drawing"])
    if notebook is not None:
        cell = next((cell for cell in notebook.cells if cell.id == slide["cell"]), None)
        if cell is None:
            raise ValueError(f"{slide['notebook']} has no cell {slide['cell']}")
        shown = output(cell, slide)
        figure = cell.metadata.get("mystnb", {}).get("figure", {})
        place_there = f"#{figure['name']}" if "figure" in cell.metadata.get("tags", []) else ""
        heading = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
        address = f"../notebooks/{slide['notebook']}.html{place_there}"
        source += f'<a href="{address}">From the chapter “{inline(heading)}”, as executed for this site</a>'
    lines = "".join(f"<li>{inline(line)}</li>" for line in slide.get("lines", []))
    words = f"<ul>{lines}</ul>" if lines else ""
    if "formula" in slide:
        words += '<div class="formula">' + escape(rf"\[{slide['formula']}\]") + "</div>"
    notes = f'<aside class="notes">{inline(slide["notes"])}</aside>' if "notes" in slide else ""
    beside = 'class="tall"' in shown or ("formula" in slide and shown.count("\n") > 3)
    kind = "side" if words and beside else "above" if shown else "words"
    return (
        f'<section id="slide-{place}" tabindex="-1" aria-label="Slide {place} of {total}">\n'
        f"<h2>{inline(slide['title'])}</h2>\n"
        f'<div class="body {kind}">\n'
        f"<div>{words}</div>\n{shown}\n</div>\n{notes}\n"
        f"<footer>{source}<span>{place} / {total}</span></footer>\n</section>"
    )


def cited(keys: list[str], works: dict[str, plain.Work]) -> str:
    """Authors and years of works in the bibliography, as a link to the book's references."""
    if unknown := [key for key in keys if key not in works]:
        raise ValueError(f"the bibliography has no {', '.join(unknown)}")
    names = "; ".join(f"{works[key].authors}, {works[key].year}" for key in keys)
    return f'<a href="../book/references.html">{escape(names)}</a>' if names else ""


def inline(text: str) -> str:
    """Markdown of one line, with $formulas$, as HTML."""
    return markdown.renderInline(text.strip())


def output(cell, slide: dict) -> str:
    """What a cell has drawn or, if it has drawn nothing, printed: a picture, a table or lines of text."""
    outputs = cell.get("outputs", [])
    pictures = [o.data["image/svg+xml"] for o in outputs if "image/svg+xml" in o.get("data", {})]
    if pictures:
        alt = cell.metadata["mystnb"]["image"]["alt"]
        return "\n".join(picture(svg, alt) for svg in pictures)
    tables = [o.data["text/markdown"] for o in outputs if "text/markdown" in o.get("data", {})]
    if tables:
        text = LINK.sub(r"\1", excerpt("\n".join(tables), slide))
        return f'<div class="table" style="{size_of_table(text)}">{markdown.render(text)}</div>'
    printed = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
    if not printed.strip():
        raise ValueError(f"cell {cell.id} has neither drawn nor printed anything")
    text = excerpt(printed, slide)
    lines = text.splitlines()
    return f'<pre style="--columns: {max(map(len, lines))}; --rows: {len(lines)}">{escape(text)}</pre>'


def size_of_table(text: str) -> str:
    """Width in characters and lines of tables in Markdown, as CSS variables that set the size of type."""
    rows = [line.strip().strip("|").split("|") for line in text.splitlines() if line.lstrip().startswith("|")]
    rows = [
        [MARKUP.sub("", cell).split("<br>") for cell in row] for row in rows if set("".join(row)) - set(":- ")
    ]
    widths: dict[int, int] = {}
    for row in rows:
        for place, cell in enumerate(row):
            widths[place] = max(widths.get(place, 0), 2 + max(len(line.strip()) for line in cell))
    high = sum(max(map(len, row)) for row in rows)
    high += 2 * sum(bool(line) and not line.startswith("|") for line in text.splitlines())
    return f"--columns: {sum(widths.values()) or 60}; --rows: {high or 1}"


def picture(svg: str, alt: str) -> str:
    """An SVG figure inside the page; `tall` if it should stand beside the text and not below it."""
    width, height = (
        float(re.search(rf'<svg[^>]*?\s{side}="([\d.]+)', svg)[1]) for side in ("width", "height")
    )
    shape = "wide" if width > 1.45 * height else "tall"
    data = base64.b64encode(svg.encode()).decode()
    source = f"data:image/svg+xml;base64,{data}"
    return f'<figure class="{shape}"><img src="{source}" alt="{escape(alt)}"></figure>'


def drawing(file: Path) -> str:
    """An SVG of the book with the words of its own `desc`; ValueError if it is missing or has none."""
    if not file.exists():
        raise ValueError(f"book/_static has no {file.name}")
    svg = file.read_text("utf-8")
    words = re.search(r"<desc[^>]*>(.+?)</desc>", svg, re.DOTALL)
    if not words:
        raise ValueError(f"{file.name} has no <desc> that says what is to be seen")
    return picture(svg, words[1].strip())


def excerpt(text: str, slide: dict) -> str:
    """The lines that the slide asks for: those between two patterns, of them only some, and not too many."""
    lines = text.strip("\n").splitlines()
    if "between" in slide:
        first, last = (re.compile(pattern) for pattern in slide["between"])
        starts = [index for index, line in enumerate(lines) if first.search(line)]
        if not starts:
            raise ValueError(f"no line of cell {slide['cell']} matches {first.pattern!r}")
        lines = lines[starts[0] + 1 :]
        ends = [index for index, line in enumerate(lines) if last.search(line)]
        lines = lines[: ends[0]] if ends else lines
    if "only" in slide:
        lines = [line for line in lines if re.search(slide["only"], line)]
    if not any(line.strip() for line in lines):
        raise ValueError(f"nothing is left of what cell {slide['cell']} has printed")
    lines = textwrap.dedent("\n".join(lines)).strip("\n").splitlines()
    return "\n".join([*lines[:MOST_LINES], CUT] if len(lines) > MOST_LINES else lines)
