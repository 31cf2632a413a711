"""The landing page's table follows the records, and never mixes measured with quoted."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "book" / "tools"), str(ROOT / "tests")]

import landing  # noqa: E402
from example_records import example_record, put  # noqa: E402

from wmse.figures import METHOD_TITLES  # noqa: E402
from wmse.reproduction.paper import paper_figure  # noqa: E402


@pytest.fixture
def rows(tmp_path):
    """A function that gives the table's header and its rows by method, as lists of cells."""

    def read():
        landing.write_part(tmp_path / "results", tmp_path / "stage")
        text = (tmp_path / "stage" / landing.RESULTS).read_text()
        lines = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
        ]
        return lines[0][1:], {line[0]: line[1:] for line in lines[2:]}, text

    return read


def test_without_records_the_paper_stands_alone(rows):
    header, table, text = rows()
    assert [name.split(",")[0] for name in header] == ["ours", "paper"] and landing.NONE_YET in text
    assert list(table) == ["W-MSE 2", "W-MSE 4", "SimCLR", "BYOL"]
    for method in ("w-mse-2", "w-mse-4", "simclr", "byol"):
        ours, quoted = table[METHOD_TITLES[method]]
        assert ours == "no run yet"
        assert quoted == f"{paper_figure('cifar10', method, 'linear_top1').value:.2f}†"


def test_each_rung_has_a_column_and_seeds_are_averaged(rows, tmp_path):
    for seed, value in enumerate((70.0, 71.0)):
        put(tmp_path / "results", example_record("cifar10-cpu/mse", seed, metrics={"linear_top1": value}))
    put(tmp_path / "results", example_record("cifar10-200/w-mse-2", metrics={"linear_top1": 90.123}))
    header, table, text = rows()
    assert header == ["ours, 200 epochs", "ours, 20 epochs, slim network", "paper, quoted, 1000 epochs"]
    assert table["the same loss without whitening"] == ["no run yet", "70.50 ± 0.71 (2 seeds)", "none"]
    assert table["W-MSE 2"][:2] == ["90.12 (1 seed)", "no run yet"]
    assert landing.NONE_YET not in text


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": {"epochs": 20}},
        {"images": 5_000},
        {"limit": 512},
        {"status": "failed", "error": "DivergenceError: NaN"},
        {"name": "cifar10/w-mse-2-detached"},
    ],
)
def test_runs_that_are_not_of_a_rung_are_not_shown(changes, rows, tmp_path):
    put(tmp_path / "results", example_record(**{"metrics": {"linear_top1": 12.34}} | changes))
    _, table, text = rows()
    assert "12.34" not in text and table["W-MSE 2"][0] == "no run yet"


def test_the_page_has_the_table_and_ways_on():
    page = (ROOT / "book" / "preface.md").read_text(encoding="utf-8")
    assert f"```{{include}} {landing.RESULTS}\n```" in page
    for part in (
        "01_first_run.ipynb",
        "make book",
        "make test",
        "colab.research.google.com",
        "Not published yet",
    ):
        assert part in page
    for link in ("09_tables.ipynb", "reproduction-report.md#ledger-of-claims", "howto.md"):
        assert link in page
