"""Train a recipe: epochs, progress, checkpoints, stop requests, evaluation, record."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from wmse import checkpoints, distributed, machine, records
from wmse.data import OWN_PROBE, Images, load, load_own, load_validation
from wmse.evaluation import effective_rank, embedding_std, evaluate, features, project
from wmse.metrics import spectra
from wmse.numerics import resolve_precision
from wmse.objectives import check_batch, check_recipe
from wmse.recipes import Recipe, get_recipe
from wmse.records import Record
from wmse.run import Run, load_networks, save_networks

Sets = dict[str, Images]  # by split
CHECKPOINT_SECONDS = 30.0  # between checkpoints
# Between lines of progress where the output is no terminal; the first comes early.
FIRST_SECONDS, REPORT_SECONDS = 3.0, 30.0


def train(
    name: str,
    out: str | Path | None = None,
    recipe: Recipe | None = None,
    data: str | Path | None = None,
    device: str | None = None,
    resume: bool = False,
    limit: int | None = None,
    validate: bool = False,
    command: str | None = None,
    restart: bool = False,
) -> Path:
    """Train and evaluate a recipe, write everything into the folder `out`, and return that folder.

    Under torchrun the processes share each batch; rank 0 evaluates and writes. A run owns its folder from
    before its images are loaded until its end.

    Args:
        name: the recipe's name, such as "digits/w-mse-2".
        out: receives record.json, metrics.csv (one row per epoch), encoder.safetensors and
            projector.safetensors, and checkpoints while the run lasts. None means runs/NAME/seed-S, or, if
            that is taken, the first free of seed-S-2, ...; to resume or restart, the last that is taken.
        recipe: the recipe with changes; None means the recipe of that name.
        data: folder of the data sets; None means `$WMSE_DATA`, else "data". For folder/...: that of images.
        device: "cpu", "cuda", ...; None means CUDA if there is any.
        resume: go on from the newest whole checkpoint in `out`, or from the beginning if there is none. A
            finished run stays as it is. On the CPU, with the same number of threads, a resumed run ends with
            the same weights as an undisturbed one. A checkpoint is enough where the record is broken.
        limit: use only the first `limit` images of each split, for trials.
        validate: learn from nine tenths of the training images and score on the others, to choose settings
            (`wmse.data.load_validation`). Test images are not loaded.
        command: the command line, for the record.
        restart: begin anew in `out`, and give other names to what a run has left there.

    Raises:
        ValueError: an unknown name, or sizes that do not fit; raised before anything is written. Also, to
            resume, checkpoints of which none is whole.
        FileExistsError: another run owns `out`; or `out` holds a file that a run would write over, and
            `resume` is false, or the file is not of a run with these settings and images.
        DivergenceError, SingularCovarianceError: training cannot go on. The record says so, and the last
            good checkpoint is kept.
        KeyboardInterrupt, SystemExit: on SIGINT or SIGTERM; in training after the current step and a
            checkpoint, elsewhere at once.
    """
    if resume and restart:
        raise ValueError("resume goes on with a run, and restart begins it anew: ask for one of them")
    recipe, stop = recipe or get_recipe(name), distributed.StopRequests()
    scored_on = "validation" if validate else "test"
    settings = records.identify(recipe, limit, scored_on)
    with distributed.joined(device) as where, ExitStack() as stack:
        machine.configure_process(where)
        check_recipe(recipe, where)
        if distributed.rank() == 0:
            stack.enter_context(stop.heard())

        def claim() -> checkpoints.Found:
            folder, again = Path("runs", name, f"seed-{recipe.seed}"), resume or restart
            if out is not None:
                folder = machine.as_path(out)
            elif again:
                folder = records.free_folder(folder, resume=True)
            # Nobody writes where a run has finished: the folder is not locked, only read.
            if resume and checkpoints.is_finished(folder, settings):
                return checkpoints.Found(folder, finished=True)
            owned = stack.enter_context(checkpoints.claimed(folder, free=out is None and not again))
            return checkpoints.look(owned, settings, resume, restart)

        found = distributed.from_first(claim)
        if found.finished:
            distributed.say(f"{found.out} is finished already: nothing to do")
            if distributed.rank() == 0:
                checkpoints.tidy(found.out)
            return found.out
        _announce(name, recipe, where)
        sets, own = distributed.first_before_others(lambda: _load(recipe, data, where, limit, validate))
        train_set = sets["train"]
        check_batch(recipe, len(train_set))
        digests = {images: images.fingerprint() for images in set(sets.values())}
        run = Run(recipe, len(train_set), where, len(train_set.classes))
        record = records.start_record(
            name,
            recipe,
            where,
            command=command,
            precision=str(run.dtype).removeprefix("torch."),
            processes=distributed.size(),
            limit=limit,
            scored_on=scored_on,
            images={split: len(images) for split, images in sets.items()},
            images_sha256={split: digests[images] for split, images in sets.items()},
            **own,
        )
        run.identity, run.started = record.identity, record.started
        checkpoints.check_same(found.out, run.identity, found.identity)
        if any(other != run.identity for other in distributed.from_all(run.identity)):
            raise ValueError("the processes have loaded different images: give all of them the same data set")
        if found.state:
            run.load_state_dict(found.state)
            record.started = run.started
        if resume:
            step = f"resuming after step {run.steps_taken}"
            distributed.say(f"{found.out}: {step if found.state else 'no checkpoint: from the beginning'}")
        _announce_steps(run, len(train_set))
        if distributed.rank() == 0:
            checkpoints.set_aside(found.out, found.aside)
            _train_and_record(run, sets, found.out, record, stop)
        else:
            _train_epochs(run, train_set, found.out, stop)
        distributed.any_of(True)  # the others wait here while rank 0 evaluates
    return found.out


def train_all(
    names: Iterable[str], out: str | Path, changes: Mapping[str, Any], data: str | Path | None = None
) -> dict[str, Path]:
    """Train recipes with the same changes of numbers, and return by name the folders of the finished runs.

    A folder below `out` is named by recipe, changes and seed: "digits/mse/epochs-24/seed-0". A finished run
    is taken as it is, and an unfinished one goes on. A run that another process is training comes last and is
    waited for, so that all who ask for the same run share it.
    """
    recipes, folders = {name: replace(get_recipe(name), **changes) for name in names}, {}
    values = {key: value if isinstance(value, tuple) else (value,) for key, value in changes.items()}
    while waiting := [name for name in recipes if name not in folders]:
        for name in waiting:
            own = [key for key in sorted(values) if changes[key] != getattr(get_recipe(name), key)]
            words = [word for key in own if key != "seed" for word in (key.replace("_", "-"), *values[key])]
            folder = Path(out, name, "-".join(map(str, words)), f"seed-{recipes[name].seed}")
            with suppress(checkpoints.FolderInUseError):
                folders[name] = train(name, folder, recipes[name], data, resume=True)
        time.sleep(len(folders) < len(recipes))  # seconds: others are training
    return folders


def _load(
    recipe: Recipe, data: str | Path | None, device: torch.device, limit: int | None, validate: bool = False
) -> tuple[Sets, dict[str, Any]]:
    """The splits "train" (for the encoder), "probe" (for the classifiers) and "test"; record facts."""
    name = recipe.dataset
    if validate:
        train, test = load_validation(name, data, device)
        if limit is not None and not 0 < limit <= len(train):
            raise ValueError(f"limit is {limit}, not within 1 to {len(train)}, what {name} learns from")
        train = _at_most(limit, train)
    elif name == "folder":
        sets, facts = load_own(data, recipe.views.size, device)
        return {split: _at_most(limit, images) for split, images in sets.items()}, {"folder": facts}
    else:
        train, test = load(name, "train", data, device, limit), load(name, "test", data, device)
    probe = load(name, "probe", data, device) if name in OWN_PROBE else train
    if recipe.method == "supervised":
        train = train.labelled()
    return {"train": train, "probe": _at_most(limit, probe), "test": _at_most(limit, test)}, {}


def _at_most(limit: int | None, images: Images) -> Images:
    return images if limit is None else images.first(limit)


def _train_and_record(
    run: Run, sets: Sets, out: Path, record: Record, stop: distributed.StopRequests
) -> None:
    """Train, evaluate, and write the record, whatever ends the run: the work of rank 0."""
    records.write_record(out, record)  # first: it tells whose files the others are
    checkpoints.write_rows(run, out)
    try:
        _train_epochs(run, sets["train"], out, stop)
        save_networks(run, out)
        if run.device.type == "cuda":  # the evaluation's float32 convolutions are slow on channels last
            run.networks.to(memory_format=torch.contiguous_format)
        trained, recipe, networks = time.monotonic(), run.recipe, (run.encoder, run.projector)
        test_features = features(run.encoder, sets["test"], "test")
        record.metrics = evaluate(*networks, sets["probe"], sets["test"], recipe, test_features)
        if recipe.encoder != "pixels":  # thousands of dimensions that nobody plots
            record.spectra = _spectra(run, test_features)
        record.wall_seconds = run.seconds + time.monotonic() - trained
        checkpoints.write_rows(run, out)
        record.status = "finished"
        _close_record(record, run)
        records.write_record(out, record)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        record.status = "interrupted" if interrupted else "failed"
        record.error = f"{type(error).__name__}: {error}"
        _close_record(record, run)
        checkpoints.write_when_there_is_room(out, record)
        raise
    checkpoints.remove_checkpoints(out)


def _spectra(run: Run, test_features: Tensor) -> dict[str, Any]:
    """Spectra for figures; empty if they cannot be computed, so that the scores are recorded all the same."""
    try:
        return spectra(test_features, project(run.projector, test_features))
    except Exception as error:
        print(f"no spectra: {type(error).__name__}: {error}", file=sys.stderr)
        return {}


def _close_record(record: Record, run: Run) -> None:
    """Fill in what is known of a run when it ends, finished or not."""
    views = run.steps_taken * run.recipe.batch_size * run.recipe.positives
    record.skipped_steps, _ = run.checks.refused
    record.finished, record.steps, record.train_seconds = records.now(), run.steps_taken, run.seconds
    record.views_per_second = views / run.seconds if run.seconds else None
    record.peak_memory_mb, record.curve = machine.peak_memory_mb(run.device), run.rows


def evaluate_run(
    folder: str | Path, data: str | Path | None = None, device: str | None = None
) -> dict[str, float]:
    """The metrics of a run's saved networks, computed again; its record stays as it is."""
    folder, where = machine.as_path(folder), distributed.choose_device(device)
    machine.configure_process(where)
    record = records.read_record(folder)
    recipe = record.recipe
    if record.status != "finished" and not (folder / records.NETWORKS[0]).exists():
        raise ValueError(f"{folder} is {record.status}: finish it first, with its own command and --resume")
    if recipe.dataset == "folder":
        sets, _ = load_own(data or record.folder["path"], recipe.views.size, where, record.folder)
        pair = sets["probe"], sets["test"]
    elif record.scored_on == "validation":
        pair = load_validation(recipe.dataset, data, where)
    else:
        pair = load(recipe.dataset, "probe", data, where), load(recipe.dataset, "test", data, where)
    probe, test = (_at_most(record.limit, images) for images in pair)
    return evaluate(*load_networks(folder, recipe, where), probe, test, recipe)


def _train_epochs(run: Run, images: Images, out: Path, stop: distributed.StopRequests) -> None:
    """Take the steps that remain, with a row in metrics.csv per epoch and a checkpoint every half minute."""
    total = run.recipe.epochs * run.steps_per_epoch
    saved = ticked = time.monotonic()
    with stop.held(), progress(run, total) as report:
        while run.steps_taken < total:
            for loss, embeddings in run.epoch(images):
                now = time.monotonic()
                run.seconds, ticked = run.seconds + now - ticked, now
                if run.steps_taken % run.steps_per_epoch == 0:
                    _end_epoch(run, embeddings, out)
                end, due = distributed.any_of(bool(stop.numbers), now - saved > CHECKPOINT_SECONDS)
                if end or due or run.steps_taken == total:
                    checkpoints.save_checkpoint(run, out)
                    saved = time.monotonic()
                report(loss)
                if end:
                    distributed.say(f"stopped after step {run.steps_taken}; resume to go on from there")
                    stop.act()


def _end_epoch(run: Run, embeddings: Tensor, out: Path) -> None:
    """Add a row of metrics.csv; its measures of collapse are of the last batch, in training mode."""
    run.checks.look()
    loss = float(distributed.mean(run.loss_sum)) / max(1, run.steps_per_epoch - run.checks.refused[1])
    if distributed.rank():
        return
    rows = embeddings.flatten(0, 1).cpu()
    views = run.steps_per_epoch * run.recipe.batch_size * run.recipe.positives
    row: dict[str, float] = {
        "epoch": run.steps_taken // run.steps_per_epoch,
        "step": run.steps_taken,
        "loss": loss,
        "learning_rate": float(run.optimizer.param_groups[0]["lr"]),  # a tensor on a GPU
        "embedding_std": embedding_std(rows),
        "effective_rank": effective_rank(rows),
        "views_per_second": views / (run.seconds - run.epoch_start),
        "seconds": run.seconds,
    }
    run.rows.append(row)
    checkpoints.write_rows(run, out)


def _announce(name: str, recipe: Recipe, device: torch.device) -> None:
    """Say what is trained and on what, before the images are loaded, which may take minutes."""
    where = machine.hardware_label(machine.describe(device))
    precision = str(resolve_precision(recipe.precision, device)).removeprefix("torch.")
    shared = f", {distributed.size()} processes" if distributed.size() > 1 else ""
    distributed.say(f"{name}, seed {recipe.seed}, {precision} on {where}{shared}: loading the images")


def _announce_steps(run: Run, images: int) -> None:
    """Say how long the training is, in steps, of `images` training images."""
    epochs, steps = run.recipe.epochs, run.steps_per_epoch
    whole = f"{epochs:,} epochs of {steps:,} steps, {epochs * steps:,} steps in all"
    distributed.say(f"{images:,} images: {whole}")


@contextmanager
def progress(run: Run, total: int) -> Iterator[Callable[[Tensor], None]]:
    """Yield a function to call after each step. It shows loss, views/s and the time left, on rank 0 only.

    On a terminal it draws a bar; elsewhere it prints a line after `FIRST_SECONDS`, then every
    `REPORT_SECONDS`.
    """
    views = run.recipe.batch_size * run.recipe.positives
    first, began = run.steps_taken, time.monotonic()
    hide = True if distributed.rank() else None  # None: a bar on a terminal only
    with tqdm(total=total * views, initial=first * views, unit="views", unit_scale=True, disable=hide) as bar:
        due = began + (FIRST_SECONDS if bar.disable else 1)

        def report(loss: Tensor) -> None:
            nonlocal due
            bar.update(views)
            now = time.monotonic()
            if distributed.rank() or now < due:
                return
            due = now + (REPORT_SECONDS if bar.disable else 1)
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
