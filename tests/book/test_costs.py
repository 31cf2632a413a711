"""Times in chapters and pages agree with the speeds on record and in the queue, and chapters share runs."""

import ast
import json
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

from wmse.recipes import get_recipe
from wmse.records import read_records
from wmse.reproduction import queue

ROOT = Path(__file__).resolve().parents[2]
METHODS = {  # what each chapter trains
    "01_first_run": ["w-mse-2"],
    "02_collapse": ["mse", "w-mse-2"],
    "05_training": ["mse", "w-mse-2"],
    "06_evaluating": ["mse", "w-mse-2"],
    "07_scattering": ["mse", "w-mse-2"],
    "08_baselines": ["w-mse-2", "simclr", "byol", "mse"],
    "10_ablations": ["w-mse-2"],  # in a loop of its own: it trains a classifier beside the encoder
    "12_family": ["w-mse-2", "simclr", "supervised"],
}
SUPERVISED = {
    "06_evaluating": 5
}  # networks that a chapter trains besides, for a number of steps that it names
DEVICES = {"smoke": "two processor cores", "colab": "a T4", "paper": "a large GPU"}
T4 = 3_000  # views a second of ResNet-18 on a T4: assumed, as the queue's speeds are
BESIDES = {
    "smoke": 0.5,
    "colab": 5,
    "paper": 2,
}  # minutes: imports, installation, evaluation, figures; assumed
IN_WORDS = {"a minute": 1, "two minutes": 2}


def chapter(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def budgets(name):
    """By profile: the recipes that a chapter trains, with their changes, and its supervised steps."""
    [cell] = [cell for cell in chapter(name).cells if "CHANGES = {" in cell.source]
    [table] = [
        ast.literal_eval(node.value)
        for node in ast.parse(cell.source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CHANGES"
    ]
    found = {}
    for profile, (base, changes, *steps) in table.items():
        dataset = base.split("/")[0]
        recipes = {f"{dataset}/{method}": changes for method in METHODS[name]}
        if profile == "smoke" and name == "12_family":
            recipes["digits/supervised"] = {"epochs": 5, "lr_drops": (2, 1)}  # as in its cell
        found[profile] = recipes, steps[0] if steps else 0
    return found


def minutes(name, profile, entries):
    """What a chapter costs, by the speeds on record or assumed."""
    recipes, steps = budgets(name)[profile]
    device = "cpu" if profile == "smoke" else "cuda"
    seconds = 0.0
    for recipe_name, changes in recipes.items():
        recipe = replace(get_recipe(recipe_name), **changes)
        per_second = T4 if profile == "colab" else queue.speed(recipe, device, entries)[0]
        seconds += queue.views_to_train(recipe) / per_second
        more = steps * recipe.batch_size * SUPERVISED.get(name, 0) / len(recipes)
        seconds += more / per_second
    return seconds / 60 + BESIDES[profile]


@pytest.fixture(scope="module")
def entries():
    return read_records(ROOT / "results")[0]


def stated(name):
    """By profile, the minutes that a chapter's first cell states."""
    [line] = [line for line in chapter(name).cells[0].source.splitlines() if line.startswith("**Time")]
    found = re.findall(
        r"`(\w+)`: (?:[^`.]*, )?about ([\w ]+?) on (two processor cores|a T4|a large GPU)", line
    )
    assert {profile: device for profile, _, device in found} == DEVICES, line
    numbers = {time: re.fullmatch(r"(\d+) minutes", time) for _, time, _ in found}
    return {p: int(numbers[time][1]) if numbers[time] else IN_WORDS[time] for p, time, _ in found}


@pytest.mark.parametrize("name", METHODS)
def test_a_chapter_states_what_its_runs_cost(name, entries):
    for profile, given in stated(name).items():
        reckoned = minutes(name, profile, entries)
        assert 0.6 < given / reckoned < 1.7, f"{profile}: {given} min stated, {reckoned:.1f} min reckoned"


def test_the_chapters_that_train_are_those_named():
    named = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb") if "train_all(" in path.read_text()}
    assert named == set(METHODS) - {"10_ablations"}


def test_pages_state_what_the_chapters_state():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    howto = (ROOT / "book" / "howto.md").read_text(encoding="utf-8")
    all_stated = [stated(name) for name in METHODS]
    for page in (readme, howto):
        for profile in ("colab", "paper"):
            [row] = re.findall(rf"^\| `{profile}`.*$", page, re.MULTILINE)
            low, high = map(int, re.search(r"(\d+) to (\d+) minutes per chapter", row).groups())
            assert [low, high] == [pick(one[profile] for one in all_stated) for pick in (min, max)], row


def test_a_single_run_costs_what_the_readme_states(entries):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"train digits/w-mse-2 +# a minute on two cores", readme)
    seconds = queue.cost(get_recipe("digits/w-mse-2"), "cpu", entries)["seconds"]
    assert 35 < seconds < 100


def test_chapters_share_most_of_their_runs():
    """A smoke build asks for many runs and trains few, because budgets agree between chapters."""
    asked = [
        (recipe, *sorted(changes.items()))
        for name in METHODS
        if name != "10_ablations"
        for recipe, changes in budgets(name)["smoke"][0].items()
    ]
    assert len(asked) == 16 and len(set(asked)) == 7
    views = sum(queue.views_to_train(replace(get_recipe(n), **dict(changes))) for n, *changes in set(asked))
    assert views < 500_000


def test_the_build_takes_what_the_readme_states(entries):
    """Of the latest measurement of `make bench`; the laptop's budget by the queue."""
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    rows = json.loads((ROOT / "benchmarks/results/amd-epyc-2-cores/book.json").read_text())["rows"]
    measured = {row["what"]: row["seconds"] / 60 for row in rows}
    assert "`make book` takes about six minutes" in readme
    assert "If nothing has changed, a second `make book` takes under a minute." in readme
    assert 0.6 < 6 / measured["the book, from nothing"] < 1.7
    assert measured["the book, nothing changed"] < 1
    assert "half an hour to two hours on two cores, depending on the processor (`cifar10-laptop/`)" in readme
    seconds = queue.cost(get_recipe("cifar10-laptop/w-mse-2"), "cpu", entries)["seconds"]
    assert 30 / 1.7 < seconds / 60 < 120 / 0.6


@pytest.mark.parametrize("name", ["03_whitening", "04_loss", "11_numerics"])
def test_a_chapter_that_trains_nothing_states_what_the_latest_build_on_record_took(name):
    rows = json.loads((ROOT / "benchmarks/results/amd-epyc-2-cores/book.json").read_text())["rows"]
    [measured] = [row["seconds"] for row in rows if row["what"] == f"chapter {name}"]
    [given] = re.findall(r"about (\d+) seconds", chapter(name).cells[0].source.partition("(`smoke`)")[0])
    assert 0.6 < int(given) / measured < 1.7, f"{given} s stated, {measured:.1f} s on record"
