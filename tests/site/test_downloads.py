"""What a page's download button gives is the plain edition, with the numbers of the page."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_download_has_the_numbers_of_the_page(name):
    if not (SITE / "index.html").exists():
        pytest.skip("the site is not built: make book")
    page = (SITE / "notebooks" / f"{name}.html").read_text("utf-8")
    assert f'href="../_sources/notebooks/{name}.ipynb"' in page
    assert f"/blob/colab/notebooks/{name}.ipynb" in page, "what Colab's button opens"
    notebook = nbformat.read(SITE / "_sources" / "notebooks" / f"{name}.ipynb", as_version=4)
    assert any(cell.get("outputs") for cell in notebook.cells)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert not re.search(r"\{[\w:]+\}`|^:::", text, re.MULTILINE)

    equations = re.findall(r'<span class="eqno">\(([\d.]+)\)', page)
    assert re.findall(r"\\tag\{([\d.]+)\}", text) == equations
    figures = re.findall(r'<span class="caption-number">Figure ([\d.]+)', page)
    assert re.findall(r"^\*\*Figure ([\d.]+)\.\*\*", text, re.MULTILINE) == figures
    heading = re.search(r'<h1><span class="section-number">(\d+)', page)[1]
    assert text.startswith(f"# {heading}. ")
