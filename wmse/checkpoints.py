"""What lets a run go on after an interruption: a folder, owned by one run at a time, and its checkpoints."""

import errno
import io
import os
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from wmse import distributed, machine, records
from wmse.records import CHECKPOINTS, DAMAGED, held, numbered
from wmse.run import STATE, Run

LOCK = ".lock"  # in a run's folder while the run lives
ROOM_SECONDS = 20.0  # for which a failed run waits for room on a full disk, to write its record


class FolderInUseError(FileExistsError):
    """Another run, which has not ended, owns the folder."""


@contextmanager
def claimed(folder: Path, free: bool = False) -> Iterator[Path]:
    """Own a folder inside, and yield it; it is made if it is absent, and removed at the end if still empty.

    free: take the first of folder, folder-2, ... that holds no run and that no other run owns.

    The kernel's lock on a file in the folder makes it this run's, and ends with the process, however the
    process ends. On a file system without locks a run owns only a folder that it has made, and a line says
    so. FolderInUseError if another run owns the folder.
    """
    for chosen in numbered(folder) if free else [folder]:
        made = [one for one in (chosen, *chosen.parents) if not one.exists()]
        try:
            if free and held(chosen):
                continue
            lock = _lock(chosen, free)
        except FolderInUseError:
            if free:
                continue
            raise
        try:
            if not (free and held(chosen)):  # otherwise another run began and ended since the first look
                yield chosen
                return
        finally:
            with suppress(OSError):
                (chosen / LOCK).unlink()
            lock.release()
            for one in made:
                with suppress(OSError):  # not empty
                    one.rmdir()


def _lock(folder: Path, free: bool) -> FileLock:
    """The acquired lock of a folder. FolderInUseError if another run has it."""
    new = not folder.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(exist_ok=not new)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except (Timeout, FileExistsError) as error:
        if not folder.is_dir():
            raise
        raise FolderInUseError(
            f"{folder} is in use: a run that has not ended writes there. Wait for its end, or choose another "
            "folder (--out)"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        if free and not new:
            raise FolderInUseError(f"{folder} exists, and nothing tells whether a run owns it") from None
        print(f"{folder}: this file system has no locks ({error.strerror}). Start one run at a time there.")
    return lock


@dataclass
class Found:
    """What a run finds in its folder."""

    out: Path
    finished: bool = False
    state: dict[str, Any] | None = None  # of the checkpoint to go on from
    identity: dict[str, Any] = field(default_factory=dict)  # of the run that left off, as in `Run`
    aside: list[str] = field(default_factory=list)  # names to set aside before anything is written


def look(out: Path, settings: Mapping[str, Any], resume: bool, restart: bool) -> Found:
    """What a folder that this run owns holds for it. Looking writes no file.

    FileExistsError, naming the files, if the run would write over what it does not go on from.
    """
    names = held(out)
    if restart or not names:
        return Found(out, aside=names)
    if not resume:
        raise FileExistsError(
            f"{out} holds a run already, or files in its way ({', '.join(names)}): resume it, choose another "
            "folder, or set them aside and start anew (--resume, --out, --restart)"
        )
    record, problem = _record(out)
    before = record.identity if record else {}
    check_same(out, settings, before)
    if record and record.status == "finished":
        return Found(out, finished=True)
    if state := load_checkpoint(out):
        before = state["identity"]
        check_same(out, settings, before)
    elif not record and (files := [name for name in names if not name.endswith(".tmp")]):
        raise FileExistsError(
            f"{out} cannot be resumed from {', '.join(files)}: {problem}, and there is no checkpoint. Choose "
            "another folder, or set the files aside and start anew (--out, --restart)"
        )
    broken = ["record.json"] if "record.json" in names and not record else []
    return Found(out, state=state, identity=before, aside=broken)


def is_finished(out: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a folder, owned or not, holds a finished run. FileExistsError if it has other settings."""
    record, _ = _record(out)
    finished = record is not None and record.status == "finished"
    if finished:
        check_same(out, settings, record.identity)
    return finished


def _record(out: Path) -> tuple[records.Record | None, str]:
    """The record in a folder; without a sound one, None and what is wrong."""
    try:
        return records.read_record(out), ""
    except FileNotFoundError:
        return None, "there is no record.json"
    except records.BrokenRecordError as error:
        return None, str(error)


def check_same(out: Path, now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """FileExistsError, saying what differs, if the run in `out` had another value of what it is now."""
    differing = (key for key in now if before.get(key, now[key]) != now[key])
    if changed := [f"{key} was {before[key]}, is {now[key]}" for key in differing]:
        raise FileExistsError(
            f"{out} holds a run with other settings or images: {'; '.join(changed)}. Choose another folder, "
            "or set its files aside and start anew (--out, --restart)"
        )


def set_aside(folder: Path, names: list[str]) -> None:
    """Rename files to NAME.old-1, or the first such number that is free for all. Only NAME.tmp, which was
    never whole, is deleted."""
    for name in held(folder):
        if name.endswith(".tmp"):
            (folder / name).unlink()
    names = [name for name in names if not name.endswith(".tmp")]
    number = next(n for n in count(1) if not any(os.path.lexists(folder / f"{x}.old-{n}") for x in names))
    for name in reversed(names):  # the record last: until then it tells whose files the others are
        os.rename(folder / name, folder / f"{name}.old-{number}")
    if names:
        print(f"{folder}: set aside under the ending .old-{number}: {', '.join(names)}", flush=True)


def save_checkpoint(run: Run, folder: Path) -> None:
    """Write the run's state as the newest checkpoint and keep the one before; each file is whole or absent.

    All processes must call; rank 0 writes. DivergenceError if a weight is not finite; the last good
    checkpoint then stays.
    """
    run.checks.look()
    if not all(bool(tensor.isfinite().all()) for tensor in run.networks.state_dict().values()):
        raise run.diverged("the weights or BatchNorm's statistics hold NaN or infinity")
    state = run.state_dict()
    if distributed.rank():
        return
    content = io.BytesIO()  # torch would hide the reason if it could not write to the file itself
    torch.save(state, content)
    newest, previous = (folder / name for name in CHECKPOINTS)
    machine.write_whole(newest, content.getbuffer(), previous)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint, on the CPU; None if there is no checkpoint at all.

    A torn file counts as damaged: it is renamed, and the checkpoint before it is loaded. Raises OSError if
    the machine cannot read a file, and ValueError if no file is whole or one is no checkpoint of a run. Then
    all files stay as they are.
    """
    present = [name for name in CHECKPOINTS if name in held(folder)]
    for name in present:
        state = _read(folder / name)
        if state is None:
            print(f"{folder / name} is damaged and passed over", flush=True)
            continue
        if name != present[0]:  # else the next checkpoint would make the damaged one the previous
            os.replace(folder / present[0], folder / DAMAGED)
        return state
    if present:
        raise ValueError(
            f"{folder} holds {' and '.join(present)}, damaged: nothing can be resumed, and nothing was "
            "touched. Restore a sound copy, or set all files aside and start anew (--restart)"
        )
    return None


def _read(path: Path) -> dict[str, Any] | None:
    """The state in a checkpoint, or None if the file is torn."""
    try:
        content = io.BytesIO(path.read_bytes())
        if not _is_whole(content):
            return None
        state = torch.load(content, map_location="cpu", weights_only=True)
        lacking = [key for key in STATE if key not in state]
    except Exception as error:  # foreign content fails in many ways
        if "PytorchStreamReader" in str(error):  # torn where no checksum is
            return None
        number = error.errno or errno.EIO if isinstance(error, OSError) else 0
        if isinstance(error, MemoryError) or "allocat" in str(error):  # torch raises a RuntimeError
            number = errno.ENOMEM
        if number:
            advice = "nothing was touched; resume again when the file can be read"
            raise OSError(number, f"{os.strerror(number)} ({advice})", str(path)) from error
        lacking = [f"what one holds ({type(error).__name__})"]
    if lacking:
        raise ValueError(
            f"{path} is no checkpoint of this version's runs: it lacks {', '.join(lacking)}. Resume with the "
            "version that wrote it, or set all files aside and start anew (--restart)"
        )
    return state


def _is_whole(content: io.BytesIO) -> bool:
    """Whether a zip archive agrees with its checksums. torch writes such archives, and checks none."""
    try:
        with zipfile.ZipFile(content) as archive:
            return archive.testzip() is None
    except MemoryError:
        raise
    except Exception:  # torn archives fail in as many ways as there are places to tear them
        return False
    finally:
        content.seek(0)


def remove_checkpoints(folder: Path) -> None:
    """Delete all checkpoints of a finished run."""
    for name in held(folder):
        if name.startswith("checkpoint."):
            (folder / name).unlink(missing_ok=True)


def tidy(out: Path) -> None:
    """Write a finished run's metrics.csv anew if it is lost or torn, and remove checkpoints that were left.

    A folder that cannot be written stays as it is.
    """
    curve = records.plain(records.read_record(out).curve)
    try:
        whole = records.plain(records.read_metrics(out)) == curve
    except ValueError:
        whole = False
    with suppress(OSError):
        if curve and not whole:
            records.write_metrics(out, curve)
        remove_checkpoints(out)


def write_rows(run: Run, out: Path) -> None:
    """Write metrics.csv; the run goes on if that fails, because checkpoints and record hold the rows too."""
    try:
        records.write_metrics(out, run.rows)
    except OSError as error:
        print(f"{out / 'metrics.csv'} could not be written: {error}", file=sys.stderr)


def write_when_there_is_room(out: Path, record: records.Record) -> None:
    """Write the record of a run that has not finished; on a full disk wait `ROOM_SECONDS` for room."""
    deadline = time.monotonic() + ROOM_SECONDS
    while True:
        try:
            return records.write_record(out, record)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            if not full or time.monotonic() > deadline:
                print(f"{out / 'record.json'} could not be written: {error}", file=sys.stderr)
                return None
            time.sleep(1)
