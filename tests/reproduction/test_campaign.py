"""`queue --run` makes each wanted run once, whatever ends it, and says what is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from example_records import example_record, put

from wmse.__main__ import main
from wmse.records import read_record
from wmse.reproduction import campaign, queue
from wmse.reproduction.queue import QueuedRun, Stage

TESTS = Path(__file__).resolve().parents[1]
NAME = "digits/w-mse-2"
# In the place of `python -m wmse`: writes the record of a run that ends when the file `go` appears beside the
# results. With seed 7 the run fails, with seed 8 it does not even begin.
PROGRAM = """
import os, sys, time
from pathlib import Path
from example_records import example_record, parsed
from wmse.records import write_record

name, seed, out = sys.argv[2], int(sys.argv[4]), Path(sys.argv[sys.argv.index("--out") + 1])
root = Path(os.environ["ROOT"])
with (root / "log").open("a") as log:
    log.write(f"{seed} {os.getpid()} {'again' if (out / 'record.json').exists() else 'first'}\\n")
if seed == 8:
    sys.exit("error: no such data set")
out.mkdir(parents=True, exist_ok=True)
write_record(out, parsed(example_record(name, seed, status="running")))
while not (root / "go").exists():
    time.sleep(0.02)
status = "failed" if seed == 7 else "finished"
write_record(out, parsed(example_record(name, seed, status=status, error="OSError: full")))
sys.exit(2 * (seed == 7))
"""
DRIVER = """
import sys
from pathlib import Path
from wmse.reproduction import campaign, queue

runs = tuple(queue.QueuedRun("digits/w-mse-2", int(seed)) for seed in sys.argv[3:])
queue.STAGES = (queue.Stage("all", "cpu", runs),)
campaign.PROGRAM, campaign.BUSY_SECONDS = [sys.executable, sys.argv[2]], 0.05
sys.exit(not campaign.run_queue(Path(sys.argv[1]), "cpu"))
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(PROGRAM)
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    monkeypatch.setenv("PYTHONPATH", paths)
    monkeypatch.setenv("ROOT", str(tmp_path))
    monkeypatch.setattr(campaign, "PROGRAM", [sys.executable, str(tmp_path / "program.py")])
    return tmp_path


def wish(monkeypatch, *runs):
    monkeypatch.setattr(queue, "STAGES", (Stage("all", "cpu", runs),))


def seeds(*numbers):
    return [QueuedRun(NAME, seed) for seed in numbers]


def log(root):
    path = root / "log"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def drive(root, *numbers):
    """A queue in a process of its own, with runs of these seeds."""
    words = [
        sys.executable,
        "-c",
        DRIVER,
        str(root / "results"),
        str(root / "program.py"),
        *map(str, numbers),
    ]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def status(root, seed):
    path = root / "results" / NAME / f"seed-{seed}"
    return read_record(path).status if (path / "record.json").exists() else ""


def alive(pid):
    return Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text()


def test_wanted_runs_are_made_in_order_and_a_failure_does_not_stop_them(root, monkeypatch, capsys):
    wish(monkeypatch, *seeds(1, 7, 8, 2, 3))
    put(root / "results", example_record(NAME, 2))
    (root / "go").touch()
    assert not campaign.run_queue(root / "results", "cpu")
    assert [seed for seed, *_ in log(root)] == ["1", "7", "8", "3"], "each is tried once"
    told = capsys.readouterr().out
    assert (
        "Runs that ended: 4." in told and f"{NAME}, seed 1: finished, linear 91.00 % on test images" in told
    )
    assert "seed 7: failed, and says above why (exit status 2)" in told, "a record of old explains nothing"
    assert "seed 8: failed, and says above why (exit status 1)" in told
    assert "Runs left: 2, about" in told
    assert not list(root.glob("results/**/*.lock"))


def test_only_runs_of_the_device_that_match_the_pattern_are_made(root, monkeypatch, capsys):
    wish(monkeypatch, *seeds(1, 2), QueuedRun("digits/simclr", 1))
    (root / "go").touch()
    assert campaign.run_queue(root / "results", "cpu", only="digits/s*seed-1")
    assert campaign.run_queue(root / "results", "cuda")
    assert campaign.run_queue(root / "results", "cpu", only="w-mse-2 --seed 2")
    assert [seed for seed, *_ in log(root)] == ["1", "2"]
    assert "Runs left: none." in capsys.readouterr().out


def test_when_the_time_is_over_the_run_is_stopped_and_left(root, monkeypatch, capsys):
    wish(monkeypatch, *seeds(1, 2))
    assert campaign.run_queue(root / "results", "cpu", hours=2 / 3600)
    assert len(log(root)) <= 1, "no second run begins"
    assert "Stopped: the time is over." in capsys.readouterr().out


def test_a_stopped_queue_stops_its_run_and_the_next_goes_on(root):
    first = drive(root, 1, 2)
    until(lambda: status(root, 1) == "running")
    first.send_signal(signal.SIGTERM)
    assert "Stopped: SIGTERM." in first.communicate(timeout=60)[0] and first.returncode
    assert not alive(log(root)[0][1])
    (root / "go").touch()
    second = drive(root, 1, 2)
    assert "Runs left: none." in second.communicate(timeout=60)[0] and second.returncode == 0
    assert [(seed, which) for seed, _, which in log(root)] == [("1", "first"), ("1", "again"), ("2", "first")]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a run survives its queue")
def test_a_killed_queue_leaves_no_process_and_no_lock(root):
    first = drive(root, 1)
    until(lambda: status(root, 1) == "running")
    first.kill()
    first.communicate()
    until(lambda: not alive(log(root)[0][1]))
    (root / "go").touch()
    assert drive(root, 1).wait(60) == 0
    assert status(root, 1) == "finished" and len(log(root)) == 2


def test_of_two_queues_each_makes_other_runs_and_both_end_when_all_are_made(root):
    first = drive(root, 1, 2, 3)
    until(lambda: status(root, 1) == "running")
    second = drive(root, 1, 2, 3)
    until(lambda: status(root, 2) == "running")
    third = drive(root, 1, 2)
    assert "waiting" in third.stdout.readline()
    (root / "go").touch()
    for one in (first, second, third):
        assert "Runs left: none." in one.communicate(timeout=60)[0] and one.returncode == 0
    assert sorted(seed for seed, *_ in log(root)) == ["1", "2", "3"]


def test_a_pattern_that_no_wanted_run_has_is_told(root, monkeypatch, capsys):
    wish(monkeypatch, *seeds(1))
    assert campaign.run_queue(root / "results", "cpu", only="cifar10-25/")
    assert (
        "No run for the device cpu is wanted whose command has 'cifar10-25/' in it" in capsys.readouterr().out
    )


def test_a_full_disk_is_told_and_passed_over(root, monkeypatch, capsys):
    wish(monkeypatch, *seeds(1, 2))

    def full(path, timeout):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(campaign, "FileLock", full)
    assert not campaign.run_queue(root / "results", "cpu")
    assert capsys.readouterr().out.count("seed 2: failed, [Errno 28] No space left on device") == 1
    assert not log(root)


def test_real_runs_without_their_data_set_are_passed_over(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(TESTS.parent))
    wish(
        monkeypatch,
        QueuedRun("tiny-imagenet/raw-pixels", 0),
        QueuedRun("digits/raw-pixels", 1, (("limit", 64),)),
    )
    call = ["queue", "--run", "--device", "cpu", "--results", str(tmp_path), "--data", str(tmp_path / "none")]
    with pytest.raises(SystemExit) as stop:
        main(call)
    assert stop.value.code == 1
    record = read_record(tmp_path / "digits/raw-pixels/limit-64/seed-1")
    assert record.status == "finished" and record.limit == 64 and record.seed == 1
    told = capsys.readouterr().out
    assert "tiny-imagenet/raw-pixels, seed 0: failed" in told and "Runs left: 1, about" in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run", "--write"], "give one of them"),
        (["--hours", "2"], "with --run"),
        (["--run", "--hours", "0"], "hours must be more than 0; got 0"),
    ],
)
def test_what_does_not_go_together_is_said(words, said, tmp_path, capsys):
    assert main(["queue", *words, "--results", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
