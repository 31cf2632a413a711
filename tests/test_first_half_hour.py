"""The script for a lent GPU, rehearsed on the CPU: it chooses, fills the places, stops in time, goes on."""

import sys
import time
from dataclasses import replace

import pytest
import torch

from benchmarks.first_half_hour import AT_ONCE, CONTEXT, Trial, fastest, flags, main, places, side_by_side
from wmse import machine, records, training
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


@pytest.mark.parametrize(
    ("cores", "runs_in_memory", "expected"),
    [(16, 30.0, AT_ONCE), (16, 1.9, 1), (1, 30.0, 1), (16, 0.5, 1)],
)
def test_few_runs_share_a_gpu_however_many_its_memory_holds(cores, runs_in_memory, expected, monkeypatch):
    """Sixteen at once would end together, sixteen times later; and none of them if the lease ends before."""
    assert AT_ONCE <= 3
    trials = [trial("a", "graphs", 1.0), trial("b", "graphs", 1.0), Trial("a", "plain", 1.0, 9e9, {})]
    free = int(runs_in_memory * (CONTEXT + 1.25 * 1000.0) * 2**20)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    monkeypatch.setattr(machine, "usable_cores", lambda: cores)
    assert places(trials, "graphs", torch.device("cuda")) == expected
    assert places(trials, "graphs", torch.device("cpu")) == cores


def python(code):
    return [sys.executable, "-S", "-c", code]


def test_places_are_filled_as_they_become_free_and_failures_stop_nothing(tmp_path):
    commands = {f"run {number}": python(f"raise SystemExit({number})") for number in range(5)}
    assert side_by_side(commands, 2, tmp_path, time.monotonic() + 60) == {f"run {n}": n for n in range(5)}


@pytest.mark.parametrize(("set_to", "expected"), [(None, "3"), ("1", "1")])
def test_runs_share_the_cores(set_to, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_to:
        monkeypatch.setenv("OMP_NUM_THREADS", set_to)
    tell = python("import os; print(os.environ['OMP_NUM_THREADS'])")
    assert side_by_side({"run": tell}, 2, tmp_path, time.monotonic() + 60) == {"run": 0}
    assert (tmp_path / "run.log").read_text().split() == [expected]


def test_runs_end_in_turn_and_not_all_at_the_end(tmp_path):
    """One place: the second run begins when the first has ended."""
    log = str(tmp_path / "order")
    tell = f"tell = lambda word: open({log!r}, 'a').write(word); import time; "
    code = "tell('{0} begins, '); time.sleep(0.2); tell('{0} ends. ')"
    commands = {name: python(tell + code.format(name)) for name in "abc"}
    side_by_side(commands, 1, tmp_path, time.monotonic() + 60)
    assert (tmp_path / "order").read_text() == "".join(f"{name} begins, {name} ends. " for name in "abc")


def test_no_place_is_refused_before_anything_is_measured(capsys):
    with pytest.raises(SystemExit):
        main(["--places", "0"])
    assert "at least 1 run" in capsys.readouterr().err


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
