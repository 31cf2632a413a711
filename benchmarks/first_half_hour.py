"""The first half hour on a GPU that is lent: five minutes of tests and timing, then runs of Table 1.

    python -m benchmarks.first_half_hour [--minutes 30] [--out results] [--data DIR]

1. `tests/test_cuda.py`; what fails is said, and stops nothing. On an H100 it takes 100 seconds, most of them
   to compile the views; what is compiled then, later processes find on the disk.
2. Two recipes are timed in each way of computing (`WAYS`), and the fastest is taken for the runs.
3. The runs of Table 1 at 200 epochs that have no finished record yet train, two at a time on a GPU
   (`places`), the next one as soon as one ends. So the first are finished early, and not all at the end.

It may end at any second. Each run writes a checkpoint every half minute and its record from the beginning;
shortly before the time is up all are asked to stop, and write both once more. The same command goes on where
they stopped. CIFAR-10 is fetched first, or taken from `--data`. `--budget digits --epochs 2 --limit 512`
rehearses the whole in a few minutes on a processor.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks import measuring
from benchmarks.step import PARTS, noise_images, timed_parts, whole_step
from wmse import machine
from wmse.data import load
from wmse.recipes import get_recipe
from wmse.records import read_record
from wmse.run import Run

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("w-mse-2", "simclr", "byol", "w-mse-4")
TIMED = ("w-mse-2", "byol")  # one network per step, and two
# Ways of computing the same run, by kind of device: flags of `python -m wmse train`.
WAYS = {
    "cuda": {
        "bfloat16, CUDA graphs": {"precision": "bfloat16"},
        "float16, CUDA graphs": {"precision": "float16"},
        "bfloat16, plain": {"precision": "bfloat16", "cuda_graphs": False},
        "bfloat16, compiled": {"precision": "bfloat16", "compile": True},
    },
    "cpu": {"float32": {"precision": "float32"}, "bfloat16": {"precision": "bfloat16"}},
}
PREPARATION = 300.0  # seconds for tests and timing together, and no more than a third of the time
LAST = 75.0  # seconds before the end at which runs are asked to stop: time for a step, a checkpoint, a record
CONTEXT = 700  # MiB that a process takes on a GPU beside its tensors
AT_ONCE = 2  # runs on one GPU: the reason is in `places`


@dataclass(frozen=True)
class Trial:
    """How fast a recipe is in one way, as a process of its own has measured it."""

    recipe: str
    way: str
    views_per_second: float
    memory: float  # MiB at its peak
    parts: dict[str, float]  # ms of each part of a step


def flags(changes: dict) -> list[str]:
    """{"precision": "float16", "cuda_graphs": False} as ["--precision", "float16", "--no-cuda-graphs"]."""
    words = []
    for field, value in changes.items():
        name = field.replace("_", "-")
        words += (
            [f"--{name}" if value else f"--no-{name}"] if isinstance(value, bool) else [f"--{name}", value]
        )
    return words


def time_trial(name: str, way: str, device: torch.device, steps: int) -> Trial:
    """The speed of `steps` steps, after two that warm up, on images of noise."""
    recipe = replace(get_recipe(name), **WAYS[device.type][way])
    images = noise_images(8 * recipe.batch_size, device)
    run = Run(recipe, len(images), device)
    whole_step(run, images, 2)
    seconds = whole_step(run, images, steps)
    run.checks.look()
    parts = {part: 1e3 * taken for part, taken in timed_parts(run, images, steps).items()}
    views = recipe.batch_size * recipe.positives / seconds
    return Trial(name, way, views, machine.peak_memory_mb(device), parts)


def time_trials(names: Sequence[str], device: torch.device, steps: int, until: float) -> list[Trial]:
    """All recipes in all ways, each in a process of its own, so that one that fails takes no other along."""
    trials = []
    for way in WAYS[device.type]:
        for name in names:
            left = until - time.monotonic()
            command = [sys.executable, "-m", "benchmarks.first_half_hour", "--device", str(device)]
            command += ["--trial", name, way, str(steps)]
            try:
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(1, left))
                trials.append(Trial(**json.loads(done.stdout.splitlines()[-1])))
            except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
                print(f"not timed: {name}, {way} ({type(error).__name__})", flush=True)
    return trials


def fastest(trials: Sequence[Trial], names: Sequence[str]) -> str | None:
    """The way with the least time for a view of each recipe; only ways in which all were timed count."""
    speeds: dict[str, list[float]] = {}
    for trial in trials:
        speeds.setdefault(trial.way, []).append(trial.views_per_second)
    complete = {way: sum(1 / speed for speed in of) for way, of in speeds.items() if len(of) == len(names)}
    return min(complete, key=complete.get) if complete else None


def places(trials: Sequence[Trial], way: str | None, device: torch.device) -> int:
    """How many runs train at once; on a CPU one per core.

    On a GPU it is two, or one where memory or cores do not suffice for two, with a quarter more memory than
    was measured. Memory would hold many more, but they would only share the GPU: alone, a run at full width
    keeps an H100 busy for nine tenths of a step (benchmarks/results/nvidia-h100-80gb-hbm3). Sixteen at once
    would each take almost sixteen times as long, and a lease that ended before that would leave no finished
    run. The second one computes while the first compiles, waits or is evaluated.
    """
    cores = machine.usable_cores()
    if device.type == "cpu":
        return cores
    need = CONTEXT + 1.25 * max((trial.memory for trial in trials if trial.way == way), default=3000)
    return max(1, min(AT_ONCE, cores, int(torch.cuda.mem_get_info(device)[0] / 2**20 / need)))


def is_finished(folder: Path) -> bool:
    return (folder / "record.json").exists() and read_record(folder).status == "finished"


def side_by_side(commands: dict[str, list[str]], count: int, logs: Path, until: float) -> dict[str, int]:
    """Run commands, `count` at a time, until all have ended or the time is up; the exit status of each.

    They share the cores, unless OMP_NUM_THREADS says how many threads each has.

    When the time is up, or this process is asked to stop, those that run get SIGTERM and are waited for.
    """
    waiting, running, ended, stop = dict(commands), {}, {}, []
    logs.mkdir(parents=True, exist_ok=True)
    threads = {"OMP_NUM_THREADS": str(max(1, machine.usable_cores() // count))}
    before = {
        number: signal.signal(number, lambda *_: stop.append(1)) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        while (waiting or running) and not stop and time.monotonic() < until:
            while waiting and len(running) < count:
                name = next(iter(waiting))
                with (logs / f"{name}.log").open("a") as log:
                    how = {"stdout": log, "stderr": subprocess.STDOUT, "cwd": ROOT, "start_new_session": True}
                    how["env"] = threads | dict(os.environ)
                    running[name] = subprocess.Popen(waiting.pop(name), **how)
                print(f"started {name}", flush=True)
            time.sleep(0.2)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                ended[name] = running.pop(name).returncode
                print(f"ended {name}: exit status {ended[name]}", flush=True)
    finally:
        for process in running.values():
            process.terminate()
        for name, process in running.items():
            ended[name] = process.wait()
            print(f"stopped {name}", flush=True)
        for number, handler in before.items():
            signal.signal(number, handler)
    return ended


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30, help="until all must have ended (%(default)s)")
    parser.add_argument("--device", help="cpu, cuda, ...; CUDA where there is any if left out")
    parser.add_argument(
        "--out", type=Path, default=Path("results"), help="folder of the records (%(default)s)"
    )
    parser.add_argument("--benchmarks", type=Path, default=measuring.RESULTS, help="folder of the timing")
    parser.add_argument("--data", help="folder of the data sets")
    parser.add_argument(
        "--budget", default="cifar10-200", help="first part of the recipes' names (%(default)s)"
    )
    parser.add_argument("--methods", nargs="+", default=METHODS, help="second parts (%(default)s)")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="all methods of one, then the next"
    )
    parser.add_argument(
        "--places", type=int, help="runs at a time; on a GPU more than two pay for small networks"
    )
    parser.add_argument("--steps", type=int, default=50, help="timed steps (%(default)s)")
    parser.add_argument("--epochs", type=int, help="fewer epochs, to rehearse")
    parser.add_argument("--limit", type=int, help="fewer images, to rehearse")
    parser.add_argument("--trial", nargs=3, metavar=("RECIPE", "WAY", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.places is not None and options.places < 1:
        parser.error(f"--places is {options.places}: at least 1 run must train at a time")
    began = time.monotonic()
    device = measuring.choose_device(options.device)
    machine.configure_process(device)
    if options.trial:
        name, way, steps = options.trial
        print(json.dumps(vars(time_trial(name, way, device, int(steps)))))
        return 0
    until = began + 60 * options.minutes - min(LAST, 15 * options.minutes)
    prepared = began + min(PREPARATION, (until - began) / 3)

    if device.type == "cuda":
        command = [sys.executable, "-m", "pytest", "-q", "tests/test_cuda.py"]
        try:
            failed = subprocess.run(command, cwd=ROOT, timeout=(prepared - began) / 2).returncode
            print(f"tests: {'some failed, see above' if failed else 'all passed'}", flush=True)
        except subprocess.TimeoutExpired:
            print("tests: stopped, they took half of the time for preparation", flush=True)
    timed = [f"{options.budget}/{method}" for method in options.methods if method in TIMED]
    trials = time_trials(timed, device, options.steps, prepared)
    way = fastest(trials, timed)
    print(f"fastest: {way or 'not known, so the recipe decides'}", flush=True)
    if trials:
        columns = {"recipe": "recipe", "way": "computed in", "views_per_second": "views/s"}
        columns |= {"memory": "peak, MiB"} | {part: f"{part}, ms" for part in PARTS}
        rows = [vars(trial) | trial.parts for trial in trials]
        table = measuring.Table("ways", "Ways of computing a step", columns, rows, "By whole steps.")
        measuring.finish(table, device, options.benchmarks)

    load(
        get_recipe(timed[0] if timed else f"{options.budget}/{options.methods[0]}").dataset,
        "train",
        options.data,
    )
    shared = flags(WAYS[device.type].get(way, {})) + ["--device", str(device)]
    for field in ("data", "epochs", "limit"):
        if (value := getattr(options, field)) is not None:
            shared += [f"--{field}", str(value)]
    commands = {}
    for seed in options.seeds:
        for method in options.methods:
            name = f"{options.budget}/{method}"
            folder = options.out / name / f"seed-{seed}"
            if not is_finished(folder):
                command = [sys.executable, "-m", "wmse", "train", name, "--seed", str(seed), "--resume"]
                key = f"{name}-seed-{seed}".replace("/", "-")
                commands[key] = [*command, *shared, "--out", str(folder.resolve())]
    count = options.places or places(trials, way, device)
    print(f"{len(commands)} run(s), {count} at a time, until {60 * options.minutes:.0f} s", flush=True)
    ended = side_by_side(commands, count, options.out / "first-half-hour", until)
    return sum(status not in (0, 128 + signal.SIGTERM, -signal.SIGTERM) for status in ended.values())


if __name__ == "__main__":
    sys.exit(main())
