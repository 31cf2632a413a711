"""Records say what ran, in valid JSON, whole or not at all."""

import json
from dataclasses import replace
from enum import Enum
from typing import get_args

import pytest
import torch
from example_records import example_record, parsed, put

from wmse import records
from wmse.recipes import RECIPES, get_recipe
from wmse.records import BrokenRecordError

CPU = torch.device("cpu")


def test_a_record_says_what_ran(tmp_path):
    recipe = replace(get_recipe("digits/w-mse-2"), seed=3, epochs=5)
    command = "python -m wmse train digits/w-mse-2 --seed 3"
    record = records.start_record("digits/w-mse-2", recipe, CPU, command=command)
    assert record.recipe == recipe and record.changes == {"epochs": 5}
    assert record.versions["torch"] == torch.__version__ and record.hardware["device"] == "cpu"
    records.write_record(tmp_path, record)
    written = json.loads((tmp_path / "record.json").read_text())
    assert written["recipe"]["views"]["hue"] == recipe.views.hue and written["command"] == command
    keys = "name status recipe command seed git package_sha256 versions hardware started".split()
    assert list(written) == keys, "what is not known yet is not written"


def test_what_is_read_is_written_again(tmp_path):
    content = example_record(git=None, error="")
    folder = put(tmp_path, content)
    records.write_record(tmp_path, records.read_record(folder))
    assert json.loads((tmp_path / "record.json").read_text()) == content


def test_writing_is_valid_json_with_null_for_what_json_lacks(tmp_path):
    record = parsed(example_record())
    record.spectra = {"a": float("nan"), "b": [float("inf"), 1.5], "c": (1, 2)}
    records.write_record(tmp_path, record)
    written = json.loads((tmp_path / "record.json").read_text(), parse_constant=pytest.fail)
    assert written["spectra"] == {"a": None, "b": [None, 1.5], "c": [1, 2]}
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_a_failed_write_keeps_the_old_record(tmp_path):
    record = parsed(example_record())
    records.write_record(tmp_path, record)
    record.spectra = {"a": object()}
    with pytest.raises(TypeError):
        records.write_record(tmp_path, record)
    assert records.read_record(tmp_path) == parsed(example_record())


def test_a_folder_without_a_record_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        records.read_record(tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_record(name, tmp_path):
    records.write_record(tmp_path, records.start_record(name, get_recipe(name), CPU))
    assert records.read_record(tmp_path).recipe == get_recipe(name)


def test_metrics_are_read_as_they_were_written(tmp_path):
    assert records.read_metrics(tmp_path) == []
    rows = [{"epoch": epoch, "loss": epoch / 3} for epoch in (1, 2, 3)]
    for kept in (rows, rows[:2], []):
        records.write_metrics(tmp_path, kept)
        assert records.read_metrics(tmp_path) == kept
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("torn", ["epoch,lo", "epoch,loss\n1,0.5\n2", "epoch,loss\n1,0.5\n2,0.2", "\0" * 40])
def test_a_torn_table_is_named_not_read_in_part(torn, tmp_path):
    (tmp_path / "metrics.csv").write_text(torn)
    with pytest.raises(ValueError, match="metrics.csv is torn at line"):
        records.read_metrics(tmp_path)


MISSING = Enum("Absent", "KEY").KEY  # a member has the same name in every process of a test run
BROKEN = {  # dotted key -> values that it cannot have
    "name": [MISSING, 3],
    "status": [MISSING, "done", None],
    "scored_on": ["train", None],
    "recipe": [MISSING, "cifar10"],
    "recipe.colour": ["red"],
    "recipe.epochs": ["20", True, 20.5, None],
    "recipe.lr_drops": [50, [0.5]],
    "recipe.views": [[]],
    "recipe.views.hue": [0.9, "blue"],
    "recipe.views.size": ["32"],
    "recipe.views.crop_scale": [[0.2], [0.5, 0.2]],
    "seed": [MISSING, 1, "0", True],
    "git": [MISSING, "main"],
    "package_sha256": [MISSING],
    "versions": [MISSING, []],
    "hardware": [MISSING, "a computer"],
    "started": [MISSING, "yesterday", 2026, "2026-01-01"],
    "finished": [MISSING, "soon"],
    "metrics": [MISSING, [91.0]],
    "metrics.linear_top1": [100.1, -0.1, None, float("nan"), "91", True],
    "metrics.linear_top5": [101, None],
    "metrics.effective_rank_features": [-1.0, float("inf"), None],
    "metrics.something_new": [None, "good"],
    "steps": [MISSING, 1.5, -1],
    "train_seconds": [MISSING, -1.0],
    "wall_seconds": [MISSING, "long"],
    "precision": [MISSING, 16],
    "images": [MISSING, 10_000],
    "images.test": [MISSING, 0, 10.5],
    "limit": [-5, "few"],
    "peak_memory_mb": [MISSING, -2.0, float("nan")],
}


def changed(record, key, value):
    """The record with the dotted key set to the value, or without it."""
    *path, last = key.split(".")
    inner = record
    for part in path:
        inner = inner[part]
    inner.pop(last, None)
    if value is not MISSING:
        inner[last] = value
    return record


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in BROKEN.items() for value in values], ids=str
)
def test_a_broken_record_is_refused_with_file_key_and_value(key, value, tmp_path):
    put(tmp_path, changed(example_record(), key, value), "run")
    with pytest.raises(BrokenRecordError) as caught:
        records.read_record(tmp_path / "run")
    told = str(caught.value)
    assert str(tmp_path / "run" / "record.json") in told and key.split(".")[0] in told
    assert ("lacks" if value is MISSING else key.split(".")[-1]) in told
    # A view setting out of range is told of in ViewSettings' words.
    assert value is MISSING or repr(value) in told or value == [0.5, 0.2]


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"name": "\xff"}'])
def test_what_is_no_record_at_all_is_refused(text, tmp_path):
    (tmp_path / "record.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BrokenRecordError, match="record.json"):
        records.read_record(tmp_path)


@pytest.mark.parametrize("status", get_args(records.Status))
def test_only_a_finished_run_must_have_results(status):
    record = changed(example_record(status=status), "metrics", MISSING)
    if status == "finished":
        with pytest.raises(BrokenRecordError, match="metrics"):
            parsed(record)
    else:
        assert parsed(record).metrics == {}


def test_null_stands_for_what_was_not_computed_and_whole_numbers_for_floats():
    nulls = {"cca_dimensions": None, "uniformity_whitened": None}
    record = parsed(example_record(metrics=nulls | {"linear_top1": 91}, git=None, views_per_second=None))
    assert record.metrics["linear_top1"] == 91 and record.metrics["cca_dimensions"] is None


def test_an_older_record_takes_todays_defaults_for_fields_it_lacks():
    record = example_record(recipe={"vicreg_weights": (1.0, 2.0, 3.0)})
    assert parsed(record).recipe.vicreg_weights == (1.0, 2.0, 3.0)
    for key in ("recipe.vicreg_weights", "recipe.groups", "recipe.views.blur_radius"):
        changed(record, key, MISSING)
    record["overrides"] = {"epochs": 20}  # a key that records had once
    assert parsed(record).recipe == get_recipe("cifar10/w-mse-2")


@pytest.mark.parametrize("root", ["nowhere", "empty"])
def test_where_there_are_no_records_none_are_read(root, tmp_path):
    (tmp_path / "empty").mkdir()
    assert records.read_records(tmp_path / root) == ([], [])


def test_reading_all_names_the_broken_ones_and_leaves_them_out(tmp_path):
    good = [put(tmp_path, example_record(seed=seed)) for seed in (1, 0)]
    broken = put(tmp_path, example_record(seed=2, status="done"))
    (broken.with_name("seed-3") / "record.json").mkdir(parents=True)
    entries, problems = records.read_records(tmp_path)
    assert [entry.folder for entry in entries] == sorted(good)
    assert [entry.record.seed for entry in entries] == [0, 1]
    assert len(problems) == 2 and str(broken) in problems[0] and "'done'" in problems[0]


def test_a_folder_is_free_until_a_run_lies_in_it(tmp_path):
    first = tmp_path / "seed-0"
    assert records.free_folder(first) == records.free_folder(first, resume=True) == first
    put(tmp_path, example_record(), "seed-0")
    assert records.free_folder(first) == tmp_path / "seed-0-2"
    (tmp_path / "seed-0-2").mkdir()
    assert records.free_folder(first) == tmp_path / "seed-0-2"
    (tmp_path / "seed-0-2" / "checkpoint.pt").touch()
    assert records.free_folder(first) == tmp_path / "seed-0-3"
    assert records.free_folder(first, resume=True) == tmp_path / "seed-0-2"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function that puts the package where pip would, or into a checkout; we work elsewhere."""

    def put_package(checkout: bool):
        package = tmp_path / "place" / "wmse"
        package.mkdir(parents=True)
        (package.parent / "results").mkdir()
        if checkout:
            (package.parent / "pyproject.toml").touch()
        monkeypatch.setattr(records, "__file__", str(package / "records.py"))

    elsewhere = tmp_path / "project" / "notebooks"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    monkeypatch.delenv("WMSE_RESULTS", raising=False)
    return put_package


def test_results_are_those_of_the_checkout_wherever_one_stands(installed, tmp_path, monkeypatch, capsys):
    installed(checkout=True)
    (tmp_path / "project" / "results").mkdir()
    for place, expected in [("project/notebooks", "../../place/results"), ("place", "results")]:
        monkeypatch.chdir(tmp_path / place)
        assert str(records.results_folder()) == expected
    assert not capsys.readouterr().out


def test_results_beside_an_installed_package_are_not_ours_but_those_above_are(installed, tmp_path):
    installed(checkout=False)
    (tmp_path / "results").mkdir()
    assert str(records.results_folder()) == "../../results"
    (tmp_path / "project" / "results").mkdir()
    assert str(records.results_folder()) == "../results", "the nearest"


def test_without_results_a_sentence_says_where_they_are(installed, capsys):
    installed(checkout=False)
    assert records.read_records(records.results_folder()) == ([], [])
    assert "$WMSE_RESULTS" in capsys.readouterr().out


def test_the_environment_chooses_the_results_and_must_name_a_folder(installed, tmp_path, monkeypatch):
    installed(checkout=True)
    put(tmp_path / "mine", example_record())
    monkeypatch.setenv("WMSE_RESULTS", str(tmp_path / "mine"))
    assert len(records.read_records(records.results_folder())[0]) == 1
    monkeypatch.setenv("WMSE_RESULTS", str(tmp_path / "gone"))
    with pytest.raises(NotADirectoryError, match="gone"):
        records.results_folder()


def test_the_copy_beside_exported_networks_is_not_a_second_run(tmp_path):
    put(tmp_path, example_record())
    put(tmp_path, example_record(), "encoders/cifar10-w-mse-2")
    entries, problems = records.read_records(tmp_path)
    assert [entry.folder for entry in entries] == [tmp_path / "cifar10/w-mse-2/seed-0"] and not problems
    assert len(records.read_records(tmp_path / "encoders")[0]) == 1, "asked for by its folder"
