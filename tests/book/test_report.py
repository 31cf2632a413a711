"""The report's computed parts follow the records."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "book" / "tools"), str(ROOT / "tests")]

import report  # noqa: E402
from example_records import example_record, put  # noqa: E402


def parts(tmp_path):
    report.write_parts(tmp_path / "results", tmp_path / "stage")
    return [(tmp_path / "stage" / name).read_text() for name in (report.LEDGER, report.COMPUTE)]


def test_without_records_nothing_is_tested_and_nothing_was_spent(tmp_path):
    ledger, compute = parts(tmp_path)
    assert "holds |" not in ledger and ledger.count("| not yet tested | none |") == 4
    assert compute == "No run is on record yet.\n"


def test_verdicts_and_hours_come_from_the_records(tmp_path):
    for method, values in {"w-mse-4": (91, 91.2, 91.4), "w-mse-2": (90, 90.2, 90.4)}.items():
        for seed, value in enumerate(values):
            record = example_record(
                f"cifar10-200/{method}", seed, metrics={"linear_top1": value}, wall_seconds=7200
            )
            put(tmp_path / "results", record)
    ledger, compute = parts(tmp_path)
    assert "| More positives help. | ✓ holds | `cifar10-200` |" in ledger
    assert (
        "| Whitening avoids collapse. | not yet tested | none |" in ledger
        and "of 3 seeds MSE has none" in ledger
    )
    assert "| Example GPU | 6 | 12.0 |" in compute


@pytest.mark.parametrize("part", [report.LEDGER, report.COMPUTE])
def test_the_page_includes_them(part):
    assert f"```{{include}} {part}\n```" in (ROOT / "book" / "reproduction-report.md").read_text()
