"""A link to a cell of a chapter works on the site; a link to a cell that is not there is a warning."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = f"""
import sys
sys.path.insert(0, {str(ROOT / "book" / "tools")!r})
extensions = ["myst_nb", "cell_links"]
nb_execution_mode = "off"
myst_heading_anchors = 2
"""


@pytest.fixture
def build(tmp_path):
    """Build a page with this link and a chapter; returns exit code, messages and the folder of pages."""

    def made(link):
        cells = [
            new_markdown_cell("# A chapter", id="title"),
            new_code_cell("1", id="gone", metadata={"tags": ["remove-cell"]}),
            new_markdown_cell("## Shift", id="text"),
            new_code_cell("2", id="shift"),
            new_code_cell("3", id="last", metadata={"tags": ["hide-input"]}),
        ]
        notebook = new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
        nbformat.write(notebook, tmp_path / "chapter.ipynb")
        (tmp_path / "conf.py").write_text(CONFIGURATION)
        (tmp_path / "index.md").write_text(f"# Book\n\n[there]({link})\n\n```{{toctree}}\nchapter\n```\n")
        command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(tmp_path)]
        done = subprocess.run([*command, str(tmp_path / "out")], text=True, capture_output=True)
        return done.returncode, done.stderr, tmp_path / "out"

    return made


def test_cells_that_are_shown_have_their_ids_beside_those_of_headings(build):
    code, said, pages = build("chapter.ipynb#cell-shift")
    assert code == 0, said
    assert 'href="chapter.html#cell-shift"' in (pages / "index.html").read_text("utf-8")
    chapter = (pages / "chapter.html").read_text("utf-8")
    for name in ("shift", "cell-shift", "cell-last"):
        assert chapter.count(f'id="{name}"') == 1, name
    assert "cell-gone" not in chapter


def test_a_link_to_no_cell_is_a_warning(build):
    code, said, _ = build("chapter.ipynb#cell-gone")
    assert code != 0 and "cell-gone" in said
