"""A run that is killed at random, again and again, ends like one that nothing disturbed.

`python tests/test_kills.py FOLDER KILLS SEED` is a script that the test starts, because it forks: each
attempt to finish the run is a fork of a process that has imported torch, which saves seconds per attempt.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

resource = pytest.importorskip("resource")  # a limit on the size of files stands for a full disk

ROOT = Path(__file__).resolve().parents[1]
DISASTERS = ("SIGKILL", "SIGTERM", "full disk", "torn file")
LEFT = {"record.json", "metrics.csv", "encoder.safetensors", "projector.safetensors"}
TIMES = ("seconds", "views_per_second")  # columns of metrics.csv that no two runs share


def test_a_run_killed_at_random_ends_like_one_left_alone(request, tmp_path):
    kills = request.config.getoption("--kills")
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, __file__, str(tmp_path), str(kills), "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


def attempt(folder: Path, disaster: str, chance: random.Random, longest: float) -> int:
    """Go on with the run in a fork, which meets the disaster; the fork's exit status, below 0 for a signal.

    The disaster strikes at a random moment, or before a random one of the operations that a run consists of:
    a step, an evaluation, the opening, renaming or deletion of a file in its folder.
    """
    by_operation = disaster == "full disk" or chance.random() < 0.7
    operation, seconds = chance.randrange(40), chance.uniform(0, longest)
    room = chance.choice([0, 1000, 20_000, 100_000, 300_000])
    pid = os.fork()
    if not pid:
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        if by_operation and disaster:
            strike_at(folder, disaster, operation, room)
        status = 1
        try:
            go_on(folder)
            status = 0
        except SystemExit as stopped:
            status = stopped.code
        except BaseException as error:
            status = 5 if isinstance(error, OSError) else 1
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            traceback.print_exc()
        finally:
            os._exit(status)
    if disaster and not by_operation:
        time.sleep(seconds)
        os.kill(pid, signal.SIGTERM if disaster == "SIGTERM" else signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def strike_at(folder: Path, disaster: str, operation: int, room: int) -> None:
    """Let the disaster strike this process before the operation of that number; `room`: bytes of a file that
    a full disk still takes."""

    def count(event: str, arguments: tuple) -> None:
        nonlocal operation
        ours = event == "kills.test" or str(arguments[0]).startswith(str(folder))
        if event not in ("kills.test", "open", "os.rename", "os.remove") or not ours:
            return
        operation -= 1
        if operation == -1 and disaster == "full disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        elif operation == -1:
            os.kill(os.getpid(), signal.SIGTERM if disaster == "SIGTERM" else signal.SIGKILL)

    sys.addaudithook(count)


def tear(folder: Path, chance: random.Random, before: list[str]) -> str:
    """Tear a file of a killed run, as a power cut may: one of which the run has the content elsewhere.

    One checkpoint a run, because two torn ones that no attempt has looked at in between are not repairable.
    """
    held = {path.name: path for path in folder.glob("*") if path.stat().st_size}
    checkpoints = sorted(held.keys() & {"checkpoint.pt", "checkpoint.previous.pt"})
    names = [name for name in held if name.endswith(".tmp") or name == "metrics.csv"]
    names += ["record.json"] * ("record.json" in held and len(checkpoints) > 0)
    names += checkpoints if len(checkpoints) == 2 and not any("checkpoint" in one for one in before) else []
    if not names:
        return "nothing to tear"
    path = held[chance.choice(sorted(names))]
    content = path.read_bytes()
    kept = content[: chance.randrange(len(content))]
    path.write_bytes(chance.choice([kept, kept.ljust(len(content), b"\0")]))
    return f"torn {path.name}"


def go_on(folder: Path) -> None:
    """Begin or resume a run of 3 epochs of 3 steps."""
    from wmse.recipes import get_recipe
    from wmse.training import train

    changes = {"epochs": 3, "batch_size": 16, "slice_size": 8, "embedding_dim": 4, "projector_width": 8}
    recipe = replace(get_recipe("digits/w-mse-2"), precision="float32", **changes)
    train("digits/w-mse-2", folder, recipe, limit=50, resume=True, device="cpu")


def prepare() -> None:
    """Let a run save a checkpoint after every step, count its operations, and skip what takes long."""
    from wmse import machine, training
    from wmse.run import Run

    step = Run.step
    Run.step = lambda *arguments: sys.audit("kills.test") or step(*arguments)
    training.evaluate = lambda *_: sys.audit("kills.test") or {"linear_top1": 0.0}
    training.spectra = lambda *_: {}
    training.CHECKPOINT_SECONDS = -1.0
    machine.git_state, machine.package_hash = lambda: None, lambda: ""
    images = {split: training.load("digits", split).first(50) for split in ("train", "test")}
    training.load = lambda _, split, *__: images[split]


def check(folder: Path, undisturbed: Path) -> None:
    """AssertionError unless the folder has one whole finished run that equals the undisturbed one."""
    from wmse import records

    names = {path.name for path in folder.iterdir()}
    assert {name for name in names if not re.search(r"\.old-\d+$", name)} == LEFT, names
    for name in ("encoder.safetensors", "projector.safetensors"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes(), f"other weights: {name}"
    tables = [records.read_metrics(path) for path in (folder, undisturbed)]
    record = records.read_record(folder)
    assert record.status == "finished" and record.steps == 9 and record.curve == tables[0]
    for table in tables:
        assert [row["epoch"] for row in table] == [1, 2, 3]
        for row, name in ((row, name) for row in table for name in TIMES):
            assert row.pop(name) > 0
    assert tables[0] == tables[1]


def main(root: Path, kills: int, seed: int) -> None:
    from wmse import records

    chance, met, runs, all_torn = random.Random(seed), Counter(), 0, []
    prepare()
    undisturbed = root / "undisturbed"
    go_on(undisturbed)  # here, so that forks find loaded what torch loads on first use
    check(undisturbed, undisturbed)
    begin = time.monotonic()
    assert attempt(root / "again", "", chance, 0) == 0, (root / "again.log").read_text()
    longest = time.monotonic() - begin
    check(root / "again", undisturbed)
    began = time.monotonic()
    while True:
        folder, killed, torn = root / f"run-{runs}", 0, []
        while True:
            disaster = chance.choice(DISASTERS) if met.total() < kills else ""
            rest = set(folder.glob("*.tmp"))
            status = attempt(folder, disaster, chance, longest)
            said = f"run {runs} of seed {seed}, after {killed} disasters, {disaster}: {status}\n"
            said += folder.with_suffix(".log").read_text()
            if status == 0:
                break
            expected = {"SIGTERM": (143, -15), "full disk": (5,)}.get(disaster, (-9,))
            assert disaster and status in expected, said
            killed += 1
            met[disaster] += 1
            if disaster == "full disk":
                assert not set(folder.glob("*.tmp")) - rest, said
            if (folder / "record.json").exists() and "torn record.json" not in torn:
                records.read_record(folder)  # whole at any time
            if disaster == "torn file":
                torn.append(tear(folder, chance, torn))
        check(folder, undisturbed)
        runs, all_torn = runs + 1, all_torn + torn
        if met.total() >= kills:
            break
    counts = ", ".join(f"{number} {name}" for name, number in (met + Counter(all_torn)).items())
    print(f"{met.total()} times ({counts}), {runs} runs, in {time.monotonic() - began:.0f} s: all end alike")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
