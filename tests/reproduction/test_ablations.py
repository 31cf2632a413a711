"""Ablations change one choice at a time, and read from records what it did."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from example_records import example_record, parsed, put

from wmse.recipes import SOLO_LEARN, get_recipe
from wmse.records import read_records
from wmse.reproduction.ablations import ABLATIONS, BASE, SEEDS, compare, corrected_sides, three_w_mses
from wmse.reproduction.claims import CLAIMS
from wmse.reproduction.queue import views_to_train
from wmse.training import check_recipe

THREE = {rung: three_w_mses(rung) for rung in ("digits", "cifar10-cpu", "cifar10")}
EVERY = ABLATIONS | THREE
SETTINGS = [setting for ablation in EVERY.values() for setting in ablation.settings]


def record_of(setting, seed=0, accuracy=80.0, **changes):
    changes = {"metrics": {"linear_top1": accuracy}, **changes}
    return example_record(setting.name, seed, dict(setting.changes), **changes)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.label)
def test_each_setting_can_start_and_is_what_a_record_of_it_departs_by(setting):
    check_recipe(replace(get_recipe(setting.name), **setting.changes), torch.device("cpu"))
    assert parsed(record_of(setting)).changes == setting.changes


def test_labels_are_unique_and_other_choices_are_left_alone():
    told = {
        "positives": {"positives", "epochs", "lr_drops"},
        "slice size": {"slice_size", "whitening", "normalize"},
    }
    told["second view"] = {"detach_second", "epochs", "lr_drops"}
    told["longer"] = {"iterations", "whitening", "detach_second"}
    told["embedding"] = {"embedding_dim", "slice_size"}
    told["no projector"] = {"projector_layers", "embedding_dim", "slice_size"}
    for key, ablation in EVERY.items():
        labels = [setting.label for setting in ablation.settings]
        assert len(set(labels)) == len(labels) > 1
        if key in THREE:
            continue  # each a recipe of its own
        recipes = [vars(replace(get_recipe(s.name), **s.changes)) for s in ablation.settings]
        changed = {field for recipe in recipes for field in recipe if recipe[field] != recipes[0][field]}
        assert changed <= told.get(key, changed) and (key in told or len(changed) == 1), key
    for rung, ablation in THREE.items():
        names = [setting.name for setting in ablation.settings]
        assert names == [f"{rung}/w-mse-2", *(f"{rung}/w-mse-2-{name}" for name in SOLO_LEARN)]


def test_positives_are_compared_at_equal_views():
    settings = ABLATIONS["positives"].settings
    recipes = [replace(get_recipe(setting.name), **setting.changes) for setting in settings]
    assert [recipe.positives for recipe in recipes] == [2, 3, 4, 8]
    views = [views_to_train(recipe) for recipe in recipes]
    assert max(views) / min(views) < 1.01
    assert {recipe.batch_size for recipe in recipes} == {64}
    shares = [drop / recipe.epochs for recipe in recipes for drop in recipe.lr_drops[:1]]
    assert shares == pytest.approx([0.25] * 4, abs=0.01)


def test_values_are_of_finished_runs_of_just_that_setting_the_last_of_a_seed(tmp_path):
    cosine, euclidean = ABLATIONS["distance"].settings
    for seed in SEEDS:
        put(tmp_path, record_of(cosine, seed, 80.0 + seed), f"a/{seed}")
        put(tmp_path, record_of(euclidean, seed, 70.0 + seed), f"b/{seed}")
    put(tmp_path, record_of(euclidean, 0, 60.0, finished="2026-01-02T00:00:00+00:00"), "again")
    put(tmp_path, record_of(euclidean, 5, 10.0, status="interrupted"), "stopped")
    put(tmp_path, example_record(BASE, 6, {"normalize": False, "epochs": 3}), "other")
    put(tmp_path, record_of(euclidean, 7, limit=512), "limited")
    first, second = compare(ABLATIONS["distance"], read_records(tmp_path)[0])
    assert first.values == {0: 80, 1: 81, 2: 82} and first.lead is None
    assert second.values == {0: 60, 1: 71, 2: 72}
    assert second.lead.difference == pytest.approx(203 / 3 - 81)
    assert second.lead.low < second.lead.difference < second.lead.high


def test_a_run_that_broke_down_is_an_outcome_unless_a_later_one_finished(tmp_path):
    cosine, euclidean = ABLATIONS["distance"].settings
    error = "SingularCovarianceError: the covariance of slice (0, 0, 0) cannot be factorised"
    failed = {"status": "failed", "error": error}
    for seed in SEEDS:
        record = record_of(cosine, seed, **failed, finished="2026-01-03T00:00:00+00:00")
        del record["metrics"]
        put(tmp_path, record, f"a/{seed}")
    put(tmp_path, record_of(cosine, 1, 81.0), "a/1-2")
    put(tmp_path, record_of(euclidean, 0, status="failed", error="OSError: the disk is full"), "b")
    first, second = compare(ABLATIONS["distance"], read_records(tmp_path)[0])
    assert first.values == {1: 81} and first.breakdowns == {0: error, 2: error}
    assert second.values == second.breakdowns == {} and second.lead is None


@pytest.mark.parametrize("ablation", EVERY.values(), ids=list(EVERY))
def test_without_records_there_is_nothing_to_compare(ablation):
    assert [(found.values, found.lead) for found in compare(ablation, [])] == [({}, None)] * len(
        ablation.settings
    )


def test_every_run_on_digits_that_is_on_record_is_shown_by_an_ablation_or_decides_a_claim():
    entries, problems = read_records(Path(__file__).resolve().parents[2] / "results")
    shown = [setting for ablation in EVERY.values() for setting in ablation.settings]
    on_test = [entry for entry in entries if entry.record.scored_on == "test"]  # the others chose a setting
    for entry in (entry for entry in on_test if entry.record.name.startswith("digits/")):
        held = entry.record.name, entry.record.changes
        if held == ("digits/lejepa", {}):  # in chapter 12's table
            continue
        in_ledger = any(held == (f"digits/{method}", {}) for claim in CLAIMS for method in claim.methods)
        assert in_ledger or any(held == (setting.name, setting.changes) for setting in shown), entry.folder
    assert not problems


def test_there_is_no_verdict_below_three_seeds_nor_on_those_that_survived(tmp_path):
    cosine, euclidean = ABLATIONS["distance"].settings
    for seed in SEEDS:
        put(tmp_path, record_of(cosine, seed, 80.0 + seed), f"a/{seed}")
        put(tmp_path, record_of(euclidean, seed, 70.0 + seed), f"b/{seed}")
    assert compare(ABLATIONS["distance"], read_records(tmp_path)[0])[1].decided
    (tmp_path / "b/2/record.json").unlink()
    assert not compare(ABLATIONS["distance"], read_records(tmp_path)[0])[1].decided
    put(tmp_path, record_of(euclidean, 2, 72.0), "b/2")
    error = {"status": "failed", "error": "SingularCovarianceError: of slice (0, 0, 0)"}
    put(tmp_path, record_of(euclidean, 3, **error), "b/3")
    assert not compare(ABLATIONS["distance"], read_records(tmp_path)[0])[1].decided


def test_a_setting_that_scatters_wildly_gets_no_verdict(tmp_path):
    cosine, euclidean = ABLATIONS["distance"].settings
    for seed, value in zip(SEEDS, (30.6, 71.7, 37.1), strict=True):
        put(tmp_path, record_of(cosine, seed, 90.0 + seed), f"a/{seed}")
        put(tmp_path, record_of(euclidean, seed, value), f"b/{seed}")
    found = compare(ABLATIONS["distance"], read_records(tmp_path)[0])[1]
    assert found.verdict == "unstable" and not found.decided and found.lead.difference < -40


def test_a_missing_value_is_left_out(tmp_path):
    cosine, euclidean = ABLATIONS["distance"].settings
    for seed, value in zip(SEEDS, (20.0, None, 21.0), strict=True):
        put(tmp_path, record_of(cosine, seed, metrics={"cca_dimensions": 30.0 + seed}), f"a/{seed}")
        put(tmp_path, record_of(euclidean, seed, metrics={"cca_dimensions": value}), f"b/{seed}")
    found = compare(ABLATIONS["distance"], read_records(tmp_path)[0], "cca_dimensions")[1]
    assert found.values == {0: 20.0, 2: 21.0} and not found.decided


def test_of_many_comparisons_the_correction_keeps_the_clear_ones(tmp_path):
    cosine, euclidean = ABLATIONS["distance"].settings
    _, *others = ABLATIONS["whitening"].settings
    for seed in SEEDS:
        put(tmp_path, record_of(cosine, seed, 90.0 + 0.1 * seed), f"base/{seed}")
        put(tmp_path, record_of(euclidean, seed, 89.7 + 0.1 * seed), f"near/{seed}")  # p = .02
        for number, setting in enumerate(others):
            put(tmp_path, record_of(setting, seed, 20.0 + 0.1 * seed), f"far-{number}/{seed}")
    entries = read_records(tmp_path)[0]
    several = [ABLATIONS["distance"], ABLATIONS["whitening"]]
    assert compare(several[0], entries)[1].verdict == "behind, within the margin"
    found = corrected_sides(several[:1], entries)
    assert found == {(several[0].choice, "Euclidean"): "behind"}, "alone it needs no correction"
    many = {f"far {number}": several[1] for number in range(3)}
    found = corrected_sides([*several, *many.values()], entries)
    assert found[several[0].choice, "Euclidean"] == "behind", "the same comparison counts once"
    assert len(found) == 4
    put(tmp_path, record_of(euclidean, 0, 90.0), "near/0")  # p near .1
    found = corrected_sides(several, read_records(tmp_path)[0])
    assert found[several[0].choice, "Euclidean"] == "not told apart"
    assert {side for key, side in found.items() if key[1] != "Euclidean"} == {"behind"}


def test_a_correction_at_one_budget_is_not_taken_for_that_of_another(tmp_path):
    budgets = "digits", "cifar10-cpu"
    for budget, lead in zip(budgets, (5.0, -5.0), strict=True):
        paper, detached, *_ = THREE[budget].settings
        for seed in SEEDS:
            put(tmp_path, record_of(paper, seed, 60.0 + 0.1 * seed), f"{budget}/a/{seed}")
            put(tmp_path, record_of(detached, seed, 60.0 + lead + 0.1 * seed), f"{budget}/b/{seed}")
    found = corrected_sides([THREE[budget] for budget in budgets], read_records(tmp_path)[0])
    label = THREE["digits"].settings[1].label
    assert [found[THREE[budget].choice, label] for budget in budgets] == ["ahead", "behind"]
