"""Records say what ran, in valid JSON, whole or not at all."""

import json
from dataclasses import replace

import pytest
import torch

from wmse import records
from wmse.recipes import RECIPES, get_recipe

CPU = torch.device("cpu")


def test_a_record_says_what_ran():
    recipe = replace(get_recipe("digits/w-mse-2"), seed=3, epochs=5)
    record = records.start_record(
        "digits/w-mse-2", recipe, CPU, "python -m wmse train digits/w-mse-2 --seed 3"
    )
    assert record["overrides"] == {"seed": 3, "epochs": 5}
    assert record["recipe"]["views"]["hue"] == recipe.views.hue
    assert record["versions"]["torch"] == torch.__version__ and record["hardware"]["device"] == "cpu"
    assert {"name", "status", "command", "seed", "git", "package_sha256", "started"} <= set(record)


def test_writing_is_valid_json_with_null_for_what_json_lacks(tmp_path):
    records.write_record(tmp_path, {"a": float("nan"), "b": [float("inf"), 1.5], "c": (1, 2)})
    text = (tmp_path / "record.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": [None, 1.5], "c": [1, 2]}
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_a_failed_write_keeps_the_old_record(tmp_path):
    records.write_record(tmp_path, {"status": "running"})
    with pytest.raises(TypeError):
        records.write_record(tmp_path, {"status": object()})
    assert records.read_record(tmp_path) == {"status": "running"}


def test_a_folder_without_a_record_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        records.read_record(tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_record(name, tmp_path):
    records.write_record(tmp_path, records.start_record(name, get_recipe(name), CPU))
    assert records.recipe_of(records.read_record(tmp_path)) == get_recipe(name)


def test_metrics_are_appended_read_and_cut(tmp_path):
    assert records.read_metrics(tmp_path) == []
    for epoch in (1, 2, 3):
        records.append_metrics(tmp_path, {"epoch": epoch, "loss": epoch / 3})
    assert [row["loss"] for row in records.read_metrics(tmp_path)] == [1 / 3, 2 / 3, 1.0]
    records.cut_metrics(tmp_path, 2)
    assert [row["epoch"] for row in records.read_metrics(tmp_path)] == [1, 2]
    records.cut_metrics(tmp_path, 0)
    assert records.read_metrics(tmp_path) == []


def test_the_hash_is_of_the_sources(tmp_path, monkeypatch):
    package = tmp_path / "wmse"
    package.mkdir()
    (package / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(records, "__file__", str(package / "records.py"))
    first = records.package_hash()
    (package / "notes.txt").write_text("no source")
    assert records.package_hash() == first
    (package / "a.py").write_text("x = 2\n")
    assert records.package_hash() != first
    assert records._git() is None, "outside a checkout there is no commit"
