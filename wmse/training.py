"""Train a recipe: epochs, progress, checkpoints, stop requests, evaluation, record."""

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
from wmse.data import OWN_PROBE, ImageSet, StreamedSet, load, load_validation
from wmse.evaluation import effective_rank, embedding_std, evaluate, features, project
from wmse.inputs import as_path, check_seed
from wmse.metrics import spectra
from wmse.numerics import resolve_precision
from wmse.objectives import WHOLE_BATCH, check_method
from wmse.recipes import Recipe, get_recipe
from wmse.records import Record
from wmse.run import (
    Run,
    load_checkpoint,
    load_networks,
    remove_checkpoints,
    save_checkpoint,
    save_networks,
    start_run,
)
from wmse.whitening import WHITENING

Images = ImageSet | StreamedSet
Sets = dict[str, Images]  # by split
CHECKPOINT_SECONDS = 30.0  # between checkpoints
REPORT_SECONDS = 30.0  # between lines of progress where the output is no terminal


def train(
    name: str,
    out: str | Path,
    recipe: Recipe | None = None,
    data: str | Path | None = None,
    device: str | None = None,
    resume: bool = False,
    limit: int | None = None,
    validate: bool = False,
    command: str | None = None,
) -> Path:
    """Train and evaluate a recipe, write everything into the folder `out`, and return that folder.

    Under torchrun the processes share each batch; rank 0 evaluates and writes.

    Args:
        name: the recipe's name, such as "digits/w-mse-2".
        out: receives record.json, metrics.csv (one row per epoch), encoder.safetensors and
            projector.safetensors, and checkpoints while the run lasts.
        recipe: the recipe with changes; None means the recipe of that name.
        data: folder of the data sets; None means `$WMSE_DATA`, else "data".
        device: "cpu", "cuda", ...; None means CUDA if there is any.
        resume: go on from the newest whole checkpoint in `out`, or from the beginning if there is none. A
            finished run stays as it is. On the CPU, with the same number of threads, a resumed run ends with
            the same weights as an undisturbed one.
        limit: use only the first `limit` images of each split, for trials.
        validate: learn from nine tenths of the training images and score on the others, to choose settings
            (`wmse.data.load_validation`). Test images are not loaded.
        command: the command line, for the record.

    Raises:
        ValueError: an unknown name, or sizes that do not fit; raised before anything is written.
        FileExistsError: `out` holds a run, and `resume` is false or that run has other settings.
        DivergenceError, SingularCovarianceError: training cannot go on. The record says so, and the last
            good checkpoint is kept.
        KeyboardInterrupt, SystemExit: on SIGINT or SIGTERM, after the current step and a checkpoint.
    """
    recipe, out = recipe or get_recipe(name), as_path(out)
    with distributed.joined(device) as where:
        machine.configure_process(where)
        check_recipe(recipe, where)
        if distributed.from_first(lambda: _finished(out, recipe, limit, validate, resume)):
            _say(f"{out} is finished already: nothing to do")
            return out
        sets = distributed.first_before_others(lambda: _load(recipe, data, where, limit, validate))
        if recipe.epochs and len(sets["train"]) < recipe.batch_size:
            raise ValueError(
                f"{len(sets['train'])} training images make no batch of {recipe.batch_size}: "
                "take more images or a smaller batch_size"
            )
        run = start_run(recipe, len(sets["train"]), where, len(sets["train"].classes))
        if resume:
            if state := distributed.from_first(lambda: load_checkpoint(out)):
                run.load_state_dict(state)
            found = f"resuming after step {run.steps_taken}" if state else "no checkpoint: from the beginning"
            _say(f"{out}: {found}")
        if distributed.rank() == 0:
            record = _open_record(name, run, sets, out, limit, command)
            record.scored_on = "validation" if validate else "test"
            _train_and_record(run, sets, out, record)
        else:
            _train_epochs(run, sets["train"], out)
        distributed.any_of(True)  # the others wait here while rank 0 evaluates
    return out


def _load(
    recipe: Recipe, data: str | Path | None, device: torch.device, limit: int | None, validate: bool = False
) -> Sets:
    """The images of the splits "train" (for the encoder), "probe" (for the classifiers) and "test"."""
    name = recipe.dataset
    if validate:
        train, test = load_validation(name, data, device)
        if limit is not None and not 0 < limit <= len(train):
            raise ValueError(f"limit is {limit}, not within 1 to {len(train)}, what {name} learns from")
        train = _at_most(limit, train)
    else:
        train, test = load(name, "train", data, device, limit), load(name, "test", data, device)
    probe = load(name, "probe", data, device) if name in OWN_PROBE else train
    if recipe.method == "supervised":
        train = train.labelled()
    return {"train": train, "probe": _at_most(limit, probe), "test": _at_most(limit, test)}


def _at_most(limit: int | None, images: Images) -> Images:
    return images if limit is None else images.first(limit)


def _train_and_record(run: Run, sets: Sets, out: Path, record: Record) -> None:
    """Rank 0's work: train, evaluate, and keep the record up to date, whatever ends the run."""
    recipe = run.recipe
    out.mkdir(parents=True, exist_ok=True)
    records.cut_metrics(out, run.steps_taken // run.steps_per_epoch if run.steps_taken else 0)
    records.write_record(out, record)
    try:
        _train_epochs(run, sets["train"], out)
        save_networks(run, out)
        if (
            run.device.type == "cuda"
        ):  # float32 convolutions of the evaluation, which are slow on channels last
            run.networks.to(memory_format=torch.contiguous_format)
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
        _close_record(record, run, out)
        records.write_record(out, record)
    remove_checkpoints(out)


def _open_record(
    name: str, run: Run, sets: Sets, out: Path, limit: int | None, command: str | None
) -> Record:
    """The record of a run that begins or goes on; a resumed run keeps the time of its first start."""
    record = records.start_record(
        name,
        run.recipe,
        run.device,
        command=command,
        precision=str(run.dtype).removeprefix("torch."),
        processes=distributed.size(),
        limit=limit,
        images={split: len(images) for split, images in sets.items()},
    )
    if run.steps_taken and (out / "record.json").exists():
        record.started = records.read_record(out).started
    return record


def _close_record(record: Record, run: Run, out: Path) -> None:
    """Note in the record what is known of a run that has ended, whether finished or not."""
    views = run.steps_taken * run.recipe.batch_size * run.recipe.positives
    record.skipped_steps = run.checks.refused[0]
    record.finished, record.steps, record.train_seconds = records.now(), run.steps_taken, run.seconds
    record.views_per_second = views / run.seconds if run.seconds else None
    record.peak_memory_mb, record.curve = machine.peak_memory_mb(run.device), records.read_metrics(out)


def evaluate_run(
    folder: str | Path, data: str | Path | None = None, device: str | None = None
) -> dict[str, float]:
    """The metrics of a run's saved networks, computed again on the images of its record, which stays."""
    folder = as_path(folder)
    record = records.read_record(folder)
    recipe = record.recipe
    where = distributed.choose_device(device)
    machine.configure_process(where)
    if record.scored_on == "validation":
        pair = load_validation(recipe.dataset, data, where)
    else:
        pair = load(recipe.dataset, "probe", data, where), load(recipe.dataset, "test", data, where)
    probe, test = (_at_most(record.limit, images) for images in pair)
    return evaluate(*load_networks(folder, recipe, where), probe, test, recipe)


def check_recipe(recipe: Recipe, device: torch.device) -> None:
    """Raise ValueError, saying what to change, for a recipe that would fail later on this many processes."""
    check_seed(recipe.seed)
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


def _train_epochs(run: Run, images: Images, out: Path) -> None:
    """Take the steps that remain, with a row in metrics.csv per epoch and a checkpoint every half minute."""
    total = run.recipe.epochs * run.steps_per_epoch
    saved = ticked = time.monotonic()
    with stop_requests() as requests, progress(run, total) as report:
        while run.steps_taken < total:
            for loss, embeddings in run.epoch(images):
                now = time.monotonic()
                run.seconds, ticked = run.seconds + now - ticked, now
                if run.steps_taken % run.steps_per_epoch == 0:
                    _end_epoch(run, embeddings, out)
                stop, due = distributed.any_of(bool(requests), now - saved > CHECKPOINT_SECONDS)
                if stop or due or run.steps_taken == total:
                    save_checkpoint(run, out)
                    saved = time.monotonic()
                report(loss)
                if stop:
                    _say(f"stopped after step {run.steps_taken}; resume to go on from there")
                    interrupt = requests[:1] == [signal.SIGINT]
                    raise KeyboardInterrupt if interrupt else SystemExit(128 + signal.SIGTERM)


def _end_epoch(run: Run, embeddings: Tensor, out: Path) -> None:
    """Append a row to metrics.csv; its measures of collapse are of the last batch, in training mode."""
    run.checks.look()
    recipe = run.recipe
    loss = float(distributed.mean(run.loss_sum)) / max(1, run.steps_per_epoch - run.checks.refused[1])
    if distributed.rank():
        return
    rows = embeddings.flatten(0, 1).cpu()
    views = run.steps_per_epoch * recipe.batch_size * recipe.positives
    row = {
        "epoch": run.steps_taken // run.steps_per_epoch,
        "step": run.steps_taken,
        "loss": loss,
        "learning_rate": run.optimizer.param_groups[0]["lr"],
        "embedding_std": embedding_std(rows),
        "effective_rank": effective_rank(rows),
        "views_per_second": views / (run.seconds - run.epoch_start),
        "seconds": run.seconds,
    }
    records.append_metrics(out, row)


def _say(message: str) -> None:
    if distributed.rank() == 0:
        print(message, flush=True)


def _finished(out: Path, recipe: Recipe, limit: int | None, validate: bool, resume: bool) -> bool:
    """Whether `out` holds this run, finished. FileExistsError if it holds a run that may not be resumed."""
    if not (out / "record.json").exists():
        return False
    record = records.read_record(out)
    if not resume:
        raise FileExistsError(
            f"{out} holds a run already: resume it, or choose another folder (--resume, --out)"
        )
    scored_on = "validation" if validate else "test"
    now = records.plain(asdict(recipe) | {"limit": limit, "scored_on": scored_on})
    before = asdict(record.recipe) | {"limit": record.limit, "scored_on": record.scored_on}
    before = records.plain(before)
    changed = [f"{key} was {before.get(key)}, is {now[key]}" for key in now if before.get(key) != now[key]]
    if changed:
        raise FileExistsError(
            f"{out} holds a run with other settings: {'; '.join(changed)}. Choose another folder."
        )
    return record.status == "finished"


@contextmanager
def progress(run: Run, total: int) -> Iterator[Callable[[Tensor], None]]:
    """Yield a function to call after each step. It shows loss, views/s and the time left, on rank 0 only.

    On a terminal it draws a bar; elsewhere it prints a line every `REPORT_SECONDS`.
    """
    views = run.recipe.batch_size * run.recipe.positives
    first, began = run.steps_taken, time.monotonic()
    shown = began
    hide = True if distributed.rank() else None  # None: a bar on a terminal only
    with tqdm(total=total * views, initial=first * views, unit="views", unit_scale=True, disable=hide) as bar:

        def report(loss: Tensor) -> None:
            nonlocal shown
            bar.update(views)
            now = time.monotonic()
            if distributed.rank() or now - shown < (REPORT_SECONDS if bar.disable else 1):
                return
            shown = now
            run.checks.look()
            message = f"epoch {-(-run.steps_taken // run.steps_per_epoch)}/{run.recipe.epochs}"
            message += f", loss {float(loss):.3f}"
            if not bar.disable:
                bar.set_description(message)
                return
            rate = (run.steps_taken - first) / (now - began)
            minutes, seconds = divmod(round((total - run.steps_taken) / rate), 60)
            print(f"{message}, {rate * views:,.0f} views/s, {minutes} min {seconds} s left", flush=True)

        yield report


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Yield a list to which SIGINT and SIGTERM are appended, so that the current step can end first.

    A second signal acts at once. Under torchrun it is appended too, because torchrun sends its processes
    again what the terminal has already sent them.
    """
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
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
