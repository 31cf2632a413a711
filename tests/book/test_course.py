"""The course names cells and slides that exist; minutes and shares add up; its tables are computed."""

import re
from pathlib import Path

import nbformat
import pages
import pytest
import yaml
from example_records import example_record, put
from nbformat.v4 import new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "book" / "course.md").read_text("utf-8")


def part(heading):
    """The text under a heading, up to the next one of its level."""
    level = heading.split(" ")[0]
    return re.split(rf"^#{{1,{len(level)}}} ", PAGE.split(heading + "\n", 1)[1], flags=re.MULTILINE)[0]


def test_each_misconception_names_the_cell_that_dispels_it():
    rows = [line for line in part("## Common misconceptions").splitlines() if line.startswith('| "')]
    assert len(rows) >= 10
    for row in rows:
        links = re.findall(r"\[chapter (\d+), `([\w-]+)`\]\(\.\./notebooks/(\w+)\.ipynb#cell-([\w-]+)\)", row)
        assert links and row.count("../notebooks/") == len(links), f"not all links of {row} lead to cells"
        for number, shown, name, linked in links:
            cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
            there = {cell.id for cell in cells if cell.cell_type == "code"}
            assert int(number) == int(name[:2]) and shown == linked and linked in there, row


@pytest.mark.parametrize("heading", re.findall(r"^### Session \d.*$", PAGE, flags=re.MULTILINE))
def test_a_session_has_ninety_minutes(heading):
    assert sum(map(int, re.findall(r"^\| (\d+) \|", part(heading), flags=re.MULTILINE))) == 90


def test_shares_add_up_and_slides_are_there():
    assert sum(map(int, re.findall(r"\| (\d+)% \|", part("## Grading")))) == 100
    lectures = yaml.safe_load((ROOT / "book" / "slides.yml").read_text("utf-8"))
    titles = " ".join(slide["title"] for lecture in lectures for slide in lecture["slides"])
    for quoted in re.findall(r'Lecture \d, (?:to|from) "([^"]+)"', part("## The sessions")):
        assert quoted in titles, quoted
    assert re.findall(r'href="\.\./slides/lecture-(\d)\.html"', PAGE) == ["1", "2", "3"]


def test_before_monday_names_files_and_commands_that_are_there():
    text = part("## Before Monday")
    assert re.findall(r"^(\d+)\. \*\*", text, flags=re.MULTILINE) == [str(n) for n in range(1, 11)]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"`make (\w+)", text):
        assert f"\n{target}: " in makefile
    for file in re.findall(r"book/[\w./]+\w", text + part("## Material")):
        assert (ROOT / file).exists(), file
    for variable in re.findall(r"\b([A-Z]{4,})=", text):
        assert f"$({variable})" in makefile


def test_code_cells_of_the_site_can_be_linked_to():
    """`local_extensions` of the configuration names what `cell_links.py` does; see `test_cell_links.py`."""
    configuration = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    for name, folder in configuration["sphinx"]["local_extensions"].items():
        assert (ROOT / "_build" / "stage" / folder / f"{name}.py").resolve().is_file()


def test_the_page_states_no_measured_number_by_hand():
    prose = re.sub(r"^```bash\n.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"\d\.\d", prose)


def test_costs_are_assumed_until_a_run_is_on_record(tmp_path):
    results, stage = tmp_path / "results", tmp_path / "stage"
    (stage / "notebooks").mkdir(parents=True)
    cells = [new_markdown_cell("# A first run\n\ntext", id="title")]
    executed = new_notebook(cells=cells, metadata={"build": {"seconds": 33.0}})
    nbformat.write(executed, stage / "notebooks" / "01_first_run.ipynb")

    def written():
        pages.write(results, stage, ["01_first_run", "02_gone"])
        return [(stage / "book" / name).read_text() for name in (pages.TIMES, pages.COSTS)]

    times, costs = written()
    assert "| [1 A first run](../notebooks/01_first_run.ipynb) | 33.0 |" in times and "02" not in times
    rows = {line.split("`")[1]: line for line in costs.splitlines() if "`" in line}
    assert list(rows) == list(pages.PROJECTS)
    assert "| not known | no run on record |" in rows["digits/w-mse-2"]
    assert all("assumed" in row for name, row in rows.items() if not name.startswith("digits"))
    assert "33 min" in rows["cifar10/w-mse-2"], "99,328,000 views at 50,000 a second"

    put(results, example_record("cifar10/w-mse-2", views_per_second=9932.8))
    _, costs = written()
    (row,) = [line for line in costs.splitlines() if "`cifar10/w-mse-2`" in line]
    assert "2.8 h" in row and "as measured on" in row and str(tmp_path) not in costs
