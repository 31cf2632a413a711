"""Write the chapters as plain notebooks, for Colab, JupyterLab, VS Code and GitHub.

    python book/tools/plain.py FOLDER

The sources hold MyST, which only the site understands. Here roles become links, or text with the numbers that
the site shows; notes become quotes; hints and answers become `<details>`; equations carry their number as a
`\\tag`. Code stays as it is. The cells that the site folds are folded by `# @title` in Colab and by the
metadata `source_hidden` elsewhere, and the two at the top are one.

`build.py` puts the same edition behind the download button of each page, and `student.py` hands it out.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import nbformat
import yaml
from nbformat import NotebookNode
from pybtex.database import parse_file

ROOT = Path(__file__).resolve().parents[2]

# What can hide a role: code spans and formulas are read first where they begin first.
INLINE = re.compile(
    r"""\{(?P<role>[\w:.-]+)\}`(?P<content>[^`]+)`
      | (?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)
      | \$\$(?P<tex>.+?)\$\$(?:[ \t]*\((?P<label>[\w:-]+)\))?
      | (?<![\\\w])\$(?!\s)[^$\n]+?(?<!\s)\$(?!\d)
      | \]\((?P<target>[^)\s]+)\)""",
    re.DOTALL | re.VERBOSE,
)
FENCE = re.compile(r"(?P<marks>`{3,}|~{3,}|:{3,})(?:\{(?P<name>[\w:-]+)\}[ \t]*(?P<title>.*))?")
LABEL = re.compile(r"\(([\w:-]+)\)=\s*")
OPTION = re.compile(r":([\w-]+):[ \t]*(.*)")
TITLED = re.compile(r"(?P<text>.*?)\s*<(?P<target>[^<>]+)>", re.DOTALL)  # of a role: text <target>
NOTES = "admonition attention caution danger error exercise hint important note seealso solution tip warning"


@dataclass(frozen=True)
class Work:
    authors: str
    year: str
    address: str


@dataclass(frozen=True)
class Book:
    """What references point to. Places are (name of the chapter, what the site shows for them)."""

    title: str
    site: str  # address of the site, with a slash at its end
    numbers: dict[str, int]  # of chapters, by the name of the notebook
    works: dict[str, Work]
    terms: dict[str, str]  # anchors in the glossary, by the term in lower case
    equations: dict[str, tuple[str, str]]
    figures: dict[str, tuple[str, str]]
    sections: dict[str, tuple[str, str]]


def read_book(root: Path = ROOT) -> Book:
    """Collect numbers, terms, works and addresses from the configuration, the contents and the sources.

    Equations with a label and figures are numbered within their chapter in the order of the sources, as
    Sphinx does with `numfig_secnum_depth: 1`.
    """
    configuration = yaml.safe_load((root / "_config.yml").read_text("utf-8"))
    settings = configuration["sphinx"]["config"]
    site = settings["ogp_site_url"].rstrip("/") + "/"
    contents = yaml.safe_load((root / "_toc.yml").read_text("utf-8"))
    numbered = [
        page["file"] for part in contents.get("parts", []) if "numbered" in part for page in part["chapters"]
    ]
    numbers = {Path(file).name: number for number, file in enumerate(numbered, start=1)}
    equations, figures, sections = {}, {}, {}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        chapter, seen = path.stem, {"equation": 0, "figure": 0}

        def numbered_place(kind, chapter=chapter, seen=seen):
            seen[kind] += 1
            return chapter, f"{numbers[chapter]}.{seen[kind]}"

        for cell in nbformat.read(path, as_version=4).cells:
            if figure := _figure(cell):
                place, number = numbered_place("figure")
                figures[figure["name"]] = place, settings["numfig_format"]["figure"] % number
            elif cell.cell_type == "markdown":
                for found in INLINE.finditer(cell.source):
                    if found["label"]:
                        equations[found["label"]] = numbered_place("equation")
                for found in re.finditer(rf"^{LABEL.pattern}\n#+ (.+)$", cell.source, re.MULTILINE):
                    sections[found[1]] = chapter, found[2]
    return Book(
        configuration["title"],
        site,
        numbers,
        read_works(root / "book" / "references.bib", f"{site}book/references.html"),
        _terms((root / "book" / "glossary.md").read_text("utf-8")),
        equations,
        figures,
        sections,
    )


def _figure(cell: NotebookNode) -> dict | None:
    """Caption and name of the figure that a cell draws."""
    return cell.metadata.get("mystnb", {}).get("figure") if "figure" in _tags(cell) else None


def _tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def read_works(file: Path, elsewhere: str) -> dict[str, Work]:
    """Authors as in a text, year and address of each work; `elsewhere` for those without DOI or preprint."""
    works = {}
    for key, entry in parse_file(file, bib_format="bibtex").entries.items():
        names = [
            " ".join(str(part) for part in person.rich_prelast_names + person.rich_last_names)
            for person in entry.persons["author"]
        ]
        authors = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
        if "doi" in entry.fields:
            address = "https://doi.org/" + quote(entry.fields["doi"])
        elif "eprint" in entry.fields:
            address = "https://arxiv.org/abs/" + entry.fields["eprint"]
        else:
            address = elsewhere
        works[key] = Work(authors, entry.fields["year"], address)
    return works


def _terms(glossary: str) -> dict[str, str]:
    """Anchors of the glossary's terms: what stands at the margin in its directive, named as Sphinx does."""
    listed = re.search(r"^:::+\{glossary\}\n(.*?)^:::", glossary, re.DOTALL | re.MULTILINE)
    names = re.findall(r"^(\w[^\n]*)$", listed[1], re.MULTILINE) if listed else []
    return {name.lower(): "term-" + re.sub(r"[^\w]+", "-", name).strip("-") for name in names}


def plain_text(source: str, chapter: str, book: Book) -> str:
    """Plain Markdown for the MyST of a cell of `chapter`.

    Raises ValueError for a role or directive that it does not know, and for a reference to nothing.
    """
    lines, kept, running = source.split("\n"), [], []

    def finish_text():
        if running:
            kept.append(_inline("\n".join(running), chapter, book))
            running.clear()

    at = 0
    while at < len(lines):
        line = lines[at]
        fence = FENCE.fullmatch(line.rstrip()) if line.startswith((":::", "```{")) else None
        if fence or line.lstrip().startswith(("```", "~~~")):
            opening = re.match(r"\s*([`~:])\1*", line)[0].strip()
            closing = re.compile(rf"\s*{re.escape(opening)}{re.escape(opening[0])}*\s*")
            rest = range(at + 1, len(lines))
            end = next((place for place in rest if closing.fullmatch(lines[place])), None)
            if end is None:
                raise ValueError(f"{line.strip()!r} is not closed")
            if fence:
                finish_text()
                kept.append(_directive(fence["name"], fence["title"], lines[at + 1 : end], chapter, book))
                if end + 1 < len(lines) and lines[end + 1].strip():
                    kept.append("")  # else the next line would go on with the quote
            else:  # a listing: nothing in it is a role
                finish_text()
                kept.append("\n".join(lines[at : end + 1]))
            at = end + 1
        elif label := LABEL.fullmatch(line):
            finish_text()
            kept.append(f"{_anchor(label[1])}\n")
            at += 1
        else:
            running.append(line)
            at += 1
    finish_text()
    return "\n".join(kept)


def _anchor(name: str) -> str:
    """A place to link to; Colab goes by `name`, others by `id`."""
    return f'<a id="{name}" name="{name}"></a>'


def _directive(name: str | None, title: str | None, body: list[str], chapter: str, book: Book) -> str:
    """A note as a quote with a bold title, and whatever the site folds as `<details>`."""
    options = {}
    while body and (option := OPTION.fullmatch(body[0])):
        options[option[1]] = option[2]
        body = body[1:]
    if name != "dropdown" and name not in NOTES.split():
        raise ValueError(f"unknown directive {name!r}: teach book/tools/plain.py what becomes of it")
    heading = _inline(title.strip(), chapter, book) if title else name.capitalize()
    text = plain_text("\n".join(body), chapter, book).strip()
    if name == "dropdown" or "dropdown" in options.get("class", "").split():
        return f"<details>\n<summary>{heading}</summary>\n\n{text}\n\n</details>"
    # A formula on several lines would take the marks of the quote for its own.
    text = re.sub(r"\$\$.+?\$\$", lambda found: " ".join(found[0].split()), text, flags=re.DOTALL)
    return "\n".join(f"> {line}".rstrip() for line in (f"**{heading}**", "", *text.split("\n")))


def _inline(text: str, chapter: str, book: Book) -> str:
    """Roles, formulas and links of running text."""

    def replaced(found: re.Match) -> str:
        if found["role"]:
            return _role(found["role"], " ".join(found["content"].split()), chapter, book)
        if found["label"]:
            tag = rf"\tag{{{book.equations[found['label']][1]}}}"
            tex = found["tex"]
            space = "\n" if tex.endswith("\n") else " "
            return f"$${tex.rstrip()}{space}{tag}{space}$$"
        if found["target"]:
            return f"]({_target(found['target'], book)})"
        return found[0]

    return INLINE.sub(replaced, text)


def _target(target: str, book: Book) -> str:
    """Links to chapters stay relative; pages and pictures of the book are on the site."""
    path, _, anchor = target.partition("#")
    if path.startswith("../book/"):
        path = book.site + path.removeprefix("../").replace("book/_static/", "_static/")
        path = re.sub(r"\.md$", ".html", path)
    return f"{path}#{anchor}" if anchor else path


def _role(role: str, content: str, chapter: str, book: Book) -> str:
    """What a role shows on the site, as a link."""
    titled = TITLED.fullmatch(content)
    words, target = (titled["text"], titled["target"]) if titled else ("", content)

    def found(places: dict, key: str, kind: str):
        if key not in places:
            raise ValueError(f"{{{role}}}`{content}`: the book has no {kind} {key!r}")
        return places[key]

    def link(place: str, text: str) -> str:
        return f"[{text}]({'' if place == chapter else f'{place}.ipynb'}#{target})"

    if role in ("cite:p", "cite:t"):
        works = [found(book.works, key.strip(), "reference") for key in content.split(",")]
        if role == "cite:p":
            return f"({'; '.join(f'[{work.authors}, {work.year}]({work.address})' for work in works)})"
        return ", ".join(f"[{work.authors} ({work.year})]({work.address})" for work in works)
    if role == "term":
        anchor = found(book.terms, target.lower(), "term")
        return f"[{words or target}]({book.site}book/glossary.html#{anchor})"
    if role == "eq":
        place, number = found(book.equations, target, "equation")
        return f"({number})" if place == chapter else f"[({number})]({place}.ipynb)"
    if role == "numref":
        place, number = found(book.figures, target, "figure")
        return link(place, words.replace("%s", number.split()[-1]) if words else number)
    if role == "ref":
        place, title = found(book.sections, target, "section")
        return link(place, words or title)
    if role == "doc":
        ending = ".ipynb" if "book/" not in target else ".md"
        return f"[{words or target}]({_target(target + ending, book)})"
    if role == "math":
        return f"${content}$"
    raise ValueError(f"unknown role {{{role}}}`{content}`: teach book/tools/plain.py what becomes of it")


def merge_setup(notebook: NotebookNode) -> None:
    """Make one cell of setup and imports, which follow each other: one bar where they are folded."""
    for at, (setup, imports) in enumerate(zip(notebook.cells, notebook.cells[1:], strict=False)):
        if "setup" in _tags(setup) and "imports" in _tags(imports):
            setup.source = f"{setup.source}\n\n{imports.source}"
            setup.metadata["tags"] = list(dict.fromkeys([*_tags(setup), *_tags(imports)]))
            setup.outputs = [*setup.outputs, *imports.outputs]
            del notebook.cells[at + 1]
            return


def _fold(cell: NotebookNode, book: Book) -> None:
    """Collapse a code cell that the site folds; in Colab a `# @title` says what is inside."""
    if not {"hide-input", "hide-cell"} & set(_tags(cell)):
        return
    figure = _figure(cell)
    titles = {"setup": "Setup", "imports": "Imports", "solution": "A solution"}
    title = next((words for tag, words in titles.items() if tag in _tags(cell)), "Code")
    if figure:
        title = f"{book.figures[figure['name']][1]}: code"
    cell.source = f"# @title {title}\n{cell.source}"
    cell.metadata["cellView"] = "form"
    cell.metadata["jupyter"] = {"source_hidden": True}


def plain_notebook(notebook: NotebookNode, chapter: str, book: Book) -> NotebookNode:
    """A chapter, executed or not, without MyST; the notebook given stays as it is.

    Captions, which other viewers than the site do not show, become cells. What a page of the site alone can
    show, such as the film's player, is named with a link. ValueError names the cell with an unknown role.
    """
    edition = nbformat.from_dict(notebook)
    edition.metadata.pop("build", None)
    merge_setup(edition)
    page = f"{book.site}notebooks/{chapter}.html"
    kept = []
    for cell in edition.cells:
        if "injected-parameters" in _tags(cell):  # of the machine that built the site
            continue
        kept.append(cell)
        try:
            if cell.cell_type == "markdown":
                cell.source = plain_text(cell.source, chapter, book)
                continue
            for output in cell.outputs:
                if "text/markdown" in output.get("data", {}):
                    output.data["text/markdown"] = _inline(output.data["text/markdown"], chapter, book)
            if figure := _figure(cell):
                caption = _inline(figure["caption"], chapter, book)
                caption = f"{_anchor(figure['name'])}\n**{book.figures[figure['name']][1]}.** {caption}"
                kept.append(nbformat.v4.new_markdown_cell(caption, id=f"caption-{cell.id}"))
        except ValueError as error:
            raise ValueError(f"{chapter}.ipynb, cell {cell.id}: {error}") from None
        if "../_static/" in cell.source:
            cell.outputs = [
                o for o in cell.outputs if "../_static/" not in o.get("data", {}).get("text/html", "")
            ]
            words = f"*This part is interactive on [the chapter's page]({page}) of the book's site.*"
            kept.append(nbformat.v4.new_markdown_cell(words, id=f"site-{cell.id}"))
        _fold(cell, book)
    edition.cells = kept
    title = kept[0]
    number = book.numbers[chapter]
    heading, _, rest = title.source.partition("\n")
    source = f"*Chapter {number} of [{book.title}]({page}), whose page shows it executed.*"
    title.source = f"# {number}. {heading.removeprefix('# ')}\n\n{source}\n{rest}"
    nbformat.validate(edition)
    return edition


def write(folder: Path, root: Path = ROOT) -> list[Path]:
    """Write all chapters in `root`/notebooks into `folder`; returns the files."""
    book = read_book(root)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        nbformat.write(plain_notebook(nbformat.read(path, as_version=4), path.stem, book), folder / path.name)
        written.append(folder / path.name)
    return written


def replace_downloads(site: Path, root: Path = ROOT) -> None:
    """Put the plain edition, with its outputs, in place of the sources that a built site offers."""
    book = read_book(root)
    for path in sorted((site / "_sources" / "notebooks").glob("*.ipynb")):
        nbformat.write(plain_notebook(nbformat.read(path, as_version=4), path.stem, book), path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Name the folder to write into: python book/tools/plain.py FOLDER")
    try:
        written = write(Path(sys.argv[1]))
    except ValueError as error:
        sys.exit(str(error))
    print(f"{len(written)} chapters in {sys.argv[1]}")
