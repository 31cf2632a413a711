"""Training: the schedule, and that nothing which stops a run loses or changes anything."""

import copy
import os
import signal
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from warm_processes import warm

from wmse import checkpoints, machine, records, training
from wmse.checkpoints import claimed
from wmse.data import load, load_validation
from wmse.numerics import Checks
from wmse.recipes import get_recipe
from wmse.run import DivergenceError, Run, learning_rate
from wmse.training import evaluate_run, train

SMALL = {"epochs": 3, "batch_size": 64, "slice_size": 32, "embedding_dim": 8, "projector_width": 16}
TINY = replace(get_recipe("digits/w-mse-2"), precision="float32", **SMALL)  # 3 epochs of 3 steps at limit 200
NAME = "digits/w-mse-2"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A checkpoint after every step, and metrics that take no time: evaluation has tests of its own."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(training, "evaluate", lambda *_: {"linear_top1": 0.0})


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    patch = pytest.MonkeyPatch()
    patch.setattr(training, "evaluate", lambda *_: {"linear_top1": 0.0})
    out = train(NAME, tmp_path_factory.mktemp("runs") / "alone", TINY, limit=200)
    patch.undo()
    return out


def same_weights(first, second):
    for name in ("encoder", "projector"):
        a, b = (load_file(folder / f"{name}.safetensors") for folder in (first, second))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), "the weights differ"
    losses = [[row["loss"] for row in records.read_metrics(folder)] for folder in (first, second)]
    assert losses[0] == losses[1]


def stop_after(monkeypatch, step, error):
    """Let training raise `error` in the step after `step`."""
    original = Run.step

    def limited(run, views, labels):
        if run.steps_taken == step:
            raise error
        return original(run, views, labels)

    monkeypatch.setattr(Run, "step", limited)


def test_a_run_leaves_a_record_a_row_an_epoch_and_its_networks(alone):
    record = records.read_record(alone)
    assert record.status == "finished" and record.steps == 9 and record.limit == 200
    assert record.images == {"train": 200, "probe": 200, "test": 200} and record.precision == "float32"
    assert record.peak_memory_mb > 0 and record.curve == records.read_metrics(alone)
    assert [row["epoch"] for row in record.curve] == [1, 2, 3]
    names = {"record.json", "metrics.csv", "encoder.safetensors", "projector.safetensors"}
    assert {path.name for path in alone.iterdir()} == names


def test_an_unfinished_run_is_not_evaluated_but_told_to_go_on(tmp_path):
    out = train(NAME, tmp_path / "run", TINY, limit=64)
    record = records.read_record(out).model_copy(update={"status": "interrupted"})
    records.write_record(out, record)
    (out / "encoder.safetensors").unlink()
    with pytest.raises(
        ValueError, match="run is interrupted: finish it first, with its own command and --resume"
    ):
        evaluate_run(out)


@pytest.mark.parametrize("width", [1, 3, 4, 7, 8])
def test_networks_of_very_few_channels_train_on_a_cpu(width):
    """Channels last, torch's convolutions corrupt memory on some CPUs, and the process may abort."""
    tiny = {"encoder": "resnet18", "stem": "64px", "embedding_dim": 4, "batch_size": 64, "slice_size": 32}
    run = Run(replace(get_recipe("digits/w-mse-2"), width=width, **tiny), 64, "cpu")
    assert run.memory_format == torch.contiguous_format
    run.model.train()
    views = torch.randn(2, 64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    losses = [float(run.step(views, torch.zeros(64, dtype=torch.int64))[0]) for _ in range(3)]
    assert all(0 < loss < 4 for loss in losses)


def test_the_same_seed_gives_the_same_run_and_another_another(alone, tmp_path):
    same_weights(alone, train(NAME, tmp_path / "again", TINY, limit=200))
    other = train(NAME, tmp_path / "other", replace(TINY, seed=1), limit=200)
    with pytest.raises(AssertionError, match="differ"):
        same_weights(alone, other)


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_resumed_run_ends_like_one_left_alone(step, alone, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(OSError, match="power"):
        stop_after(patch, step, OSError("no power"))
        train(NAME, tmp_path / "run", TINY, limit=200)
    record = records.read_record(tmp_path / "run")
    assert record.status == "failed" and "no power" in record.error
    train(NAME, tmp_path / "run", TINY, limit=200, resume=True)
    assert f"resuming after step {step}" in capsys.readouterr().out
    same_weights(alone, tmp_path / "run")


def test_an_epoch_goes_on_from_a_state_in_its_middle_as_if_undisturbed():
    images = load("digits", "train").first(200)
    whole, cut, resumed = (Run(TINY, 200, "cpu") for _ in range(3))
    expected = [loss.item() for _ in range(2) for loss, _ in whole.epoch(images)]
    found = [loss.item() for loss, _ in islice(cut.epoch(images), 2)]
    resumed.load_state_dict(copy.deepcopy(cut.state_dict()))
    assert resumed.steps_taken == 2 and resumed.loss_sum.item() == pytest.approx(sum(found))
    found += [loss.item() for _ in range(2) for loss, _ in resumed.epoch(images)]
    assert found == expected and torch.equal(resumed.loss_sum, whole.loss_sum)


def test_the_order_of_an_epoch_names_the_images_of_its_steps(monkeypatch):
    images, labels, original = load("digits", "train").first(200), [], Run.step
    monkeypatch.setattr(Run, "step", lambda run, *batch: labels.append(batch[1]) or original(run, *batch))
    run = Run(TINY, 200, "cpu")
    for _ in range(2):
        labels.clear()
        run.encoder.eval()
        assert len(list(run.epoch(images))) == len(labels) == 3
        assert torch.equal(torch.cat(labels), images.labels[run.order[:192]])
        assert run.encoder.training, "an epoch trains, whatever was evaluated before it"


def test_a_damaged_checkpoint_is_passed_over_for_the_previous(alone, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(OSError):
        stop_after(patch, 5, OSError())
        train(NAME, tmp_path / "run", TINY, limit=200)
    newest = tmp_path / "run" / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    train(NAME, tmp_path / "run", TINY, limit=200, resume=True)
    told = capsys.readouterr().out
    assert "checkpoint.pt is damaged" in told and "resuming after step 4" in told
    same_weights(alone, tmp_path / "run")


def until_killed(out, threads, steps):
    """Train and send the number of each step, in a process of its own."""
    torch.set_num_threads(threads)
    training.CHECKPOINT_SECONDS = -1.0
    training.evaluate = lambda *_: {}
    original = Run.step

    def told(run, views, labels):
        steps.send(run.steps_taken)
        return original(run, views, labels)

    Run.step = told
    train(NAME, out, TINY, limit=200, resume=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_a_run_killed_by_a_signal_can_be_resumed(number, alone, tmp_path, capsys):
    steps, sent = warm().Pipe(duplex=False)
    work = tmp_path / "run", torch.get_num_threads(), sent
    process = warm().Process(target=until_killed, args=work)
    process.start()
    sent.close()
    while steps.recv() < 5:
        pass
    os.kill(process.pid, number)
    process.join(timeout=60)
    assert process.exitcode
    status = records.read_record(tmp_path / "run").status
    assert status == ("running" if number == signal.SIGKILL else "interrupted")
    train(NAME, tmp_path / "run", TINY, limit=200, resume=True)
    assert "resuming after step" in capsys.readouterr().out
    same_weights(alone, tmp_path / "run")


def test_a_finished_run_is_left_as_it_is(alone, capsys):
    before = {path: path.stat().st_mtime_ns for path in alone.iterdir()}
    train(NAME, alone, TINY, limit=200, resume=True)
    assert "finished already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in alone.iterdir()}


def test_a_folder_with_a_run_is_not_written_over(alone):
    with pytest.raises(FileExistsError, match="resume"):
        train(NAME, alone, TINY, limit=200)
    with pytest.raises(FileExistsError, match="slice_size was 32, is 64"):
        train(NAME, alone, replace(TINY, slice_size=64), limit=200, resume=True)
    with pytest.raises(FileExistsError, match="limit was 200, is 300"):
        train(NAME, alone, TINY, limit=300, resume=True)


@pytest.mark.parametrize("method", ["w-mse", "mse"])
def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(method, tmp_path):
    recipe = replace(TINY, method=method, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(DivergenceError, match="learning_rate"):
        train("digits/" + method, tmp_path / "run", recipe, limit=200)
    record = records.read_record(tmp_path / "run")
    assert record.status == "failed" and "DivergenceError" in record.error
    state = checkpoints.load_checkpoint(tmp_path / "run")
    assert state is None or all(tensor.isfinite().all() for tensor in state["networks"].values())


def test_a_checkpoint_is_never_made_of_weights_that_are_not_finite(tmp_path):
    run = Run(TINY, 200, "cpu")
    checkpoints.save_checkpoint(run, tmp_path)
    good = (tmp_path / "checkpoint.pt").read_bytes()
    next(run.encoder.parameters()).data[0] = float("nan")
    with pytest.raises(DivergenceError, match="weights"):
        checkpoints.save_checkpoint(run, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == good
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt"]


@pytest.mark.parametrize("epochs", [1000, 50, 30, 20])
def test_the_schedule_is_torchs_multistep_with_a_warmup(epochs):
    recipe = replace(get_recipe("cifar10/w-mse-2"), epochs=epochs, warmup_steps=7)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe.learning_rate)
    milestones = [epochs - before for before in recipe.lr_drops if epochs > before]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=recipe.lr_drop_factor)
    start = (
        recipe.lr_drop_factor if epochs in recipe.lr_drops else 1.0
    )  # a drop at the very start acts at once
    for step in range(epochs * 3):
        warmup = min(1, (step + 1) / 7)
        expected = optimizer.param_groups[0]["lr"] * warmup * start
        assert learning_rate(recipe, step, 3) == pytest.approx(expected, rel=1e-9)
        if step % 3 == 2:
            optimizer.step()
            scheduler.step()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slice_size": 8}, "slice_size = 8"),
        ({"slice_size": 48}, "not a multiple of slice_size = 48"),
        ({"positives": 1}, "d = 1"),
        ({"method": "dino"}, "'dino'.*w-mse"),
        ({"whitening": "lu"}, "'lu'.*cholesky"),
        ({"whitening": "standardize", "method": "cw-rgp", "groups": 1}, "standardize.*cw-rgp"),
        ({"whitening": "standardize", "whitening_eps": 0.1}, "standardize.*0.1"),
        ({"projector_layers": 0}, "outputs = inputs = 256"),
        ({"precision": "int8"}, "'int8'.*float32"),
        ({"epochs": 0}, "epochs"),
        ({"encoder": "vgg"}, "'vgg'.*resnet18"),
        ({"dataset": "mnist"}, "'mnist'.*digits"),
        ({"seed": 9000000000000000000}, r"seed is 9000000000000000000; give .* 0 to 4294967295 "),
        ({"seed": 2**32}, r"0 to 4294967295 \(2\*\*32 - 1\)"),
        ({"seed": -1}, "seed is -1; give a whole number from 0"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_before_anything_is_written(change, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        train(NAME, tmp_path / "run", replace(TINY, **change), limit=200)
    assert not (tmp_path / "run").exists()


def test_fewer_images_than_a_batch_are_refused(tmp_path):
    with pytest.raises(ValueError, match="50 training images.*64"):
        train(NAME, tmp_path / "run", TINY, limit=50)


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bfloat16"},
        {"whitening": "qr"},
        {"whitening": "standardize", "projector_layers": 1},
        {"positives": 3, "iterations": 2},
    ],
)
def test_other_settings_train_too(change, tmp_path):
    out = train(NAME, tmp_path / "run", replace(TINY, epochs=2, **change), limit=200)
    rows = records.read_metrics(out)
    assert len(rows) == 2 and all(0 < row["loss"] < 4 for row in rows)


def test_the_whitened_loss_learns_and_the_plain_one_collapses(tmp_path, monkeypatch):
    monkeypatch.setattr(
        training, "CHECKPOINT_SECONDS", 1e9
    )  # one after each step takes longer than the steps
    results = {}
    for method in ("w-mse", "mse"):
        recipe = replace(TINY, method=method, epochs=6, warmup_steps=5, lr_drops=())
        results[method] = records.read_metrics(train(NAME, tmp_path / method, recipe, limit=512))
    assert results["w-mse"][-1]["loss"] < results["w-mse"][0]["loss"] - 0.2
    assert results["mse"][-1]["embedding_std"] < 0.2 < 0.5 < results["w-mse"][-1]["embedding_std"]
    assert results["mse"][-1]["effective_rank"] < results["w-mse"][-1]["effective_rank"]


@pytest.mark.parametrize("warmup", [0, 7])
def test_the_cosine_schedule_is_torchs_after_the_warmup(warmup):
    recipe = replace(get_recipe("cifar10/w-mse-2"), epochs=20, warmup_steps=warmup, cosine_schedule=True)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe.learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60 - warmup)
    for step in range(warmup):
        expected = recipe.learning_rate * (step + 1) / warmup
        assert learning_rate(recipe, step, 3) == pytest.approx(expected)
    for step in range(warmup, 60):
        assert learning_rate(recipe, step, 3) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)


def test_a_validated_run_never_loads_test_images_and_says_what_it_was_scored_on(tmp_path, monkeypatch):
    learn, score = load_validation("digits")
    seen = []

    def evaluate(encoder, projector, probe, test, *_):
        assert torch.equal(probe.images, learn.images) and torch.equal(test.images, score.images)
        seen.append(test)
        return {"linear_top1": 50.0}

    monkeypatch.setattr(training, "load", lambda name, split, *_: pytest.fail(f"{split} was loaded"))
    monkeypatch.setattr(training, "evaluate", evaluate)
    recipe = replace(TINY, epochs=1)
    out = train(NAME, tmp_path / "run", recipe, validate=True)
    record = records.read_record(out)
    assert record.scored_on == "validation" and record.changes["scored_on"] == "validation"
    assert record.images == {"train": 1843, "probe": 1843, "test": 205}
    evaluate_run(out)
    train(NAME, out, recipe, validate=True, resume=True)
    assert len(seen) == 2, "a finished run is not evaluated again"
    with pytest.raises(FileExistsError, match="scored_on was validation, is test"):
        train(NAME, out, recipe, resume=True)


# Runs that are shared


def test_a_run_of_another_process_is_waited_for_last(tmp_path, monkeypatch):
    began, other = [], ExitStack()

    def fake(name, folder, recipe, data, resume):
        with claimed(folder):
            began.append(name)
        return folder

    monkeypatch.setattr(training, "train", fake)
    monkeypatch.setattr(training.time, "sleep", lambda seconds: other.close() if seconds else None)
    other.enter_context(claimed(tmp_path / "digits/mse/epochs-2-lr-drops-2-1/seed-5"))
    names, changes = ["digits/mse", "digits/byol"], {"seed": 5, "lr_drops": (2, 1), "epochs": 2}
    folders = training.train_all(names, tmp_path, changes)
    assert began == ["digits/byol", "digits/mse"]
    assert folders["digits/byol"] == tmp_path / "digits/byol/epochs-2-lr-drops-2-1/seed-5"


def test_a_shared_run_is_trained_once_and_says_what_it_is(tmp_path):
    names = ["digits/random-encoder"]
    folders = training.train_all(names, tmp_path, {"seed": 2, "batch_size": 128})
    first = (folders[names[0]] / "record.json").read_bytes()
    assert folders[names[0]] == tmp_path / "digits/random-encoder/seed-2"  # 128 is no change
    assert training.train_all(names, tmp_path, {"seed": 2}) == folders
    assert (folders[names[0]] / "record.json").read_bytes() == first
    assert records.read_record(folders[names[0]]).recipe == replace(get_recipe(names[0]), seed=2)


def test_the_first_line_of_progress_comes_early_and_the_others_are_rare(monkeypatch, capsys):
    """A step takes a second by this clock. In pytest, stderr is no terminal."""
    clock = iter(range(1000))
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(clock)))
    recipe = get_recipe("digits/w-mse-2")
    run = SimpleNamespace(recipe=recipe, steps_taken=0, steps_per_epoch=10, checks=Checks(deferred=False))
    with training.progress(run, 100) as report:
        for run.steps_taken in range(1, 101):
            report(torch.tensor(1.5))
    lines = capsys.readouterr().out.splitlines()
    views = recipe.batch_size * recipe.positives
    assert lines[0] == f"epoch 1/{recipe.epochs}, loss 1.500, {views:,} views/s, 1 min 37 s left"
    assert [line.split("/")[0] for line in lines] == ["epoch 1", "epoch 4", "epoch 7", "epoch 10"]


def test_what_is_trained_and_where_is_said(capsys):
    device = torch.device("cpu")
    training._announce("digits/w-mse-2", get_recipe("digits/w-mse-2"), device)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("digits/w-mse-2, seed 0, ") and ("float32 on " in line or "bfloat16 on " in line)
    assert machine.hardware_label(machine.describe(device)) in line
