"""The tuning grid is the same for every method, and its choice is what the records say."""

import pytest
from example_records import example_record, put

from wmse.recipes import TABLE_1, get_recipe
from wmse.records import read_records
from wmse.reproduction.tuning import IMAGES, TUNED, chosen, scores, trials


def make(root, trial, linear=50.0, **keys):
    changes = {key: value for key, value in trial.changes.items() if key != "scored_on"}
    record = example_record(trial.name, 0, changes, {"linear_top1": linear}, scored_on="validation")
    return put(root, record | keys, f"tuning/{trial.method}-{trial.learning_rate}-{trial.value}")


def test_every_method_of_table_1_has_as_many_trials_of_equal_cost():
    assert set(TUNED) == set(TABLE_1)
    assert {len(trials(method)) for method in TUNED} == {6}
    views = set()
    for trial in (trial for method in TUNED for trial in trials(method)):
        named, changes = get_recipe(trial.name), trial.changes
        steps = IMAGES // named.batch_size * changes["epochs"]
        assert changes["warmup_steps"] == steps // 10
        views.add(steps * named.batch_size * named.positives)
    assert max(views) < 1.01 * min(views)


def test_the_best_trial_is_chosen_when_all_are_over(tmp_path):
    first, *others = trials("simclr")
    assert scores("simclr", []) == {} and chosen("simclr", []) is None
    make(tmp_path, first, status="failed", error="DivergenceError: the loss is NaN", metrics={})
    for number, trial in enumerate(others):
        entries, _ = read_records(tmp_path)
        assert len(scores("simclr", entries)) == 1 + number and chosen("simclr", entries) is None
        make(tmp_path, trial, 60.0 - (number - 2) ** 2)
    entries, _ = read_records(tmp_path)
    assert chosen("simclr", entries) == others[2] and scores("simclr", entries)[others[2]] == 60.0
    assert scores("simclr", entries)[first] == 0.0, "it broke down"
    assert scores("byol", entries) == {}


def test_scores_on_test_images_choose_nothing(tmp_path):
    for trial in trials("byol"):
        changes = {key: value for key, value in trial.changes.items() if key != "scored_on"}
        put(tmp_path, example_record(trial.name, 0, changes), f"{trial.learning_rate}-{trial.value}")
    assert scores("byol", read_records(tmp_path)[0]) == {}


def test_an_unknown_method_has_no_trials():
    with pytest.raises(KeyError):
        trials("mse")
