"""The script for a lent GPU, rehearsed on the CPU: it chooses, fills the places, stops in time, goes on."""

import sys
import time
from dataclasses import replace

from benchmarks.first_half_hour import Trial, fastest, flags, main, side_by_side
from wmse import records, training
from wmse.recipes import get_recipe


def trial(recipe, way, speed):
    return Trial(recipe, way, speed, 1000.0, {})


def test_the_fastest_way_is_that_of_the_least_time_among_those_timed_for_all():
    trials = [trial("a", "graphs", 100.0), trial("b", "graphs", 50.0)]  # 1 / 100 + 1 / 50 seconds a view
    trials += [trial("a", "plain", 60.0), trial("b", "plain", 60.0)]  # 2 / 60
    trials += [trial("a", "compiled", 500.0)]  # b broke down
    assert fastest(trials, ["a", "b"]) == "graphs"
    assert fastest([trial("a", "compiled", 1.0)], ["a", "b"]) is None


def test_flags_are_those_of_the_command_line():
    assert flags({"precision": "float16", "cuda_graphs": False, "compile": True}) == (
        ["--precision", "float16", "--no-cuda-graphs", "--compile"]
    )


def python(code):
    return [sys.executable, "-S", "-c", code]


def test_places_are_filled_as_they_become_free_and_failures_stop_nothing(tmp_path):
    commands = {f"run {number}": python(f"raise SystemExit({number})") for number in range(5)}
    assert side_by_side(commands, 2, tmp_path, time.monotonic() + 60) == {f"run {n}": n for n in range(5)}


def test_when_the_time_is_up_runs_are_asked_to_stop_and_waited_for(tmp_path):
    up = str(tmp_path / "up")
    asked = f"import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); open({up!r}, 'w')"
    commands = {"long": python(asked + "; time.sleep(600)"), "never begun": python("pass")}
    until = time.monotonic() + 60

    class Until(float):  # the end comes when the run is up
        def __gt__(self, now):
            return not (tmp_path / "up").exists() and now < until

    assert side_by_side(commands, 1, tmp_path, Until(until)) == {"long": 7}


def test_the_half_hour_in_small(tmp_path):
    flags = ["--budget", "digits", "--methods", "w-mse-2", "--seeds", "0", "--epochs", "1", "--limit", "256"]
    flags += ["--steps", "1", "--minutes", "5", "--device", "cpu"]
    flags += ["--out", str(tmp_path / "results"), "--benchmarks", str(tmp_path / "benchmarks")]
    assert main(flags) == 0
    record = records.read_record(tmp_path / "results/digits/w-mse-2/seed-0")
    assert record.status == "finished" and record.steps == 2
    (table,) = (tmp_path / "benchmarks").glob("*/ways.json")
    assert "float32" in table.read_text("utf-8") and "bfloat16" in table.read_text("utf-8")
    assert main(flags) == 0, "a finished run is not begun again"


def test_training_needs_no_tyro(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)  # `import tyro` then fails
    short = replace(get_recipe("digits/w-mse-2"), epochs=1, precision="float32")
    out = training.train("digits/w-mse-2", tmp_path, recipe=short, device="cpu", limit=256)
    assert records.read_record(out).status == "finished"
