"""A run owns its folder, goes on only with what it began with, and loses nothing to what can be repaired."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wmse import checkpoints, machine, records, training
from wmse import run as runs
from wmse.checkpoints import FolderInUseError, claimed
from wmse.data import load
from wmse.data.streaming import StreamedSet
from wmse.machine import write_whole
from wmse.recipes import get_recipe
from wmse.run import Run

NAME = "digits/w-mse-2"
SMALL = {"epochs": 3, "batch_size": 16, "slice_size": 8, "embedding_dim": 4, "projector_width": 8}
TINY = replace(get_recipe(NAME), precision="float32", **SMALL)  # 3 epochs of 3 steps of 50 images
SETS = {split: load("digits", split).first(50) for split in ("train", "test")}
LEFT = {"record.json", "metrics.csv", "encoder.safetensors", "projector.safetensors"}


def train(out=None, recipe=TINY, **options):
    return training.train(NAME, out, recipe, device="cpu", **options)


def quicken(patch):
    """A checkpoint after every step; nothing that takes long; 50 images, which tests may change."""
    patch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    patch.setattr(training, "evaluate", lambda *_: {"linear_top1": 0.0})
    patch.setattr(training, "load", lambda _, split, *__: SETS[split])
    patch.setattr(machine, "git_state", lambda: None)


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    quicken(monkeypatch)
    monkeypatch.chdir(tmp_path)


def strike(patch, step, act):
    """Let `act` be called in the step after `step`."""
    original = Run.step

    def struck(run, views, labels):
        if run.steps_taken == step:
            act()
        return original(run, views, labels)

    patch.setattr(Run, "step", struck)


def fail(error):
    raise error


def content(folder):
    """Names and bytes of all that lies in a folder."""
    return {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Folders of a run that nothing disturbed, and of one that lost its power after step 5."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        train(root / "whole")
        strike(patch, 5, lambda: fail(OSError("no power")))
        with pytest.raises(OSError, match="no power"):
            train(root / "stopped")
    return root


@pytest.fixture
def stopped(first, tmp_path):
    return shutil.copytree(first / "stopped", tmp_path / "stopped")


def same_end(folder, first, *more):
    """The folder holds the finished run, as undisturbed, and besides it only the names in `more`."""
    assert {path.name for path in folder.iterdir()} == LEFT | set(more)
    for name in records.NETWORKS:
        assert (folder / name).read_bytes() == (first / "whole" / name).read_bytes()
    record = records.read_record(folder)
    assert record.status == "finished" and record.curve == records.read_metrics(folder)
    assert [row["step"] for row in record.curve] == [3, 6, 9]


# --- identity ------------------------------------------------------------------------------------


def changed(split, **values):
    return SETS | {split: replace(SETS[split], **values)}


MORE = load("digits", "train")
OTHER_SETS = {
    "images in train was 50, is 110": SETS | {"train": MORE.first(110)},
    "images in train was 50, is 20": SETS | {"train": MORE.first(20)},
    "SHA-256 of train was": changed("train", images=SETS["train"].images ^ 1),
    "SHA-256 of test was": changed("test", labels=SETS["test"].labels.roll(1)),
}


@pytest.mark.parametrize("lost", ["nothing", "checkpoint*", "record*"])
@pytest.mark.parametrize("words", OTHER_SETS)
def test_other_images_are_refused_and_nothing_is_touched(words, lost, stopped, monkeypatch):
    for path in stopped.glob(lost):
        path.unlink()
    before = content(stopped)
    monkeypatch.setattr(training, "load", lambda _, split, *__: OTHER_SETS[words][split])
    with pytest.raises(FileExistsError, match=f"{words}.*--restart"):
        train(stopped, resume=True)
    assert content(stopped) == before


def test_the_record_and_the_checkpoint_name_the_images(first):
    record = records.read_record(first / "whole")
    assert record.images_sha256 == {split: SETS[split].fingerprint() for split in SETS} | {
        "probe": SETS["train"].fingerprint()
    }
    state = checkpoints.load_checkpoint(first / "stopped")
    assert state["identity"] == record.identity and state["identity"]["images in test"] == 50


def test_a_list_of_files_is_told_from_another_and_known_in_another_place():
    def streamed(paths, labels=(0, 1)):
        statistics = SETS["train"].mean, SETS["train"].std
        return StreamedSet("some", tuple(paths), torch.tensor(labels), ("a", "b"), *statistics).fingerprint()

    here = streamed(["/here/a/1.png", "/here/b/1.png"])
    assert here == streamed(["/there/again/a/1.png", "/there/again/b/1.png"])
    others = (["/here/a/2.png", "/here/b/1.png"],), (["/here/b/1.png", "/here/a/1.png"],)
    assert here not in [streamed(*other) for other in (*others, (["/here/a/1.png", "/here/b/1.png"], (1, 0)))]


@pytest.mark.parametrize("number", [0, 15, 30, 100])
def test_an_epoch_of_other_images_than_the_run_began_with_is_refused(number):
    run = Run(TINY, 50, "cpu")
    with pytest.raises(ValueError, match=f"3 batches of 16 images, and the {number} images given"):
        next(run.epoch(MORE.first(number)))


def test_an_epoch_that_yields_no_batch_is_an_error(monkeypatch):
    monkeypatch.setattr(runs, "view_batches", lambda *_: iter(()))
    with pytest.raises(ValueError, match="no batch was left in epoch 1"):
        next(Run(TINY, 50, "cpu").epoch(SETS["train"]))


# --- checkpoints ---------------------------------------------------------------------------------

NOT_ENOUGH = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"
FAILURES = {
    "may not": ("pathlib.Path.read_bytes", PermissionError(errno.EACCES, "Permission denied")),
    "disk": ("pathlib.Path.read_bytes", OSError(errno.EIO, "Input/output error")),
    "mount": ("pathlib.Path.read_bytes", OSError(errno.ESTALE, "Stale file handle")),
    "memory": ("torch.load", MemoryError()),
    "torch's memory": ("torch.load", RuntimeError(NOT_ENOUGH)),
}


@pytest.mark.parametrize("which", FAILURES)
def test_a_checkpoint_that_cannot_be_read_is_not_taken_for_damaged(
    which, stopped, first, monkeypatch, capsys
):
    before = content(stopped)
    with monkeypatch.context() as patch:
        where, error = FAILURES[which]
        patch.setattr(where, lambda *_, **__: fail(error))
        patch.setattr(records, "read_record", lambda _: records.parse_record(before["record.json"]))
        with pytest.raises(OSError, match="nothing was touched.*checkpoint.pt") as told:
            train(stopped, resume=True)
    if which in ("memory", "torch's memory"):
        assert "Cannot allocate memory" in str(told.value)
    assert content(stopped) == before and "beginning" not in capsys.readouterr().out
    train(stopped, resume=True)
    same_end(stopped, first)


def no_file(path):
    path.unlink()
    path.symlink_to("/not/mounted/checkpoint.pt")


def a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("act", [no_file, a_folder])
def test_a_name_that_leads_nowhere_is_not_taken_for_absent(act, stopped):
    act(stopped / "checkpoint.pt")
    before = {path.name for path in stopped.iterdir()}
    with pytest.raises(OSError, match="checkpoint.pt"):
        train(stopped, resume=True)
    assert {path.name for path in stopped.iterdir()} == before


def flip_a_weight(path):
    """One bit of one weight: torch loads such a file without a word."""
    whole = path.read_bytes()
    weight = torch.load(path, weights_only=True)["networks"]["projector.0.weight"].numpy().tobytes()
    at = whole.index(weight)
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])


TEARS = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "zeros": lambda path: path.write_bytes(path.read_bytes()[:-100] + bytes(100)),
    "a bit": flip_a_weight,
    "text": lambda path: path.write_text("no checkpoint"),
}


@pytest.mark.parametrize("how", TEARS)
def test_a_torn_checkpoint_is_passed_over_and_if_both_are_torn_nothing_is_touched(
    how, stopped, first, capsys
):
    TEARS[how](stopped / "checkpoint.pt")
    both = shutil.copytree(stopped, stopped.with_name("both"))
    train(stopped, resume=True)
    assert "resuming after step 4" in capsys.readouterr().out
    same_end(stopped, first)

    TEARS[how](both / "checkpoint.previous.pt")
    before = content(both)
    with pytest.raises(ValueError, match="checkpoint.pt and checkpoint.previous.pt, damaged.*--restart"):
        train(both, resume=True)
    assert content(both) == before
    train(both, restart=True)
    same_end(both, first, *(f"{name}.old-1" for name in before))
    assert {f"{name}.old-1": whole for name, whole in before.items()}.items() <= content(both).items()


def test_a_damaged_checkpoint_never_becomes_the_one_to_fall_back_on(stopped):
    newest, previous = (stopped / name for name in records.CHECKPOINTS)
    kept = previous.read_bytes()
    TEARS["cut"](newest)
    assert checkpoints.load_checkpoint(stopped)["steps_taken"] == 4
    assert not newest.exists() and previous.read_bytes() == kept


@pytest.mark.parametrize("state", [{"model": {}, "epoch": 7}, [1, 2], Path("pickled")], ids=str)
def test_a_checkpoint_of_something_else_is_named(state, stopped):
    torch.save(state, stopped / "checkpoint.pt")
    before = content(stopped)
    with pytest.raises(ValueError, match="checkpoint.pt is no checkpoint of this version's runs: it lacks"):
        train(stopped, resume=True)
    assert content(stopped) == before


def test_a_checkpoint_of_other_settings_is_refused_even_without_a_record(stopped):
    (stopped / "record.json").unlink()
    with pytest.raises(FileExistsError, match="seed was 0, is 1"):
        train(stopped, replace(TINY, seed=1), resume=True)


# --- metrics.csv ---------------------------------------------------------------------------------

LOSSES = TEARS | {
    "two rows": lambda path: path.write_text("".join(path.read_text().splitlines(True)[:-2])),
    "all": lambda path: path.unlink(),
    "a row too many": lambda path: path.write_text(path.read_text() * 2),
}
del LOSSES["a bit"]


@pytest.mark.parametrize("how", LOSSES)
@pytest.mark.parametrize("which", ["stopped", "whole"])
def test_what_metrics_csv_loses_is_written_again(how, which, first, tmp_path):
    folder = shutil.copytree(first / which, tmp_path / "run")
    LOSSES[how](folder / "metrics.csv")
    train(folder, resume=True)
    same_end(folder, first)


def test_what_decorates_a_record_does_not_keep_it_from_being_written(stopped, monkeypatch, capsys):
    a_folder(stopped / "metrics.csv")
    monkeypatch.setattr(training, "spectra", lambda *_: fail(RuntimeError("did not converge")))
    record = records.read_record(train(stopped, resume=True))
    assert record.status == "finished" and [row["step"] for row in record.curve] == [3, 6, 9]
    told = capsys.readouterr().err
    assert "metrics.csv could not be written" in told and "no spectra: RuntimeError" in told


# --- the folder ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"restart": True}], ids=str)
def test_a_folder_has_one_run_at_a_time(options, tmp_path, first):
    folder, told = tmp_path / "run", []

    def second():
        with pytest.raises(FolderInUseError, match="in use.*--out") as error:
            train(folder, **options)
        told.append(error)

    with pytest.MonkeyPatch.context() as patch:
        strike(patch, 4, second)
        train(folder)
    assert told
    same_end(folder, first)


def test_a_finished_run_is_read_whoever_owns_its_folder(first, tmp_path, monkeypatch):
    folder = shutil.copytree(first / "whole", tmp_path / "run")
    (folder / "metrics.csv").write_text("")
    monkeypatch.setattr(os, "open", lambda *_: fail(OSError(errno.EROFS, "Read-only file system")))
    monkeypatch.setattr(
        machine, "write_whole", lambda *_: fail(OSError(errno.EROFS, "Read-only file system"))
    )
    assert train(folder, resume=True) == folder
    monkeypatch.undo()
    with claimed(folder):
        assert train(folder, TINY, resume=True) == folder
    same_end(folder, first)


def test_runs_started_together_without_a_folder_get_one_each(tmp_path, first):
    outs = []
    with pytest.MonkeyPatch.context() as patch:

        def load_as_another_starts(_, split, *__):
            if not outs:
                outs.append(None)
                outs[0] = train()
            return SETS[split]

        patch.setattr(training, "load", load_as_another_starts)
        outs.append(train())
    assert outs == [Path("runs", NAME, "seed-0-2"), Path("runs", NAME, "seed-0")]
    assert train(resume=True) == outs[0], "to resume, the last"
    for out in outs:
        same_end(out, first)


def test_the_lock_of_a_process_that_was_killed_blocks_nobody(tmp_path):
    code = f"import filelock, time\nlock = filelock.FileLock({str(tmp_path / 'run' / '.lock')!r}).acquire()\n"
    (tmp_path / "run").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", code + "print(1, flush=True); time.sleep(60)"], stdout=subprocess.PIPE
    )
    process.stdout.readline()
    with pytest.raises(FolderInUseError), claimed(tmp_path / "run"):
        pass
    process.kill()
    process.wait()
    assert (tmp_path / "run" / ".lock").exists()
    with claimed(tmp_path / "run"), pytest.raises(FolderInUseError), claimed(tmp_path / "run"):
        pass


def test_a_file_system_without_locks_is_told_and_the_create_still_claims(tmp_path, monkeypatch, capsys):
    error = OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr("filelock.FileLock.acquire", lambda *_, **__: fail(error))
    with claimed(tmp_path / "run", free=True) as one, claimed(tmp_path / "run", free=True) as two:
        assert (one.name, two.name) == ("run", "run-2")
    assert "no locks" in capsys.readouterr().out and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", records.WRITTEN)
def test_no_file_is_written_over_without_being_asked(name, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=rf"{name}\).*--resume, --out, --restart"):
        train(folder)
    with pytest.raises((FileExistsError, ValueError), match=rf"{name}.*--restart"):
        train(folder, resume=True)
    assert content(folder) == {name: b"mine"}


@pytest.mark.parametrize("text", ["", "{", '{"name": "digits/w-mse-2"}', "\0" * 500])
def test_a_run_goes_on_from_its_checkpoint_alone(text, stopped, first, capsys):
    started = records.read_record(stopped).started
    (stopped / "record.json").write_text(text)
    with pytest.raises(FileExistsError, match="resume"):
        train(stopped)
    train(stopped, resume=True)
    assert "resuming after step 5" in capsys.readouterr().out
    same_end(stopped, first, "record.json.old-1")
    assert (stopped / "record.json.old-1").read_text() == text
    assert records.read_record(stopped).started == started


def test_a_broken_record_without_a_checkpoint_is_named_with_a_way_out(first, tmp_path):
    folder = shutil.copytree(first / "whole", tmp_path / "run")
    (folder / "record.json").write_text("")
    before = content(folder)
    with pytest.raises(FileExistsError, match="record.json: it is not JSON.*no checkpoint.*--restart"):
        train(folder, resume=True)
    assert content(folder) == before
    train(folder, restart=True)
    same_end(folder, first, *(f"{name}.old-1" for name in before))


def test_to_resume_and_to_restart_is_one_too_many(stopped):
    with pytest.raises(ValueError, match="ask for one"):
        train(stopped, resume=True, restart=True)


# --- a full disk, and requests to stop -----------------------------------------------------------

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"old")
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left.*file'"):
            patch.setattr(os, name, lambda *_: fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
            write_whole(path, b"new")
        assert content(tmp_path) == {"file": b"old"}
    write_whole(path, b"new", previous=tmp_path / "before")
    assert content(tmp_path) == {"file": b"new", "before": b"old"}


@pytest.mark.parametrize("step", [4, 9], ids=["in training", "as the networks are saved"])
def test_a_full_disk_leaves_no_rest_and_a_record_as_soon_as_there_is_room(step, stopped, first, monkeypatch):
    asleep, original = [], machine.write_whole

    def full(path, content, *previous):
        small = path.suffix in (".json", ".csv")
        if step == 4 or path.suffix == ".safetensors" or (small and asleep and len(asleep) < 3):
            full.met = full.met or not small
        if full.met and not (small and len(asleep) >= 3):
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", lambda _: fail(FULL))
                return original(path, content, *previous)
        return original(path, content, *previous)

    full.met = False
    with monkeypatch.context() as patch:
        patch.setattr(machine, "write_whole", full)
        patch.setattr(training.time, "sleep", asleep.append)
        with pytest.raises(OSError, match="No space"):
            train(stopped, resume=True)
    assert len(asleep) == 3 and not list(stopped.glob("*.tmp"))
    record = records.read_record(stopped)
    assert record.status == "failed" and "No space left" in record.error
    train(stopped, resume=True)
    same_end(stopped, first)


@pytest.mark.parametrize("where", ["load", "evaluate", "features"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda one: one.name)
def test_requests_to_stop_are_heard_outside_of_steps(number, where, stopped, first, monkeypatch):
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    before = content(stopped)
    with monkeypatch.context() as patch:
        patch.setattr(
            training, where, lambda *_: [os.kill(os.getpid(), number), fail(AssertionError("late"))]
        )
        with pytest.raises(SystemExit if number == signal.SIGTERM else KeyboardInterrupt):
            train(stopped, resume=True)
    if where == "load":
        assert content(stopped) == before
    else:
        assert records.read_record(stopped).status == "interrupted"
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers
    train(stopped, resume=True)
    same_end(stopped, first)


def test_a_run_that_fails_before_it_writes_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "load", lambda *_: fail(FileNotFoundError("no such set")))
    for out in (None, tmp_path / "a" / "b"):
        with pytest.raises(FileNotFoundError, match="no such set"):
            train(out)
    assert list(tmp_path.iterdir()) == []
