"""Each record has a page that says what was run and runs it again; a deleted one has none."""

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "book" / "tools"), str(ROOT / "tests")]

import record_pages  # noqa: E402
from example_records import example_record, put  # noqa: E402

CURVE = [
    {"epoch": epoch, "step": 97 * epoch, "loss": 1 / epoch, "effective_rank": 40.0 + epoch}
    for epoch in (1, 2, 3)
]


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


def pages(results, tmp_path):
    stage = tmp_path / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    names = record_pages.write_pages(results, stage)
    return {name: (stage / f"{name}.md").read_text() for name in names}


def test_without_records_there_is_an_index_that_says_so(results, tmp_path):
    made = pages(results, tmp_path)
    assert list(made) == [record_pages.INDEX] and record_pages.NONE_YET in made[record_pages.INDEX]


def test_a_page_shows_the_record_and_the_command(results, tmp_path):
    changes = {"epochs": 20, "normalize": False, "lr_drops": (4, 2)}
    put(results, example_record(recipe=changes, metrics={"linear_top1": 77.123}, curve=CURVE, limit=512))
    made = pages(results, tmp_path)
    name = "book/records/cifar10/w-mse-2/seed-0"
    assert list(made) == [record_pages.INDEX, name]
    page = made[name]
    command = (
        "python -m wmse train cifar10/w-mse-2 --seed 0 --epochs 20 --no-normalize --lr-drops 4 2 --limit 512"
    )
    assert all(part in page for part in command.split(" --"))
    assert "77.12" in page and "not computed" in page and "Example GPU" in page and "50 min" in page
    assert f"`{'0' * 12}`" in page and "9,000 MiB" in page and "normalize: false" in page
    assert (tmp_path / "stage" / f"{name}.svg").read_text().startswith("<?xml")
    assert "at the end 0.333 and 43.0" in page
    assert page.startswith("# cifar10/w-mse-2, normalize False, epochs 20, lr_drops 4 2, limit 512, seed 0\n")


def test_the_index_has_a_row_a_setting_and_every_seed_leads_to_its_page(results, tmp_path):
    put(results, example_record(metrics={"linear_top1": 91.0}))
    put(results, example_record(seed=1, status="failed"))
    put(results, example_record(recipe={"lr_drops": (4, 2)}, metrics={"linear_top1": 77.123}), "other")
    put(results, example_record("digits/mse", metrics={"linear_top1": 12.0}))
    put(results, example_record(metrics={"linear_top1": 13.0}) | {"name": "mine"}, "mine")
    index = pages(results, tmp_path)[record_pages.INDEX]
    assert "## Under other names\n" in index and "| mine | [13.00](mine.md) |" in index
    assert "| w-mse-2 | [91.00](cifar10/w-mse-2/seed-0.md), [failed](cifar10/w-mse-2/seed-1.md) |" in index
    assert "| w-mse-2, lr drops 4 2 | [77.12](other.md) |" in index
    assert index.index("## cifar10\n") < index.index("## digits\n") < index.index("| mse | [12.00]")


def test_the_command_is_one_that_the_command_line_takes(results, tmp_path, monkeypatch):
    from wmse import __main__, training

    changes = {"epochs": 3, "iterations": 2, "whitening": "qr", "output_batchnorm": True}
    record = example_record(recipe=changes)
    seen = []

    def train(name, out, recipe, **_):
        seen.append((name, recipe))
        return put(tmp_path, record, "run")

    monkeypatch.setattr(training, "train", train)
    words = record_pages._command(record).split()
    assert words[:4] == ["python", "-m", "wmse", "train"]
    monkeypatch.chdir(tmp_path)
    __main__.main([*words[3:], "--out", str(tmp_path / "run")])
    ((name, recipe),) = seen
    assert name == record["name"]
    assert {field: getattr(recipe, field) for field in changes} == changes


def test_a_deleted_record_has_no_page_and_a_broken_one_is_named(results, tmp_path):
    folder = put(results, example_record())
    put(results, example_record(seed=1))
    shutil.rmtree(folder)
    (results / "bad").mkdir()
    (results / "bad" / "record.json").write_text("{")
    made = pages(results, tmp_path)
    assert [name.rsplit("/", 1)[1] for name in made] == ["index", "seed-1"]
    assert "bad" in made[record_pages.INDEX] and "Broken" in made[record_pages.INDEX]


def test_an_interrupted_run_says_so(results, tmp_path):
    record = example_record(status="failed", error="DivergenceError: NaN")
    put(results, record)
    assert "DivergenceError: NaN" in list(pages(results, tmp_path).values())[1]


def test_the_same_numbers_are_the_same_picture(tmp_path):
    for name in ("a.svg", "b.svg"):
        record_pages.draw_curve(CURVE, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
