"""The build executes what has changed, refuses what it does not know, and fails on what is broken."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import build
import execute
import links
import nbformat
import pytest
import repository
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from wmse.recipes import get_recipe
from wmse.training import train

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path):
    """A repository with one small chapter."""
    for folder in ("wmse", "results", "notebooks", "book"):
        (tmp_path / folder).mkdir()
    (tmp_path / "wmse" / "__init__.py").write_text("answer = 42\n")
    (tmp_path / "requirements.txt").write_text("pytest>=8\n")
    (tmp_path / "book" / "preface.md").write_text("# Preface\n")
    (tmp_path / "_toc.yml").write_text(
        "format: jb-book\nroot: book/preface\nchapters:\n  - file: notebooks/01_small\n"
    )
    write(tmp_path, "import wmse\nprint(profile, out, wmse.answer)")
    return tmp_path


def write(tree, source):
    parameters = 'profile: str = "paper"  # how much\nout: str = "runs"  # where'
    cells = [
        new_markdown_cell("# Small", id="title"),
        new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]}),
        new_code_cell(source, id="lesson"),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), notebook(tree))


def notebook(tree):
    return tree / "notebooks" / "01_small.ipynb"


def staged(tree):
    return tree / "_build" / "stage" / "notebooks" / "01_small.ipynb"


def run(tree, *arguments):
    return build.main(["--execute-only", *arguments], root=tree)


def test_executes_once_and_keeps_what_is_current(tree, capsys):
    assert run(tree) == 0
    first = staged(tree).read_bytes()
    executed = nbformat.read(staged(tree), as_version=4)
    injected = next(cell for cell in executed.cells if "injected-parameters" in cell.metadata.get("tags", []))
    assert injected.id == "injected-parameters" and "remove-cell" in injected.metadata.tags
    assert executed.cells[-1].outputs[0].text == "smoke ../_build/runs 42\n"
    assert str(tree) not in first.decode(), "no path of this machine in the site"
    assert not notebook(tree).read_text().count("smoke"), "the source is left alone"

    capsys.readouterr()
    assert run(tree) == 0
    assert "current" in capsys.readouterr().out and staged(tree).read_bytes() == first


def test_runs_are_kept_until_the_code_changes(tree):
    source = "from pathlib import Path\nfor name in ('shared', '01-own'):\n    run = Path(out, name)\n"
    source += "    print(run.exists())\n    run.mkdir(exist_ok=True)"

    def printed(line=""):
        write(tree, source + line)
        assert run(tree) == 0
        return nbformat.read(staged(tree), as_version=4).cells[-1].outputs[0].text.split()

    assert printed() == ["False", "False"]
    assert printed("\n# another source") == ["True", "False"], "01-own is the chapter's own"
    (tree / "wmse" / "__init__.py").write_text("answer = 43\n")
    assert printed() == ["False", "False"]


def test_the_longest_chapter_is_executed_first(tree):
    assert execute.times(tree) == {}
    assert execute.longest_first(["a", "05_training", "b"], {}) == ["05_training", "a", "b"]
    assert execute.longest_first(["a", "b", "c", "d"], {"a": 3.0, "c": 5.0}) == ["b", "d", "c", "a"]
    assert set(execute.TRAIN_MOST) < set(build.chapters(ROOT))
    write(tree, "sum(i for i in range(10**7))")  # the kernel's time counts, not papermill's alone
    assert run(tree) == 0
    assert 0.5 < execute.times(tree)["01_small"] < 60


def test_lines_of_progress_do_not_stand_in_the_page(tmp_path, monkeypatch, capsys):
    for name in ("FIRST_SECONDS", "REPORT_SECONDS"):
        monkeypatch.setattr(f"wmse.training.{name}", 0.0)
    tiny = replace(get_recipe("digits/mse"), width=4, projector_width=16, epochs=1, batch_size=64)
    for _ in range(2):
        train("digits/mse", tmp_path / "run", tiny, limit=200, resume=True)
    told = capsys.readouterr().out
    assert told.count(" left\n") == 3 and "loading the images" in told and "3 steps in all" in told
    assert "from the beginning" in told and "finished already" in told
    told += "runs/x: resuming after step 3\n"
    output = new_output("stream", text=f"before\n{told}after\n")
    only = new_output("stream", text=told)
    cells = [new_code_cell("1", outputs=[output]), new_code_cell("2", outputs=[only]), new_markdown_cell("3")]
    tidied = new_notebook(cells=cells)
    execute.tidy(tidied, {})
    assert [cell.outputs for cell in tidied.cells[:2]] == [[new_output("stream", text="before\nafter\n")], []]


def test_a_failing_notebook_fails_the_build_and_says_where(tree, capsys):
    write(tree, "print('so far')\nnumber = 1 / 0")
    assert run(tree) == 1
    message = capsys.readouterr().err
    assert "01_small" in message and "id lesson" in message and "number = 1 / 0" in message
    assert "ZeroDivisionError" in message and "\x1b" not in message
    assert not staged(tree).exists()
    assert "so far" in (tree / "_build" / "unfinished" / "01_small.ipynb").read_text()


def test_unknown_parameters_and_names_are_refused(tree, capsys):
    assert run(tree, "--parameter", "epoch=3") == 1
    assert "no parameter epoch" in capsys.readouterr().err
    assert run(tree, "--parameter", "epoch") == 1
    assert "NAME=VALUE" in capsys.readouterr().err
    assert run(tree, "--only", "02_other") == 1
    assert "02_other" in capsys.readouterr().err
    assert not (tree / "_build" / "stage").exists()


def test_fingerprint_changes_with_all_that_matters(tree, monkeypatch):
    parameters = {"profile": "smoke"}

    def now():
        return execute.fingerprint(tree, notebook(tree), parameters)

    seen = [now()]
    assert now() == seen[0]
    (tree / "book" / "preface.md").write_text("# Another preface\n")
    assert now() == seen[0], "no notebook depends on a page"

    write(tree, "print(1)")
    seen.append(now())
    (tree / "wmse" / "__init__.py").write_text("answer = 43\n")
    seen.append(now())
    (tree / "wmse" / "other.py").write_text("")
    seen.append(now())
    (tree / "results" / "record.json").write_text("{}")
    seen.append(now())
    (tree / "requirements.txt").write_text("pytest>=9\n")
    seen.append(now())
    parameters["profile"] = "colab"
    seen.append(now())
    monkeypatch.setattr(execute.sys, "version", "4.0")
    seen.append(now())
    monkeypatch.setattr(execute.metadata, "version", lambda name: "0.0.1")
    seen.append(now())
    assert len(set(seen)) == len(seen)


def test_contents_must_exist(tree, capsys):
    assert build.chapters(tree) == ["01_small"]
    notebook(tree).unlink()
    assert run(tree) == 1
    assert "01_small" in capsys.readouterr().err


def test_stage_holds_pages_results_and_mathjax_and_drops_what_is_gone(tree):
    gone = staged(tree).with_name("00_gone.ipynb")
    gone.parent.mkdir(parents=True)
    gone.write_text("{}")
    (tree / "book" / "_static").mkdir()
    (tree / "book" / "tools").mkdir()
    (tree / "results" / "record.json").write_text("{}")
    (tree / "_config.yml").write_text("title: small\n")
    build.stage_pages(tree, ["01_small"])
    stage = tree / "_build" / "stage"
    assert (stage / "book" / "preface.md").exists() and (stage / "results" / "record.json").exists()
    assert (stage / "book" / "_static" / "tex-svg.js").stat().st_size > 1_000_000
    assert not gone.exists() and not (stage / "book" / "tools").exists()


def test_speed_tables_come_from_the_files_of_benchmarks(tree):
    included = tree / "_build" / "stage" / "book" / "speed-tables.md"
    included.parent.parent.mkdir(parents=True)
    (tree / "_config.yml").write_text("title: t\n")
    (tree / "book" / "_static").mkdir()
    build.stage_pages(tree, [])
    assert included.read_text().startswith(build.page.NONE_YET)
    results = tree / "benchmarks" / "results" / "machine"
    results.mkdir(parents=True)
    table = {"benchmark": "loss", "title": "Loss", "columns": {"ms": "ms"}, "rows": [{"ms": 43.21}]}
    table |= {"notes": "", "machine": "m", "measured": "2026-01-01", "git": None}
    table |= {"versions": {"torch": "2", "python": "3"}, "hardware": {"device": "cpu"}}
    (results / "loss.json").write_text(json.dumps(table))
    build.stage_pages(tree, [])
    assert "## Loss" in included.read_text() and "43.2" in included.read_text()
    (results / "loss.json").write_text("{")
    with pytest.raises(build.BuildError, match=r"loss\.json"):
        build.stage_pages(tree, [])


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<a href="gone.html">', "gone.html does not exist"),
        ('<a href="other.html#nowhere">', "no such anchor"),
        ('<a href="#nowhere">', "no such anchor"),
        ('<img src="picture.png" alt="picture.png">', "no alt text"),
        ('<img src="picture.png">', "no alt text"),
        ('<img src="missing.png" alt="A picture">', "missing.png does not exist"),
        ('<script src="https://example.org/a.js"></script>', "from outside"),
        ('<link rel="stylesheet" href="//example.org/a.css">', "from outside"),
        ('<a href="https://example.org/">', None),
        ('<a href="other.html#there"><img src="picture.png" alt="A picture">', None),
    ],
)
def test_links_of_a_site(tmp_path, body, problem):
    (tmp_path / "index.html").write_text(f"<html><body>{body}</body></html>")
    (tmp_path / "other.html").write_text('<p id="there">')
    (tmp_path / "picture.png").write_bytes(b"")
    found = links.problems(tmp_path)
    assert (not found) if problem is None else (len(found) == 1 and problem in found[0])


# The repository's address: _config.yml holds it, and no literal copy says otherwise.


def literal_places():
    patterns = [
        "*.md",
        "*.cff",
        "*.toml",
        "book/*.md",
        "notebooks/*.ipynb",
        "wmse/*.py",
        ".github/workflows/*",
    ]
    return [path for pattern in patterns for path in ROOT.glob(pattern)]


def test_the_address_is_the_same_everywhere():
    owner, name = repository.current(ROOT)
    for path in literal_places():
        text = path.read_text(encoding="utf-8")
        for pattern in (
            r"git\+https://github\.com/([\w.-]+/[\w.-]*\w)",  # to install
            r"git clone https://github\.com/([\w.-]+/[\w.-]*\w)",
            r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+?)(?:/blob|/tree|[)\s\"])",
            rf"github\.com/([\w.-]+/{re.escape(name)})\b",
        ):
            assert set(re.findall(pattern, text)) <= {f"{owner}/{name}"}, path


def test_one_command_changes_the_address(tmp_path):
    owner, name = repository.current(ROOT)
    for path in [ROOT / "_config.yml", *literal_places()]:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    source = f'%pip install "git+https://github.com/{owner}/{name}"'
    write_to = tmp_path / "notebooks"
    write_to.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=[new_code_cell(source, id="setup")]), write_to / "99_other.ipynb")
    (tmp_path / "OTHER.md").write_text(
        f"https://github.com/{owner}/{name}-fork https://{owner}.github.io/{name}/ https://github.com/a/b\n"
    )

    changed = {path.name for path in repository.rename("https://github.com/Someone/else.where", tmp_path)}
    assert {"_config.yml", "preface.md", "99_other.ipynb", "OTHER.md"} <= changed
    assert repository.current(tmp_path) == ("Someone", "else.where")
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name != "OTHER.md":
            assert f"{owner}/{name}" not in path.read_text(encoding="utf-8"), path
    assert (tmp_path / "OTHER.md").read_text() == (
        f"https://github.com/{owner}/{name}-fork https://someone.github.io/else.where/ https://github.com/a/b\n"
    )
    assert json.loads((write_to / "99_other.ipynb").read_text())["cells"][0]["id"] == "setup"


@pytest.mark.parametrize("url", ["", "github.com/a/b", "https://example.org/a/b", "https://github.com/a"])
def test_other_addresses_are_refused(url, tmp_path):
    with pytest.raises(ValueError, match="https://github.com/OWNER/NAME"):
        repository.rename(url, tmp_path)
