"""Tables hold what records back, by rung and seed, beside what was published, and nothing else."""

import json
import shutil
from math import isnan

import pytest
from example_records import ACCURACIES, example_record, parsed, put

from wmse.__main__ import main
from wmse.figures import DATASET_TITLES, METHOD_TITLES
from wmse.recipes import RECIPES
from wmse.records import read_records
from wmse.reproduction.paper import FIGURES, LATER
from wmse.reproduction.tables import COLUMNS, OUTLINES, as_markdown, as_page, as_text, make_table, notes


def accuracies(linear, knn=88.0):
    return dict(zip(ACCURACIES, (linear, knn), strict=True))


def table(root, name="table-1"):
    return make_table(name, *read_records(root))


def scores(made, method="w-mse-2", dataset="cifar10", metric="linear_top1"):
    """The scores of a method by one metric that runs on record have, a row for each line of the table."""
    own = made.scores[(made.scores.method == method) & (made.scores.dataset == dataset)]
    return [score for score in own[own.metric == metric].itertuples() if score.seeds]


def lines(made, method="w-mse-2", dataset="cifar10"):
    """The lines of a method in the Markdown, as dicts by the header."""
    part = as_markdown(made).split(f"### {dataset}\n")[1].split("###")[0]
    cells = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")]
    return [dict(zip(COLUMNS, line, strict=True)) for line in cells if line[0] == method]


@pytest.mark.parametrize("name", OUTLINES)
def test_without_records_every_cell_says_so(name, tmp_path):
    made = table(tmp_path / "nowhere", name)
    assert not any(made.scores.seeds) and made.scores["mean"].isna().all()
    places = list(dict.fromkeys(zip(made.scores.dataset, made.scores.method, strict=True)))
    has_recipe = [f"{dataset}/{method}" in RECIPES for dataset, method in places]
    for (dataset, method), ours in zip(places, has_recipe, strict=True):
        (line,) = lines(made, method, dataset)
        assert line["ours"] == ("no run yet" if ours else "quoted only")
        assert {line[column] for column in COLUMNS[5:]} == {"-"}
    assert as_text(made).count("no run yet") == sum(has_recipe)


def test_a_run_fills_its_cell_and_deleting_it_empties_the_cell_again(tmp_path):
    empty = as_text(table(tmp_path))
    folder = put(tmp_path, example_record(metrics=accuracies(91.05, 89.99)))
    (score,) = scores(table(tmp_path))
    assert score.mean == 91.05 and isnan(score.deviation) and score.difference == pytest.approx(-0.5)
    (line,) = lines(table(tmp_path))
    assert line["ours"] == "91.05 / 89.99" and line["ours - paper"] == "-0.50 / +0.30"
    assert (line["rung"], line["seeds"]) == ("cifar10 (1000 epochs)", "1: 0")
    assert (line["scored on"], line["records"]) == ("10,000", str(folder))
    shutil.rmtree(folder)
    assert as_text(table(tmp_path)) == empty


def test_another_accuracy_gives_another_table(tmp_path):
    put(tmp_path, example_record(metrics=accuracies(91.0)))
    before = as_text(table(tmp_path)), as_markdown(table(tmp_path))
    put(tmp_path, example_record(metrics=accuracies(92.0)))
    after = as_text(table(tmp_path)), as_markdown(table(tmp_path))
    assert all("91.00" in text for text in before) and not any("91.00" in text for text in after)
    assert all("92.00" in text for text in after)


def test_seeds_are_averaged_with_the_deviation_of_the_sample(tmp_path):
    for seed, value in ((2, 90.0), (0, 91.0), (1, 92.0)):
        changes = {"precision": ("bfloat16", "float32", "auto")[seed], "compile": seed == 1}
        put(tmp_path, example_record(seed=seed, recipe=changes, metrics=accuracies(value)))
    (score,) = scores(table(tmp_path))
    assert score.seeds == (0, 1, 2) and (score.mean, score.deviation) == (91.0, 1.0)
    (line,) = lines(table(tmp_path))
    assert line["ours"] == "91.00 ± 1.00 / 88.00 ± 0.00" and line["seeds"] == "3: 0, 1, 2"
    assert line["records"].count("seed-") == 3


def test_different_rungs_are_never_averaged(tmp_path):
    runs = {
        "cifar10 (1000 epochs)": example_record(metrics=accuracies(1.0)),
        "cifar10 (1000 epochs), but batch_size 256, views.hue 0.4": None,
        "cifar10 (1000 epochs), but epochs 20": example_record(recipe={"epochs": 20}),
        "cifar10 (1000 epochs), but limit 512": example_record(limit=512),
        "cifar10-200 (200 epochs)": example_record("cifar10-200/w-mse-2"),
        "cifar10-200 (200 epochs), but lr_drops 4 2": None,
        "cifar10-cpu (20 epochs, width 16)": example_record("cifar10-cpu/w-mse-2"),
    }
    views = example_record()["recipe"]["views"] | {"hue": 0.4}
    changed = example_record(recipe={"batch_size": 256})
    changed["recipe"]["views"] = views
    runs["cifar10 (1000 epochs), but batch_size 256, views.hue 0.4"] = changed
    runs["cifar10-200 (200 epochs), but lr_drops 4 2"] = example_record(
        "cifar10-200/w-mse-2", recipe={"lr_drops": (4, 2)}
    )
    for number, (label, record) in enumerate(runs.items()):
        record["metrics"]["linear_top1"] = 10.0 + number
        assert parsed(record).budget_label == label
        put(tmp_path, record, f"run-{number}")
    measured = scores(table(tmp_path))
    assert [one.label for one in measured] == list(runs)
    assert [one.mean for one in measured] == [10.0 + n for n in range(len(runs))]
    assert [line["rung"] for line in lines(table(tmp_path))] == list(runs)
    assert all(f"{10 + n}.00" in as_text(table(tmp_path)) for n in range(len(runs)))


def test_runs_scored_on_different_numbers_of_images_are_not_averaged(tmp_path):
    for seed, images in ((0, 10_000), (1, 5_000)):
        record = example_record("tiny-imagenet/w-mse-2", seed, metrics=accuracies(48.7, 34.0), images=images)
        put(tmp_path, record)
    made = table(tmp_path)
    half, whole = scores(made, dataset="tiny-imagenet")
    assert (half.test, whole.test) == (5_000, 10_000)
    assert half.difference == pytest.approx(0.5) and not half.not_compared_because
    assert isnan(whole.difference) and "5,000" in whole.not_compared_because
    shown = {line["scored on"]: line["ours - paper"] for line in lines(made, dataset="tiny-imagenet")}
    assert shown == {"5,000": "+0.50 / -0.16", "10,000": "not compared"}
    assert all(whole.not_compared_because in text for text in (as_text(made), as_markdown(made)))


def test_of_two_runs_with_one_seed_the_later_counts_and_that_is_said(tmp_path):
    late = example_record(metrics=accuracies(80.0), finished="2026-01-03T00:00:00+02:00")
    early = example_record(metrics=accuracies(70.0), finished="2026-01-02T21:00:00+00:00")
    kept = put(tmp_path, late, "a")
    dropped = put(tmp_path, early, "b")
    made = table(tmp_path)
    (score,) = scores(made)
    assert score.mean == 80.0 and score.folders == (kept,)
    (remark,) = made.remarks
    assert str(dropped) in remark and "later run" in remark and remark in as_text(made)


@pytest.mark.parametrize("status", ["running", "failed", "interrupted", "obsolete"])
def test_only_finished_runs_count(status, tmp_path):
    folder = put(tmp_path, example_record(status=status))
    made = table(tmp_path)
    assert not scores(made) and lines(made)[0]["ours"] == "no run yet"
    assert made.remarks == (f"left out, {status}: {folder}",)


def test_a_broken_record_is_named_and_left_out(tmp_path):
    put(tmp_path, example_record(metrics=accuracies(90.0)))
    broken = put(tmp_path, example_record(seed=1, metrics=accuracies(900.0)))
    made = table(tmp_path)
    assert scores(made)[0].seeds == (0,)
    assert str(broken) in as_text(made) and "900.0" in as_text(made)


def test_a_run_under_a_foreign_name_or_on_another_set_stands_in_no_row(tmp_path):
    put(tmp_path, example_record() | {"name": "mine"}, "mine")
    put(tmp_path, example_record("digits/w-mse-2"))
    made = table(tmp_path)
    assert not any(made.scores.seeds)
    (remark,) = made.remarks
    assert "'mine'" in remark


def test_a_run_of_another_method_than_its_name_says_is_not_compared(tmp_path):
    record = example_record(recipe={"method": "mse"})
    put(tmp_path, record)
    (score,) = scores(table(tmp_path))
    assert parsed(record).changes == {"method": "mse"} and score.label.endswith(", but method mse")
    assert score.not_compared_because and isnan(score.difference)


def test_a_recipe_of_another_data_set_is_not_compared_with_that_sets_figures(tmp_path):
    put(tmp_path, example_record(recipe={"dataset": "cifar100"}))
    (score,) = scores(table(tmp_path), dataset="cifar100")
    assert score.not_compared_because and isnan(score.difference)


def test_runs_on_other_images_or_numbers_of_processes_are_not_averaged(tmp_path):
    part = {"train": 50_000, "probe": 1_000, "test": 10_000}
    for seed, changes in enumerate([{}, {"processes": 4}, {"images": part}]):
        put(tmp_path, example_record(seed=seed) | changes)
    measured = scores(table(tmp_path))
    assert sorted(one.seeds for one in measured) == [(0,), (1,), (2,)]
    assert any("processes 4" in one.label for one in measured)


def test_a_metric_that_some_seeds_lack_is_not_averaged(tmp_path):
    put(tmp_path, example_record())
    lacking = example_record(seed=1)
    del lacking["metrics"]["knn5_euclidean_top1"]
    put(tmp_path, lacking)
    made = table(tmp_path)
    (linear,), (knn,) = (scores(made, metric=metric) for metric in ACCURACIES)
    assert linear.mean == 91.0 and isnan(knn.mean)
    assert set(made.scores.metric) == set(ACCURACIES), "no metric that may be null"
    assert lines(table(tmp_path))[0]["ours"].endswith("/ not measured")


def test_marks_say_how_sure_a_figure_is_and_later_work_has_a_column_of_its_own(tmp_path):
    put(tmp_path, example_record("stl10/w-mse-4", images=8_000, metrics=accuracies(91.0)))
    made = table(tmp_path)
    (unread,) = lines(made, "w-mse-4", "stl10")
    assert (unread["paper"], unread["ours"], unread["ours - paper"]) == ("-", "91.00 / 88.00", "-")
    assert lines(made)[0]["paper"] == "91.55† / 89.69†" and lines(made)[0]["later work"] == "-"
    (later,) = lines(made, "cw-rgp-4")
    assert (later["paper"], later["later work"]) == ("-", "92.47† / 90.74†")
    (own,) = lines(made, "intl")
    assert (own["later work"], own["ours"]) == ("92.60†‡ / 90.03†‡", "quoted only")
    for made in (table(tmp_path), table(tmp_path, "imagenet-100")):
        for mark in ("† second-hand", "‡ in a protocol of its own"):
            assert mark in as_text(made) and mark in as_markdown(made)


def test_every_figure_of_the_paper_for_these_sets_is_shown(tmp_path):
    for name, outline in OUTLINES.items():
        shown = filter(None, table(tmp_path, name).scores.paper)
        assert set(shown) == {figure for figure in FIGURES if figure.dataset in outline.datasets}


def test_imagenet_100_shows_top_5(tmp_path):
    metrics = {"linear_top1": 77.0, "linear_top5": 93.0}
    put(tmp_path, example_record("imagenet100/w-mse-2", metrics=metrics, images=5_000))
    (line,) = lines(table(tmp_path, "imagenet-100"), dataset="imagenet100")
    assert line["ours"] == "77.00 / 93.00" and line["paper"] == line["ours - paper"] == "-"


def test_no_number_of_ours_is_without_a_record(tmp_path):
    """What stands under "ours" is in the records; the quoted columns do not change with them."""
    quoted = table(tmp_path).scores[["dataset", "method", "metric", "paper", "later"]]
    numbers = {}
    for index, name in enumerate(("cifar10/simclr", "cifar10/raw-pixels", "cifar100/vicreg", "stl10/byol")):
        numbers[name] = accuracies(10.0 + index, 20.0 + index)
        put(tmp_path, example_record(name, metrics=numbers[name]))
    made = table(tmp_path)
    assert made.scores[quoted.columns].equals(quoted)
    measured = made.scores[made.scores["mean"].notna()]
    assert all(measured.seeds) and len(measured) == len(numbers) * len(ACCURACIES)
    for score in measured.itertuples():
        assert score.mean == numbers[f"{score.dataset}/{score.method}"][score.metric]


def test_the_command_prints_text_or_markdown(tmp_path, capsys):
    folder = put(tmp_path, example_record())
    record = json.loads((folder / "record.json").read_text())
    assert main(["table", "table-1", "--results", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert f"{record['metrics']['linear_top1']:.2f}" in text and "Records below" in text
    assert main(["table", "table-1", "--results", str(tmp_path), "--markdown"]) == 0
    assert as_markdown(table(tmp_path)) in capsys.readouterr().out
    assert main(["table"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(OUTLINES)
    assert main(["table", "table-9"]) == 2
    told = capsys.readouterr().err
    assert all(name in told for name in ("table-9", *OUTLINES))


@pytest.mark.parametrize(
    ("linear", "recipe", "shown"),
    [
        ((90.8, 90.9, 91.0), {}, "-0.65 ✓"),
        ((90.4, 90.9, 91.1), {}, "-0.75"),  # its interval contains the limit
        ((89.4, 89.5, 89.6), {}, "-2.05 ✗"),
        ((90.55, 90.55, 90.55), {}, "-1.00 ✗"),
        ((99.0, 99.0), {}, "+7.45"),  # two seeds decide nothing
        ((99.0, 99.1, 99.2), {"epochs": 200}, "-"),  # another number of epochs is not compared
    ],
)
def test_a_figure_is_reached_where_the_interval_lies_above_its_limit_at_its_own_rung(
    linear, recipe, shown, tmp_path
):
    for seed, value in enumerate(linear):
        put(tmp_path, example_record(seed=seed, metrics=accuracies(value), recipe=recipe))
    (line,) = lines(table(tmp_path))
    assert line["ours - paper"].split(" / ")[0] == shown


@pytest.mark.parametrize("name", ["cifar10-200/w-mse-2", "cifar10-25/w-mse-2", "cifar10-cpu/w-mse-2"])
def test_no_difference_is_shown_between_different_budgets(name, tmp_path):
    for seed in range(3):
        put(tmp_path, example_record(name, seed, metrics=accuracies(60.0, 59.0)))
    made = table(tmp_path)
    (score,) = scores(made)
    assert score.paper and isnan(score.difference) and score.reached is None
    assert lines(made)[0]["ours - paper"] == "-" and "ours - paper |" not in page(made)


def page(made):
    return as_page(made, lambda folder, words: f"[{words}]({folder.name})", lambda name: f"train {name}")


def test_a_page_links_every_seed_and_says_how_to_make_what_is_missing(tmp_path):
    for seed, value in ((0, 91.0), (1, 92.0)):
        put(tmp_path, example_record(seed=seed, metrics=accuracies(value)))
    put(tmp_path, example_record("cifar10-cpu/w-mse-2", metrics=accuracies(60.0, 50.0)))
    text = page(table(tmp_path))
    (line,) = (line for line in text.split("### CIFAR-100")[0].splitlines() if line.startswith("| W-MSE 2 "))
    cells = line.strip("| ").split(" | ")
    assert "| method | paper | ours | ours - paper |\n" in text, "a column that would be empty is left out"
    assert cells[2] == "91.50 ± 0.71<br>88.00 ± 0.00<br>`cifar10`, 2 seeds: [0](seed-0), [1](seed-1)"
    assert [cells[1], cells[3]] == ["91.55†<br>89.69†", "-0.05<br>-1.69"]
    assert "|  |  | 60.00<br>50.00<br>`cifar10-cpu`, seed [0](seed-0) |  |" in text
    assert (
        "BYOL: train cifar10/byol; train cifar10-200/byol; train cifar10-25/byol; train cifar10-laptop/byol; "
        "train cifar10-cpu/byol" in text
    )
    others = ("cifar10-200", "cifar10-25", "cifar10-laptop")
    assert f"W-MSE 2: {'; '.join(f'train {one}/w-mse-2' for one in others)}\n" in text, "made on the others"
    assert "digits" not in text


def test_methods_without_a_run_are_folded_behind_the_others(tmp_path):
    put(tmp_path, example_record("cifar10/byol"))
    cifar10, cifar100 = page(table(tmp_path)).split("### CIFAR-100")
    shown, folded = cifar10.split("<details><summary>Without a run: SimCLR, W-MSE 2, ")
    assert [row.split(" | ")[0] for row in shown.splitlines() if row.startswith("|")][2:] == ["| BYOL"]
    assert "| SimCLR | 91.80†<br>88.42† | " in folded and "| BYOL |" not in folded
    assert cifar100.strip().startswith("No run yet.\n\n<details><summary>Quoted figures, and commands<")


def test_a_page_holds_what_the_whole_table_holds(tmp_path):
    put(tmp_path, example_record("cifar10/byol", recipe={"batch_size": 256}, metrics=accuracies(33.0)))
    for name in OUTLINES:
        made = table(tmp_path, name)
        text = page(made)
        for score in made.scores.itertuples():
            assert METHOD_TITLES[score.method] in text
            for figure in filter(None, (score.paper, score.later)):
                assert f"{figure.value:.2f}" in text and figure.source in text
        for note in notes(made):
            assert note.replace("|", "\\|") in text
    assert "33.00<br>88.00<br>`cifar10`, but batch_size 256, seed [0](seed-0)" in page(table(tmp_path))
    assert "BYOL: train cifar10/byol;" in page(table(tmp_path)), "a changed recipe leaves the cell to fill"


def test_every_method_and_data_set_has_a_name_for_prose():
    quoted = (*FIGURES, *LATER)
    tabled = {method for outline in OUTLINES.values() for method in outline.methods}
    assert tabled | {figure.method for figure in quoted} <= set(METHOD_TITLES)
    assert {recipe.dataset for recipe in RECIPES.values()} | {figure.dataset for figure in quoted} <= set(
        DATASET_TITLES
    )


def test_scores_on_validation_images_are_left_out(tmp_path):
    put(tmp_path, example_record(scored_on="validation"))
    made = table(tmp_path)
    assert not made.remarks and made.scores["mean"].isna().all()
