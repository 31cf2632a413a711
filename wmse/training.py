"""Runs from start to record: images -> views -> networks -> loss, kept safe, then evaluated."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from wmse import distributed, machine, records
from wmse.data import OWN_PROBE, SPLITS, load, view_batches
from wmse.evaluation import effective_rank, embedding_std, evaluate, features, project
from wmse.metrics import spectra
from wmse.numerics import resolve_precision, settle
from wmse.objectives import WHOLE_BATCH, check_method
from wmse.recipes import Recipe, get_recipe
from wmse.run import DivergenceError as DivergenceError
from wmse.run import (
    Run,
    diverged,
    learning_rate,
    load_checkpoint,
    load_networks,
    remove_checkpoints,
    save_checkpoint,
    save_networks,
    start_run,
    train_step,
    wrapped,
)
from wmse.whitening import WHITENING

CHECKPOINT_SECONDS = 30.0


def train(
    name: str,
    out: str | Path,
    recipe: Recipe | None = None,
    data: str | Path | None = None,
    device: str | None = None,
    resume: bool = False,
    limit: int | None = None,
    command: str | None = None,
) -> Path:
    """Train and evaluate a recipe; everything lands in the folder `out`.

    Started by torchrun, the processes share each batch, and the first of them evaluates and writes.

    Args:
        name: the recipe's name, "digits/w-mse-2".
        out: the run's folder: record.json, metrics.csv (a row an epoch), encoder.safetensors and
            projector.safetensors, and checkpoints while it runs.
        recipe: that recipe with changes; as it stands if None.
        data: folder of the data sets; None means `$WMSE_DATA`, else "data".
        device: "cpu", "cuda", ...; None means CUDA where there is any.
        resume: go on from the newest whole checkpoint in `out`, or from the beginning, saying so, if there is
            none; a finished run is left as it is. On the CPU, at the same number of threads, a resumed run
            ends with the same weights as one left alone.
        limit: use only the first so many images of each split, for trials.
        command: the command line, for the record.

    Returns:
        `out`, as a path.

    Raises:
        ValueError: an unknown name, or sizes that do not fit; before anything is written.
        FileExistsError: `out` holds a run, and `resume` is false or that run has other settings.
        DivergenceError, SingularCovarianceError: training cannot go on. The record says so, and the last
            good checkpoint is kept.
        KeyboardInterrupt, SystemExit: on SIGINT or SIGTERM, after the step in hand and a checkpoint.
    """
    recipe, out = recipe or get_recipe(name), Path(out)
    with distributed.joined(device) as where:
        machine.configure_process(where)
        check_recipe(recipe, where)
        if distributed.from_first(lambda: _finished(out, recipe, limit, resume)):
            _say(f"{out} is finished already: nothing to do")
            return out
        sets = distributed.first_before_others(lambda: _load(recipe, data, where, limit))
        if recipe.epochs and len(sets["train"]) < recipe.batch_size:
            raise ValueError(
                f"{len(sets['train'])} training images make no batch of {recipe.batch_size}: "
                "take more images or a smaller batch_size"
            )
        run = start_run(recipe, len(sets["train"]), where, len(sets["train"].classes))
        if resume:
            state = distributed.from_first(lambda: load_checkpoint(out))
            if state:
                run.load_state_dict(state)
            found = f"resuming after step {run.step}" if state else "no checkpoint: from the beginning"
            _say(f"{out}: {found}")
        first = distributed.rank() == 0
        if not first:
            _loop(run, sets["train"], out)
            distributed.any_of(True)  # wait for the first to finish
            return out
        _train_and_record(name, run, sets, out, limit, command)
        distributed.any_of(True)
    return out


def _load(recipe: Recipe, data: str | Path | None, device: torch.device, limit: int | None) -> dict[str, Any]:
    """The sets to train on, to teach classifiers and to test them: "train", "probe" and "test"."""
    splits = [split for split in SPLITS if split != "probe" or recipe.dataset in OWN_PROBE]
    sets = {split: load(recipe.dataset, split, data, device) for split in splits}
    sets.setdefault("probe", sets["train"])
    if recipe.method == "supervised":
        sets["train"] = sets["train"].labelled()
    if limit is not None:
        if not 0 < limit <= len(sets["train"]):
            raise ValueError(
                f"limit is {limit}, not within 1 to {len(sets['train'])}, the size of {recipe.dataset} train"
            )
        sets = {split: images.first(min(limit, len(images))) for split, images in sets.items()}
    return sets


def _train_and_record(
    name: str, run: Run, sets: dict[str, Any], out: Path, limit: int | None, command: str | None
) -> None:
    """What the first process does, or the only one: the loop, the evaluation, and the record of both."""
    recipe, device = run.recipe, run.loss_sum.device
    out.mkdir(parents=True, exist_ok=True)
    records.cut_metrics(out, run.step // run.steps_per_epoch if run.step else 0)
    record = records.start_record(
        name,
        recipe,
        device,
        command=command,
        precision=str(run.dtype).removeprefix("torch."),
        processes=distributed.size(),
        limit=limit,
        images={split: len(images) for split, images in sets.items()},
    )
    if run.step and (out / "record.json").exists():
        record.started = records.read_record(out).started  # before the run was resumed
    records.write_record(out, record)
    try:
        _loop(run, sets["train"], out)
        save_networks(run, out)
        trained = time.monotonic()
        test_features = features(run.encoder, sets["test"])
        networks = run.encoder, run.projector
        record.metrics = evaluate(*networks, sets["probe"], sets["test"], recipe, test_features)
        if recipe.encoder != "pixels":  # thousands of dimensions that nobody plots
            record.spectra = spectra(test_features, project(run.projector, test_features))
        record.wall_seconds = run.seconds + time.monotonic() - trained
        record.status = "finished"
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        record.status = "interrupted" if interrupted else "failed"
        record.error = f"{type(error).__name__}: {error}"
        raise
    finally:
        views = run.step * recipe.batch_size * recipe.positives
        record.finished, record.steps, record.train_seconds = records.now(), run.step, run.seconds
        record.views_per_second = views / run.seconds if run.seconds else None
        record.peak_memory_mb, record.curve = machine.peak_memory_mb(device), records.read_metrics(out)
        records.write_record(out, record)
    remove_checkpoints(out)


def evaluate_run(
    folder: str | Path, data: str | Path | None = None, device: str | None = None
) -> dict[str, float]:
    """Evaluate a run's saved networks again on the images that its record names; the record stays."""
    record = records.read_record(folder)
    recipe = record.recipe
    where = distributed.choose_device(device)
    machine.configure_process(where)
    probe, test = (
        images.first(min(record.limit or len(images), len(images)))
        for images in (load(recipe.dataset, split, data, where) for split in ("probe", "test"))
    )
    return evaluate(*load_networks(folder, recipe, where), probe, test, recipe)


def check_recipe(recipe: Recipe, device: torch.device) -> None:
    """Raise ValueError, saying what to change, for a recipe that would fail later on these processes."""
    if recipe.whitening not in WHITENING:
        raise ValueError(f"unknown whitening {recipe.whitening!r}; there are: {', '.join(WHITENING)}")
    needed = ["learning_rate", "batch_size", "embedding_dim", "projector_width", "width"]
    for field in needed + (["epochs"] if recipe.method != "none" else []):
        if not getattr(recipe, field) > 0:
            raise ValueError(f"{field} must be more than 0; got {getattr(recipe, field)}")
    if recipe.method == "none" and recipe.epochs:
        raise ValueError(f"method none trains nothing: epochs must be 0; got {recipe.epochs}")
    processes = distributed.size()
    if recipe.batch_size % processes:
        raise ValueError(
            f"batch_size = {recipe.batch_size} images cannot be shared equally by {processes} processes"
        )
    own = recipe.batch_size // processes
    try:
        check_method(recipe, recipe.batch_size if recipe.method in WHOLE_BATCH else own)
    except ValueError as error:
        if processes == 1:
            raise
        raise ValueError(
            f"each of {processes} processes has {own} of a batch's {recipe.batch_size} images, and slices "
            f"never cross processes: {error}"
        ) from None
    if recipe.sync_batchnorm and processes > 1 and device.type != "cuda":
        raise ValueError(f"sync_batchnorm works on CUDA only, not on {device.type}: leave it off")
    resolve_precision(recipe.precision, device)


def _loop(run: Run, images: Any, out: Path) -> None:
    """Train to the last epoch; a row in metrics.csv an epoch, a checkpoint at most half a minute apart."""
    recipe = run.recipe
    total = recipe.epochs * run.steps_per_epoch
    saved = ticked = time.monotonic()
    with stop_requests() as stop, progress(run, total) as report:
        learner = wrapped(run) if total else run.learner
        while run.step < total:
            epoch, position = divmod(run.step, run.steps_per_epoch)
            if position == 0:
                order = torch.randperm(len(images), generator=run.generators["batches"])
                run.order = order.to(run.loss_sum.device)
                run.loss_sum, run.epoch_seconds = torch.zeros_like(run.loss_sum), 0.0
            batches = view_batches(
                images,
                distributed.share(run.order, recipe.batch_size),
                recipe.positives,
                recipe.batch_size // distributed.size(),
                recipe.views,
                run.generators["views"],
                start=position,
                seed=recipe.seed * recipe.epochs + epoch,
            )
            for views, labels in batches:
                loss, embeddings = train_step(run, learner, views, labels)
                run.loss_sum += loss
                now = time.monotonic()
                elapsed, ticked = now - ticked, now
                run.seconds += elapsed
                run.epoch_seconds += elapsed
                if run.step % run.steps_per_epoch == 0:
                    _end_epoch(run, embeddings, out)
                stopped, due = distributed.any_of(bool(stop), now - saved > CHECKPOINT_SECONDS)
                if stopped or due or run.step == total:
                    _save(run, out)
                    saved = time.monotonic()
                report(loss)
                if stopped:
                    _say(f"stopped after step {run.step}; resume to go on from there")
                    raise (
                        KeyboardInterrupt if stop[:1] == [signal.SIGINT] else SystemExit(128 + signal.SIGTERM)
                    )


def _save(run: Run, out: Path) -> None:
    """Write a checkpoint, but never of a run that has diverged: the last good one must stay."""
    settle()
    if not all(bool(parameter.isfinite().all()) for parameter in run.learner.parameters()):
        raise diverged(run, "the weights hold NaN or infinity")
    state = run.state_dict()
    if distributed.rank() == 0:
        save_checkpoint(out, state)


def _end_epoch(run: Run, embeddings: Tensor, out: Path) -> None:
    """A row of metrics.csv; the measures of collapse are of the last batch, in training mode."""
    settle()
    recipe = run.recipe
    loss = float(distributed.mean(run.loss_sum)) / run.steps_per_epoch
    if distributed.rank():
        return
    rows = embeddings.flatten(0, 1).cpu()
    row = {
        "epoch": run.step // run.steps_per_epoch,
        "step": run.step,
        "loss": loss,
        "learning_rate": learning_rate(recipe, run.step - 1, run.steps_per_epoch),
        "embedding_std": embedding_std(rows),
        "effective_rank": effective_rank(rows),
        "views_per_second": run.steps_per_epoch * recipe.batch_size * recipe.positives / run.epoch_seconds,
        "seconds": run.seconds,
    }
    records.append_metrics(out, row)


def _say(message: str) -> None:
    if distributed.rank() == 0:
        print(message, flush=True)


def _finished(out: Path, recipe: Recipe, limit: int | None, resume: bool) -> bool:
    """Whether the run in `out` is finished; refuse to touch it unless it is to be resumed, and the same."""
    if not (out / "record.json").exists():
        return False
    record = records.read_record(out)
    if not resume:
        raise FileExistsError(
            f"{out} holds a run already: resume it, or choose another folder (--resume, --out)"
        )
    now = records.plain(asdict(recipe) | {"limit": limit})
    before = records.plain(asdict(record.recipe) | {"limit": record.limit})
    changed = [f"{key} was {before.get(key)}, is {now[key]}" for key in now if before.get(key) != now[key]]
    if changed:
        raise FileExistsError(
            f"{out} holds a run with other settings: {'; '.join(changed)}. Choose another folder."
        )
    return record.status == "finished"


REPORT_SECONDS = 30.0  # between lines of progress where the output is no terminal


@contextmanager
def progress(run: Run, total: int) -> Iterator[Callable[[Tensor], None]]:
    """A function to call after each step: it shows loss, views/s and ETA as a bar, or in lines.

    Of several processes the first shows them.
    """
    if distributed.rank():
        yield lambda loss: None
        return
    views = run.recipe.batch_size * run.recipe.positives
    first, began = run.step, time.monotonic()
    told = began
    with tqdm(total=total * views, initial=first * views, unit="views", unit_scale=True, disable=None) as bar:

        def report(loss: Tensor) -> None:
            nonlocal told
            bar.update(views)
            now = time.monotonic()
            if now - told < (REPORT_SECONDS if bar.disable else 1):
                return
            told = now
            epoch = f"epoch {-(-run.step // run.steps_per_epoch)}/{run.recipe.epochs}"
            if not bar.disable:
                bar.set_description(f"{epoch}, loss {float(loss):.3f}")
                return
            rate = (run.step - first) / (now - began)
            minutes, seconds = divmod(round((total - run.step) / rate), 60)
            speed = f"{rate * views:,.0f} views/s, {minutes} min {seconds} s left"
            print(f"{epoch}, loss {float(loss):.3f}, {speed}", flush=True)

        yield report


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM add themselves to, so that a step can end; a second one acts at once.

    Not so in one of several processes: torchrun passes on what the terminal has sent them already.
    """
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # handlers can be set in the main one only
        yield requests
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: Any) -> None:
        requests.append(number)
        if distributed.size() == 1:
            signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
