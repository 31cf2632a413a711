"""What pages say of the records follows the records: the landing table, the report, a page for each run."""

import gzip
import json
import re
import shutil
from pathlib import Path

import pages
import pytest
from example_records import example_record, parsed, put

from wmse import records
from wmse.figures import CLASS_COLOURS, METHOD_TITLES
from wmse.reproduction import ablations, claims
from wmse.reproduction.paper import paper_figure

ROOT = Path(__file__).resolve().parents[2]
CURVE = [
    {"epoch": epoch, "step": 97 * epoch, "loss": 1 / epoch, "effective_rank": 40.0 + epoch}
    for epoch in (1, 2, 3)
]


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def made(results, tmp_path):
    """A function that writes all pages anew; it returns their texts by name, and the names in order."""

    def write():
        stage = tmp_path / "stage"
        shutil.rmtree(stage, ignore_errors=True)
        names = pages.write(results, stage, [])
        texts = {path.relative_to(stage).as_posix(): path.read_text() for path in stage.rglob("*.md")}
        return {name.removesuffix(".md").removeprefix("book/"): text for name, text in texts.items()}, names

    return write


@pytest.mark.parametrize(
    ("page", "part"),
    [
        ("preface", pages.LANDING),
        ("preface", pages.FILM),
        ("reproduction-report", pages.LEDGER),
        ("reproduction-report", pages.COMPUTE),
        ("reproduction-report", pages.PROVENANCE),
        ("course", pages.TIMES),
        ("course", pages.COSTS),
    ],
)
def test_the_parts_stand_on_their_pages(page, part, made):
    assert f"```{{include}} {part}\n```" in (ROOT / "book" / f"{page}.md").read_text(encoding="utf-8")
    assert part.removesuffix(".md") in made()[0]


# The landing page's table never mixes measured with quoted.


@pytest.fixture
def landing(made):
    """A function that gives the table's header and its rows by method, as lists of cells, and its text."""

    def read():
        text = made()[0]["landing-results"]
        lines = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
        ]
        return lines[0][1:], {line[0]: line[1:] for line in lines[2:]}, text

    return read


def test_without_records_the_paper_stands_alone(landing):
    header, table, text = landing()
    assert [name.split(",")[0] for name in header] == ["ours", "paper"] and pages.NONE_YET in text
    assert list(table) == ["W-MSE 2", "W-MSE 4", "SimCLR", "BYOL"]
    for method in ("w-mse-2", "w-mse-4", "simclr", "byol"):
        ours, quoted = table[METHOD_TITLES[method]]
        assert ours == "no run yet"
        assert quoted == f"{paper_figure('cifar10', method, 'linear_top1').value:.2f}†"


def test_each_rung_has_a_column_and_seeds_are_averaged(landing, results):
    for seed, value in enumerate((70.0, 71.0)):
        put(results, example_record("cifar10-cpu/mse", seed, metrics={"linear_top1": value}))
    put(results, example_record("cifar10-200/w-mse-2", metrics={"linear_top1": 90.123}))
    header, table, text = landing()
    assert header == ["ours, 200 epochs", "ours, 20 epochs, slim network", "paper, quoted, 1000 epochs"]
    assert table["the same loss without whitening"] == ["no run yet", "70.50 ± 0.71 (2 seeds)", "none"]
    assert table["W-MSE 2"][:2] == ["90.12 (1 seed)", "no run yet"]
    assert pages.NONE_YET not in text


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
def test_runs_that_are_not_of_a_rung_are_not_shown(changes, landing, results):
    put(results, example_record(**{"metrics": {"linear_top1": 12.34}} | changes))
    _, table, text = landing()
    assert "12.34" not in text and table["W-MSE 2"][0] == "no run yet"


def test_the_landing_page_leads_on():
    page = (ROOT / "book" / "preface.md").read_text(encoding="utf-8")
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


def test_the_landing_pages_film_is_light_and_has_the_first_film_on_record(results, made):
    assert made()[0]["landing-film"] == "No film is on record yet.\n"
    shutil.copytree(ROOT / "results" / "film", results / "film")
    (results / "film" / "cifar10.json").unlink(missing_ok=True)
    text = made()[0]["landing-film"]
    film = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])
    whole = json.loads((results / "film" / "digits.json").read_text("utf-8"))
    assert film["colours"] == list(CLASS_COLOURS) and len(film["labels"]) == pages.FILM_IMAGES
    for name, run in film["runs"].items():
        for frame, full in zip(run["frames"], whole["runs"][name]["frames"], strict=True):
            assert frame["points"] == full["points"][: 2 * len(film["labels"])]
            assert {"epoch", "embedding_std", *film["facts"]} < set(frame)
    assert "of digits over 64 epochs," in text and len(gzip.compress(text.encode())) < 25_000
    assert re.search(r'<noscript><img src="../_static/landing-film.svg" alt="[^"]{40,}"></noscript>', text)
    picture = results.parent / "stage" / "book" / "_static" / "landing-film.svg"
    assert "<svg" in picture.read_text("utf-8") and picture.stat().st_size < 60_000
    (results / "film" / "cifar10.json").write_text(json.dumps(whole), "utf-8")
    assert "of CIFAR-10 over" in made()[0]["landing-film"], "the larger one comes first"


# The reproduction report.


def test_without_records_nothing_is_tested_and_nothing_was_spent(made):
    texts, _ = made()
    ledger = texts["report-ledger"]
    assert "holds |" not in ledger and ledger.count("| not yet tested | none |") == 4
    assert "At equal views, in batches of 64 images of `digits`: not yet tested." in ledger
    assert texts["report-compute"] == "No run is on record yet.\n"
    assert texts["report-provenance"].count("| 0 | 0 |") == len(claims.RULES)


def test_verdicts_and_hours_come_from_the_records(made, results):
    for method, values in {"w-mse-4": (91, 91.2, 91.4), "w-mse-2": (90, 90.2, 90.4)}.items():
        for seed, value in enumerate(values):
            metrics = {"linear_top1": value}
            put(results, example_record(f"cifar10-200/{method}", seed, metrics=metrics, wall_seconds=7200))
    texts, _ = made()
    ledger = texts["report-ledger"]
    assert "| More positives help. | ✓ holds | `cifar10-200` |" in ledger
    assert "| Whitening avoids collapse. | not yet tested | none |" in ledger
    assert "of 3 seeds MSE has none" in ledger
    assert "| Example GPU | 6 | 12.0 |" in texts["report-compute"]


def test_provenance_counts_the_runs_that_had_begun_and_those_that_had_finished(made, results):
    rule = claims.RULES[0]
    began = {"started": "2026-11-24T12:13:36+00:00", "finished": "2026-11-24T13:44:09+00:00"}
    put(results, example_record(**began))
    running = example_record(seed=1, started="2026-11-24T15:00:00+01:00", status="running")
    del running["finished"]
    put(results, running)
    row = f"| {rule.text} | `{rule.commit}` | 2026-11-24 13:29:03 UTC | 1 | 0 |"
    assert row in made()[0]["report-provenance"]
    assert "| 2 | 1 |" in made()[0]["report-provenance"], "the later rules"


def test_more_positives_are_shown_at_equal_views_too(made, results):
    two, *_, four, _ = ablations.ABLATIONS["positives"].settings
    for seed in range(3):
        for setting, value in ((two, 92.0), (four, 93.0)):
            metrics = {"linear_top1": value + 0.1 * seed}
            put(results, example_record(setting.name, seed, dict(setting.changes), metrics))
    ledger = made()[0]["report-ledger"]
    assert "4 positives less 2: +1.00 points, 95% interval +0.77 to +1.23, ahead" in ledger
    assert "after correction for all of these ahead" in ledger
    for seed, value in ((3, 60.0), (4, 61.0)):
        put(results, example_record(four.name, seed, dict(four.changes), {"linear_top1": value}))
    assert "unstable." in (ledger := made()[0]["report-ledger"]) and "after correction" not in ledger


def test_every_part_is_written_whichever_record_is_deleted(tmp_path, monkeypatch):
    """Of the records of the repository, with each recipe and change left out in turn."""
    entries, problems = records.read_records(ROOT / "results")
    monkeypatch.setattr(pages, "record_page", lambda *_: "")
    monkeypatch.setattr(pages, "draw_curve", lambda *_: None)
    settings = dict.fromkeys((entry.record.name, repr(entry.record.changes)) for entry in entries)
    for name, changes in settings:
        left = [e for e in entries if (e.record.name, repr(e.record.changes)) != (name, changes)]
        for part in (pages.landing, pages.ledger, pages.tuned, pages.compute, pages.provenance):
            assert part(left), name


# A page for each record.


def test_without_records_there_is_an_index_that_says_so(made):
    texts, names = made()
    assert names == [pages.INDEX] and pages.NO_PAGE_YET in texts["records/index"]


def test_a_page_shows_the_record_and_the_command(results, tmp_path, made):
    changes = {"epochs": 20, "normalize": False, "lr_drops": (4, 2)}
    put(results, example_record(recipe=changes, metrics={"linear_top1": 77.123}, curve=CURVE, limit=512))
    texts, names = made()
    name = "book/records/cifar10/w-mse-2/seed-0"
    assert names == [pages.INDEX, name]
    page = texts[name.removeprefix("book/")]
    command = (
        "python -m wmse train cifar10/w-mse-2 --seed 0 --epochs 20 --no-normalize --lr-drops 4 2 --limit 512"
    )
    assert all(part in page for part in command.split(" --"))
    assert "77.12" in page and "not computed" in page and "Example GPU" in page and "50 min" in page
    assert f"`{'0' * 12}`" in page and "9,000 MiB" in page and "normalize: false" in page
    assert (tmp_path / "stage" / f"{name}.svg").read_text().startswith("<?xml")
    assert "at the end 0.333 and 43.0" in page
    assert page.startswith("# cifar10/w-mse-2, normalize False, epochs 20, lr_drops 4 2, limit 512, seed 0\n")


def test_the_index_has_a_row_a_setting_and_every_seed_leads_to_its_page(results, made):
    put(results, example_record(metrics={"linear_top1": 91.0}))
    put(results, example_record(seed=1, status="failed"))
    put(results, example_record(recipe={"lr_drops": (4, 2)}, metrics={"linear_top1": 77.123}), "other")
    put(results, example_record("digits/mse", metrics={"linear_top1": 12.0}))
    put(results, example_record(metrics={"linear_top1": 13.0}) | {"name": "mine"}, "mine")
    texts, names = made()
    index = texts["records/index"]
    assert "## Under other names\n" in index and "| mine | [13.00](mine.md) |" in index
    assert "| w-mse-2 | [91.00](cifar10/w-mse-2/seed-0.md), [failed](cifar10/w-mse-2/seed-1.md) |" in index
    assert "| w-mse-2, lr drops 4 2 | [77.12](other.md) |" in index
    assert index.index("## cifar10\n") < index.index("## digits\n") < index.index("| mse | [12.00]")
    for link in re.findall(r"\]\((\S+)\.md\)", index):
        assert f"book/records/{link}" in names and f"records/{link}" in texts


def test_the_command_is_one_that_the_command_line_takes(tmp_path, monkeypatch):
    from wmse import __main__, training

    changes = {"epochs": 3, "iterations": 2, "whitening": "qr", "output_batchnorm": True}
    record = example_record(recipe=changes)
    seen = []

    def train(name, out, recipe, **_):
        seen.append((name, recipe))
        return put(tmp_path, record, "run")

    monkeypatch.setattr(training, "train", train)
    words = pages.command(parsed(record)).split()
    assert words[:4] == ["python", "-m", "wmse", "train"]
    monkeypatch.chdir(tmp_path)
    __main__.main([*words[3:], "--out", str(tmp_path / "run")])
    ((name, recipe),) = seen
    assert name == record["name"]
    assert {field: getattr(recipe, field) for field in changes} == changes


def test_a_deleted_record_has_no_page_and_a_broken_one_is_named(results, made):
    folder = put(results, example_record())
    put(results, example_record(seed=1))
    shutil.rmtree(folder)
    (results / "bad").mkdir()
    (results / "bad" / "record.json").write_text("{")
    texts, names = made()
    assert [name.rsplit("/", 1)[1] for name in names] == ["index", "seed-1"]
    assert "bad" in texts["records/index"] and "Broken" in texts["records/index"]


def test_an_interrupted_run_says_so(results, made):
    put(results, example_record(status="failed", error="DivergenceError: NaN"))
    assert "DivergenceError: NaN" in made()[0]["records/cifar10/w-mse-2/seed-0"]


def test_the_same_numbers_are_the_same_picture(tmp_path):
    for name in ("a.svg", "b.svg"):
        pages.draw_curve(CURVE, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_many_pictures_are_those_of_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "MANY", 2)
    curves = [CURVE, None, [row | {"loss": 2.0} for row in CURVE]]
    paths = [tmp_path / f"{number}.svg" for number in range(3)]
    assert pages.draw_curves(curves, paths) == [paths[0], None, paths[2]]
    for curve, path in zip(curves, paths, strict=True):
        drawn = path.read_bytes() if curve else None
        assert pages.draw_curve(curve, path) is None or path.read_bytes() == drawn


def test_markers_at_the_edge_of_a_curve_are_drawn_whole(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(pages, "_save_figure", lambda figure, path: shown.append(figure))
    ranks = zip(CURVE, (0, 1, 40), strict=True)
    pages.draw_curve([row | {"effective_rank": rank} for row, rank in ranks], tmp_path / "a.svg")
    for ax in shown[0].axes:
        assert not ax.lines[0].get_clip_on()
    assert shown[0].axes[1].get_ylim()[0] == 0 and shown[0].axes[1].get_ylim()[1] > 40
