"""Make the runs of the queue one after the other, each in a process of its own: `queue --run`."""

import ctypes
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from wmse.machine import duration
from wmse.records import Record, now, read_record, read_records
from wmse.reproduction import queue
from wmse.reproduction.queue import QueuedRun, flags, wanted

PROGRAM = [sys.executable, "-m", "wmse"]
LOOK_SECONDS = 0.5  # between looks at the clock while a run is made
PR_SET_PDEATHSIG = 1  # of Linux
BUSY = "made by another process"
BUSY_SECONDS = 2.0  # between looks at runs that other processes make


@dataclass
class _Stop:
    """Whether to stop, by a signal or because the time is over; the run's process is told by SIGTERM."""

    until: float  # as time.monotonic() gives it
    came: str = ""  # the signal, "SIGTERM"
    told: bool = False

    @property
    def now(self) -> bool:
        return bool(self.came) or time.monotonic() >= self.until

    def note(self, number: int, _frame: FrameType | None) -> None:
        self.came, self.told = signal.Signals(number).name, False  # a second signal is passed on as well

    def wait_for(self, child: subprocess.Popen) -> int:
        """Exit status of the child, which is told once it is time to stop."""
        while child.poll() is None:
            if self.now and not self.told:
                child.terminate()
                self.told = True
            with suppress(subprocess.TimeoutExpired):
                child.wait(LOOK_SECONDS)
        return child.returncode


def run_queue(
    results: Path,
    device: str | None = None,
    hours: float | None = None,
    only: str = "",
    data: Path | None = None,
) -> bool:
    """Make the wanted runs of a device in order, and print what was made and what is left.

    Each run is tried once. One that fails is passed over; the next call tries it again, from its checkpoint.
    A run that another process makes is passed over too; when no other is left, the end of that process is
    awaited, and what it leaves unfinished is made. SIGINT and SIGTERM let the current run leave a checkpoint.

    Args:
        results: folder below which the records lie.
        device: cpu, cuda, cuda:1, ...; its runs are those that need at least such a device. None means CUDA
            if there is any.
        hours: stop after so long; the run that is cut off leaves a checkpoint.
        only: a shell pattern, "cifar10-laptop/w-mse-*", that stands somewhere in the run's command.
        data: folder of the data sets; None means `$WMSE_DATA`, else "data".

    Returns whether no run failed and no signal came. Raises ValueError for hours that are not above 0.
    """
    if hours is not None and not hours > 0:
        raise ValueError(f"hours must be more than 0; got {hours}")
    kind = _kind(device)
    options = [*(["--device", device] if device else []), *(["--data", str(data)] if data else [])]
    stop = _Stop(float("inf") if hours is None else time.monotonic() + 3600 * hours)
    ended: dict[QueuedRun, str] = {}  # how the runs ended that were begun
    waiting = False
    if not _left(results, kind, only, {}):
        of = f" whose command has {only!r} in it" if only else ""
        _say(f"No run for the device {kind} is wanted{of}; `queue` lists what is, for each kind of device.")
    before = {number: signal.signal(number, stop.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not stop.now and (left := _left(results, kind, only, ended)):
            for run in left:
                try:
                    told = _make_if_free(run, partial(_left, results, kind, only, ended), options, stop)
                except OSError as error:  # no room for the lock
                    told = f"failed, {error}"
                if told != BUSY:
                    break
            if told == BUSY:
                if not waiting:
                    _say(f"Other processes make all that is left, {len(left)} runs: waiting for them.")
                waiting = True
                time.sleep(BUSY_SECONDS)
            elif told:
                ended[run], waiting = told, False
                _say(f"{run.out}: {told}")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    _sum_up(ended, _left(results, kind, only, {}), stop)
    return not stop.came and all(told.startswith("finished") for told in ended.values())


def _kind(device: str | None) -> str:
    if device:
        return "cuda" if device.startswith("cuda") else "cpu"
    import torch  # here, because the queue as text needs none

    return "cuda" if torch.cuda.is_available() else "cpu"


def _left(results: Path, kind: str, only: str, ended: dict[QueuedRun, str]) -> list[QueuedRun]:
    """The wanted runs of the device that match, without those that have been tried."""
    entries, _ = read_records(results)
    runs = [run for s in queue.STAGES if s.device == kind for run in wanted(s, entries, results)]
    return [run for run in runs if run not in ended and fnmatchcase(run.command, f"*{only}*")]


def _make_if_free(
    run: QueuedRun, left: Callable[[], list[QueuedRun]], options: list[str], stop: _Stop
) -> str:
    """Make a run and say how it ended: `BUSY` if another process makes it, "" if there is nothing to say.

    The lock is the kernel's, and ends with this process however that ends. It is named by the run and not by
    its folder, because a folder that another process has just taken makes this process choose another one.
    """
    path = run.out.parent / f".{Path(run.folder).name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            try:
                # Another process may have begun or made it since the records were read.
                wanted_still = [one for one in left() if one == run]
                return _make(wanted_still[0], options, stop) if wanted_still else ""
            finally:
                path.unlink(missing_ok=True)
    except Timeout:
        return BUSY


def _make(run: QueuedRun, options: list[str], stop: _Stop) -> str:
    """Make a run in a process of its own, and say how it ended; "" if it was stopped."""
    words = shlex.split(run.command)[3:]  # without python -m wmse
    words += options + ([] if "--resume" in words else ["--resume"])
    cost = f"{run.views / 1e6:,.1f} million views, about {duration(run.seconds)}" if run.views else run.basis
    tied = None
    if (
        sys.platform == "linux"
    ):  # the run gets SIGTERM, and leaves a checkpoint, even if this process is killed
        tied = partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGTERM)
    # In a session of its own, so that Ctrl-C in a terminal reaches it once, from here.
    child = subprocess.Popen([*PROGRAM, *words], start_new_session=True, preexec_fn=tied)
    _say(f"process {child.pid}: {shlex.join(words)} ({cost})")
    began, status = now(), stop.wait_for(child)
    if record := _ended(run.out, "finished"):
        score = record.metrics.get("linear_top1")
        return "finished" + ("" if score is None else f", linear {score:.2f} % on {record.scored_on} images")
    if stop.now:
        return ""
    record = _ended(run.out, "failed")
    told = record.error if record and record.finished >= began else "and says above why"
    return f"failed, {told} (exit status {status})"


def _ended(folder: Path, status: str) -> Record | None:
    """The record of a run that ended so."""
    with suppress(FileNotFoundError, ValueError):
        record = read_record(folder)
        return record if record.status == status else None
    return None


def _sum_up(ended: dict[QueuedRun, str], left: list[QueuedRun], stop: _Stop) -> None:
    if stop.now:
        _say(f"Stopped: {stop.came or 'the time is over'}.")
    _say(f"Runs that ended: {len(ended) or 'none'}.")
    for run, told in ended.items():
        _say(f"  {shlex.join([run.name, *flags(dict(run.changes))])}, seed {run.seed}: {told}")
    total = duration(sum(run.seconds for run in left))
    _say(f"Runs left: {f'{len(left)}, about {total} of training' if left else 'none'}.")


def _say(text: str) -> None:
    print(text, flush=True)
