"""The queue of runs is what recipes and records make it, and results/QUEUE.md says the same."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from example_records import example_record, put

from wmse.__main__ import main
from wmse.recipes import RECIPES, TABLE_1, Recipe, get_recipe
from wmse.records import read_records
from wmse.reproduction.queue import (
    ON_A_GPU_FIRST,
    STAGES,
    QueuedRun,
    estimate,
    queue_markdown,
    speed,
    views_to_train,
    wanted,
)

ROOT = Path(__file__).resolve().parents[2]
EVERY_RUN = [run for stage in STAGES for run in stage.runs]
ONE_PER_SETTING = list({(run.name, run.changes): run for run in EVERY_RUN}.values())  # the last seed of each


def queue(root):
    entries, _ = read_records(root)
    return [queued for stage in STAGES for queued in wanted(stage, entries, root)]


def test_the_committed_queue_is_up_to_date(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["queue"]) == 0
    stale = "results/QUEUE.md is stale: run `python -m wmse queue --write` and commit it"
    assert capsys.readouterr().out == Path("results/QUEUE.md").read_text(encoding="utf-8"), stale


def test_every_run_is_a_recipe_and_wanted_once():
    assert len(EVERY_RUN) == len(set(EVERY_RUN))
    assert {run.name for run in EVERY_RUN} <= set(RECIPES)
    assert {f"cifar10/{method}" for method in TABLE_1} <= {run.name for run in EVERY_RUN}


def test_without_records_all_runs_are_listed_in_their_order(tmp_path):
    assert queue(tmp_path) == EVERY_RUN
    text = queue_markdown([], [], "results")
    commands = [line.split("`")[1] for line in text.splitlines() if line[:1].isdigit()]
    assert commands[:2] == list(ON_A_GPU_FIRST) and len(commands) == 2 + len(EVERY_RUN)
    command = "python -m wmse train cifar10-200/w-mse-2 --seed 0 --out results/cifar10-200/w-mse-2/seed-0"
    assert command in commands
    numbers = [int(line.split(".")[0]) for line in text.splitlines() if line[:1].isdigit()]
    assert numbers == list(range(1, len(commands) + 1))
    assert "no GPU" in text.split("## Table 1 on the laptop's rung")[1].split("##")[0]


@pytest.mark.parametrize("run", ONE_PER_SETTING)
def test_a_finished_run_leaves_the_list_and_no_other_does(run, tmp_path):
    changes = dict(run.changes)
    scored_on = changes.pop("scored_on", "test")
    put(tmp_path, example_record(run.name, run.seed, changes, scored_on=scored_on))
    assert queue(tmp_path) == [other for other in EVERY_RUN if other != run]


@pytest.mark.parametrize("run", [run for run in ONE_PER_SETTING if run.changes])
def test_the_command_of_a_changed_recipe_trains_it(run, tmp_path, monkeypatch):
    (queued,) = (queued for queued in queue(tmp_path) if queued == run)
    trained = []
    monkeypatch.setattr(
        "wmse.training.train", lambda *given, **named: trained.append((given, named)) or 1 / 0
    )
    assert main(shlex.split(queued.command)[3:]) == 2
    ((name, out), named), *_ = trained
    assert (name, out) == (run.name, queued.out)
    assert named["recipe"] == replace(run.recipe, seed=run.seed)
    assert named["validate"] == (("scored_on", "validation") in run.changes)


def test_precision_and_compilation_make_no_other_run(tmp_path):
    put(tmp_path, example_record(recipe={"precision": "float32", "compile": True}))
    assert QueuedRun("cifar10/w-mse-2", 0) not in queue(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"recipe": {"epochs": 20}}, {"limit": 512}, {"status": "obsolete"}, {"seed": 7}],
    ids=lambda changes: next(iter(changes)),
)
def test_another_rung_or_seed_or_an_obsolete_record_leaves_the_run_wanted(changes, tmp_path):
    taken = put(tmp_path, example_record(**changes), "cifar10/w-mse-2/seed-0")
    assert queue(tmp_path) == EVERY_RUN
    (queued,) = (queued for queued in queue(tmp_path) if queued == QueuedRun("cifar10/w-mse-2", 0))
    assert queued.out == taken.with_name("seed-0-2"), "the command must not meet another run's folder"
    assert "--resume" not in queued.command


@pytest.mark.parametrize("status", ["interrupted", "failed", "running"])
def test_a_run_that_was_stopped_is_resumed_where_it_lies(status, tmp_path):
    folder = put(tmp_path, example_record(status=status), "elsewhere")
    (queued,) = (queued for queued in queue(tmp_path) if queued == QueuedRun("cifar10/w-mse-2", 0))
    assert queued.out == folder and queued.command.endswith("--resume")
    assert f"its record says {status!r}" in queue_markdown(*read_records(tmp_path), tmp_path)


def test_a_run_that_broke_down_by_its_own_numbers_is_not_wanted_again(tmp_path):
    put(tmp_path, example_record(status="failed", error="DivergenceError: the loss is NaN near step 7"))
    assert QueuedRun("cifar10/w-mse-2", 0) not in queue(tmp_path)
    put(tmp_path, example_record("cifar10-200/simclr", 1, status="failed", error="OSError: the disk is full"))
    assert QueuedRun("cifar10-200/simclr", 1) in queue(tmp_path)


def test_a_broken_record_is_named(tmp_path):
    broken = put(tmp_path, example_record(status="done"))
    assert str(broken) in queue_markdown(*read_records(tmp_path), tmp_path)


def test_the_cost_in_views_is_of_whole_batches():
    assert views_to_train(get_recipe("cifar10/w-mse-2")) == 1000 * 97 * 512 * 2
    assert views_to_train(get_recipe("cifar10-cpu/w-mse-4")) == 20 * 195 * 256 * 4
    assert views_to_train(get_recipe("imagenet100/w-mse-4")) == 240 * 494 * 256 * 4
    assert views_to_train(get_recipe("cifar10-cpu/raw-pixels")) == 0
    assert views_to_train(get_recipe("cifar10-cpu/w-mse-2"), 0.9) == 20 * (45_000 // 512) * 512 * 2


def test_speeds_are_assumed_until_a_record_of_the_like_measured_one(tmp_path):
    recipe = get_recipe("cifar10/w-mse-2")
    assert speed(recipe, "cuda", []) == (50_000, "assumed")
    assert speed(get_recipe("stl10/w-mse-2"), "cuda", [])[0] == 50_000, "64 px, halved by pooling"
    assert speed(get_recipe("tiny-imagenet/w-mse-2"), "cuda", [])[0] == 50_000
    assert speed(get_recipe("imagenet100/w-mse-2"), "cuda", [])[0] == pytest.approx(50_000 / 3.0625)
    assert speed(Recipe(width=32), "cuda", [])[0] == 200_000
    assert speed(get_recipe("cifar10/w-mse-4"), "cuda", [])[0] == 47_000
    assert speed(get_recipe("cifar10/byol"), "cuda", [])[0] == 38_000
    assert speed(get_recipe("cifar10-cpu/mse"), "cpu", []) == (1_100, "assumed")

    put(tmp_path, example_record("cifar10-200/w-mse-2", views_per_second=50_000.0))
    put(tmp_path, example_record("cifar10-200/simclr", views_per_second=70_000.0))
    put(tmp_path, example_record("cifar10-cpu/mse", views_per_second=9e5))
    put(tmp_path, example_record("cifar10-200/byol", views_per_second=9e5, hardware={"device": "cpu"}))
    put(tmp_path, example_record("cifar10-200/mse", views_per_second=9e5, processes=8))
    put(tmp_path, example_record("cifar10-200/vicreg", views_per_second=9e5, status="failed"))
    entries, _ = read_records(tmp_path)
    measured, basis = speed(recipe, "cuda", entries)
    assert measured == 50_000 and "Example GPU" in basis and "cifar10-200/w-mse-2/seed-0" in basis
    assert speed(get_recipe("cifar10/byol"), "cuda", entries)[0] == 70_000, "the fastest of other methods"
    assert speed(get_recipe("stl10/w-mse-2"), "cuda", entries) == (50_000, "assumed")
    assert "Example GPU" in queue_markdown(entries, [], tmp_path)


def test_times_follow_from_views_and_speed(tmp_path):
    (queued,) = (queued for queued in queue(tmp_path) if queued == QueuedRun("cifar10/w-mse-2", 0))
    assert queued.seconds == queued.views / 50_000
    assert "99.3 million views, 33 min (assumed)" in queue_markdown([], [], "results")


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    put(tmp_path, example_record())
    assert main(["queue", "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert not (tmp_path / "QUEUE.md").exists()
    assert main(["queue", "--results", str(tmp_path), "--write"]) == 0
    assert (tmp_path / "QUEUE.md").read_text(encoding="utf-8") == printed
    assert main(["queue", "--results", str(tmp_path / "nowhere"), "--write"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_missing_run_is_shown_with_its_command_and_cost(tmp_path):
    text = estimate("cifar10/w-mse-2", "cuda", [])
    assert text == "`train cifar10/w-mse-2`, 33 min"
    text = estimate("cifar10/raw-pixels", "cpu", [])
    assert text == "`train cifar10/raw-pixels`", "nothing is trained"
