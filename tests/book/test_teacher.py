"""What only teachers see: a key that agrees with the chapters, and a report with its marks."""

import itertools
import math
import re
from pathlib import Path

import build
import nbformat
import pytest
import torch

from wmse.recipes import get_recipe

ROOT = Path(__file__).resolve().parents[2]
TEACHER = ROOT / "book" / "teacher"
KEY = (TEACHER / "key.md").read_text("utf-8")
COURSE = (ROOT / "book" / "course.md").read_text("utf-8")


@pytest.fixture(scope="module")
def report():
    """The sample report: its notebook, and the names that it defines when it is run."""
    notebook = nbformat.read(TEACHER / "sample_report.ipynb", as_version=4)
    names = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    return notebook, names


def test_neither_site_nor_students_edition_holds_it(tmp_path):
    for name in ("_config.yml", "_toc.yml"):
        (tmp_path / name).write_text((ROOT / name).read_text("utf-8"))
    kept = set(build.PAGE_FILES("book", ["teacher", "tools", "course.md"]))
    assert kept == {"teacher", "tools"}
    text = (ROOT / "book" / "tools" / "student.py").read_text("utf-8")
    assert "teacher" not in text.split('"""', 2)[2], "the edition copies chapters and records"
    assert "teacher/" not in (ROOT / "_toc.yml").read_text("utf-8")


def test_the_key_has_each_exercise_that_asks_for_a_derivation():
    """Those whose text asks to prove or to show something; each heading names a chapter that exists."""
    chapters = {int(path.name[:2]) for path in (ROOT / "notebooks").glob("*.ipynb")}
    headings = " ".join(re.findall(r"^## (.*)$", KEY, re.M))
    named = {int(number) for number in re.findall(r"\b\d+\b", headings)}
    assert named == chapters, "a chapter without derivations would be named as such"
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            asks = re.search(r"\b(Prove|Show that)\b", cell.source)
            if cell.id.startswith("exercise-") and cell.cell_type == "markdown" and asks:
                number, title = re.match(r"### Exercise (\d): (.*)", cell.source).groups()
                under = KEY.split(f"\n## Chapter {int(path.name[:2])}\n")[1].split("\n## ")[0]
                assert f"Exercise {number}" in under, f"{path.stem}: {title}"


def test_numbers_of_the_key_are_right():
    assert f"about {1 - 0.95**20:.0%}" in KEY and f"about {0.95 ** (1 / 20):.1%}" in KEY
    assert f"about $0.{round(100 * math.log(2))}/(1 - m)$" in KEY
    for name, minutes in (("cifar10/w-mse-2", 33), ("cifar10/w-mse-4", 67)):
        recipe = get_recipe(name)
        steps = recipe.epochs * (50_000 // recipe.batch_size)
        assert round(steps * recipe.batch_size * recipe.positives / 50_000 / 60) == minutes
        assert f"{steps:,} steps and {minutes} minutes" in " ".join(KEY.split())
    for kappa, images in ((10, 96), (2, 576)):
        assert math.ceil(64 * ((kappa + 1) / (kappa - 1)) ** 2) == images and f"{images} " in KEY
    assert f"about {(math.sqrt(17) - 1) / 2:.2f}" in KEY and f"{0.9**20:.0%} for 20 images and a tenth" in KEY
    waves = {}  # two angles: the waves' eigenvalues and how many there are, largest first
    for m1, m2 in itertools.product(range(9), repeat=2):
        value = round((0.2 * m1) ** 2 + (0.8 * m2) ** 2, 9)
        waves.setdefault(value, []).extend([m2] * ((1 + (m1 > 0)) * (1 + (m2 > 0))))
    (_, *first), tied = [waves[value] for value in sorted(waves)][:4], waves[0.64]
    assert first == [[0, 0]] * 3 and sorted(tied) == [0, 0, 1, 1], (
        "k = 6, and two of the four tied may be added"
    )
    for k in (2, 5):  # the simplex
        z = torch.eye(k + 1, dtype=torch.float64) - 1 / (k + 1)
        table = k * z
        assert math.isclose(float(table[0, 0] + table[1, 1] - 2 * table[0, 1]), 2 * k)
    factor = torch.linalg.cholesky(torch.tensor([[4.0, 2.0], [2.0, 5.0]]))
    assert factor.tolist() == [[2, 0], [1, 2]]


def test_marks_are_those_of_the_grading_and_of_the_remarks(report):
    notebook, names = report
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    shares = dict(re.findall(r"^\| ([A-Z][\w ]+) \| (\d+)% \|", COURSE, re.M))
    given = names["MARKS"]
    assert {part: str(share) for part, (share, _) in given.items()} == shares
    said = re.findall(r"\(([A-Z][\w ]+): (\d+) of (\d+)\.\)", text)
    assert {part: (int(share), int(mark)) for part, mark, share in said} == given
    assert 50 < names["total"] < 95, "neither perfect nor hopeless"


def test_the_report_says_what_its_records_show(report):
    """If records change so far that the marker's remarks are wrong, the sample needs new ones."""
    _, names = report
    assert names["answer"] == "yes" and names["shared"].high < 0
    for name in ("digits/random-encoder", "digits/mse"):
        assert names["by_seed"](names["entries"], name), "the remark says that it is on record"
    longer = names["by_seed"](names["entries"], names["DETACHED"], {"epochs": 128, "lr_drops": (32, 12)})
    assert longer, "the remark says that a run of twice the epochs is on record"


def test_it_is_stored_without_outputs_and_states_no_result_by_hand(report):
    notebook, _ = report
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
        else:
            assert not re.search(r"\d\.\d", cell.source)
