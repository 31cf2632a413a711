"""The training loop: images -> views -> encoder -> projector -> embeddings -> loss, kept safe."""

import signal
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from wmse import records
from wmse.data import ImageSet, load
from wmse.deferred import require, settle
from wmse.evaluation import effective_rank, embedding_std, evaluate
from wmse.losses import check_sizes, mse_loss, w_mse_loss
from wmse.networks import embed
from wmse.precision import resolve_precision
from wmse.recipes import Recipe, get_recipe
from wmse.runs import (
    Run,
    load_checkpoint,
    load_networks,
    remove_checkpoints,
    save_checkpoint,
    save_networks,
    start_run,
)
from wmse.terminal import progress, stop_requests
from wmse.views import make_views
from wmse.whitening import WHITENING

CHECKPOINT_SECONDS = 30.0

# method -> the loss of embeddings (d, n, k), given the recipe and the generator of the slices
OBJECTIVES: dict[str, Callable[[Tensor, Recipe, torch.Generator], Tensor]] = {
    "mse": lambda embeddings, recipe, generator: mse_loss(embeddings, recipe.normalize),
    "w-mse": lambda embeddings, recipe, generator: w_mse_loss(
        embeddings,
        recipe.slice_size,
        recipe.iterations,
        recipe.normalize,
        recipe.whitening,
        generator,
        recipe.whitening_eps,
    ),
}


class DivergenceError(ArithmeticError):
    """The embeddings, the loss or the weights became NaN or infinite."""


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
    recipe = recipe or get_recipe(name)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    out = Path(out)
    check_recipe(recipe, where)
    if (out / "record.json").exists() and _finished(out, recipe, limit, resume):
        print(f"{out} is finished already: nothing to do")
        return out
    images = load(recipe.dataset, "train", data, where, limit)
    test = load(recipe.dataset, "test", data, where)
    test = replace(test, images=test.images[:limit], labels=test.labels[:limit])
    if len(images) < recipe.batch_size:
        raise ValueError(
            f"{len(images)} training images make no batch of {recipe.batch_size}: "
            "take more images or a smaller batch_size"
        )
    run = start_run(recipe, len(images), where)
    out.mkdir(parents=True, exist_ok=True)
    if resume:
        state = load_checkpoint(out)
        if state:
            run.load_state_dict(state)
        print(
            f"{out}: " + (f"resuming after step {run.step}" if state else "no checkpoint: from the beginning")
        )
    records.cut_metrics(out, run.step // run.steps_per_epoch)
    record = records.start_record(name, recipe, where, command) | {
        "precision": str(run.dtype).removeprefix("torch."),
        "limit": limit,
        "images": {"train": len(images), "test": len(test)},
    }
    if run.step and (out / "record.json").exists():
        record["started"] = records.read_record(out)["started"]  # of the first sitting
    records.write_record(out, record)
    try:
        _loop(run, images, out)
        save_networks(run, out)
        trained = time.monotonic()
        record["metrics"] = evaluate(run.encoder, run.projector, images, test, recipe)
        record |= {"status": "finished", "wall_seconds": run.seconds + time.monotonic() - trained}
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        record["status"] = "interrupted" if interrupted else "failed"
        record["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        views = run.step * recipe.batch_size * recipe.positives
        record |= {"finished": records.now(), "steps": run.step, "train_seconds": run.seconds}
        record |= {"views_per_second": views / run.seconds if run.seconds else None}
        record |= {"peak_memory_mb": records.peak_memory_mb(where), "curve": records.read_metrics(out)}
        records.write_record(out, record)
    remove_checkpoints(out)
    return out


def evaluate_run(
    folder: str | Path, data: str | Path | None = None, device: str | None = None
) -> dict[str, float]:
    """Evaluate a run's saved networks again on the images that its record names; the record stays."""
    record = records.read_record(folder)
    recipe = records.recipe_of(record)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    images = load(recipe.dataset, "train", data, where, record["limit"])
    test = load(recipe.dataset, "test", data, where, record["images"]["test"])
    return evaluate(*load_networks(folder, recipe, where), images, test, recipe)


def check_recipe(recipe: Recipe, device: torch.device) -> None:
    """Raise ValueError, saying what to change, for a recipe that would fail later."""
    if recipe.method not in OBJECTIVES:
        raise ValueError(f"unknown method {recipe.method!r}; there are: {', '.join(OBJECTIVES)}")
    if recipe.whitening not in WHITENING:
        raise ValueError(f"unknown whitening {recipe.whitening!r}; there are: {', '.join(WHITENING)}")
    for field in ("epochs", "learning_rate", "batch_size", "embedding_dim", "projector_width"):
        if not getattr(recipe, field) > 0:
            raise ValueError(f"{field} must be more than 0; got {getattr(recipe, field)}")
    if recipe.method == "w-mse":
        check_sizes(
            recipe.positives, recipe.batch_size, recipe.embedding_dim, recipe.slice_size, recipe.iterations
        )
    elif recipe.positives < 2:
        raise ValueError(
            f"positives = {recipe.positives} make no pair: at least 2 views of an image are needed"
        )
    resolve_precision(recipe.precision, device)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The rate for a step (from 0): linear warm-up, then constant, then drops counted back from the end.

    A drop that would fall before the start never acts, so a short run has none but those it has room for.
    """
    epoch = step // steps_per_epoch
    drops = sum(0 <= recipe.epochs - before <= epoch for before in recipe.lr_drops)
    warmup = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    return recipe.learning_rate * warmup * recipe.lr_drop_factor**drops


def train_step(run: Run, networks: tuple[nn.Module, nn.Module], batch: ImageSet) -> tuple[Tensor, Tensor]:
    """One step on a batch: the loss and the embeddings (d, n, k), detached, on the device.

    Nothing in here waits for a GPU: NaN stops a run at once on a CPU, and a few steps late on CUDA.

    Args:
        networks: encoder and projector, compiled or not, that share the weights of `run`'s.
    """
    recipe = run.recipe
    views = make_views(
        batch.images, recipe.positives, batch.mean, batch.std, recipe.views, run.generators["views"]
    )
    views = [view.contiguous(memory_format=run.memory_format) for view in views]
    with torch.autocast(batch.images.device.type, run.dtype, enabled=run.dtype != torch.float32):
        embeddings = embed(*networks, views)
    embeddings = embeddings.float()
    require(embeddings.isfinite().all(), lambda _: _diverged(run, "the embeddings hold NaN or infinity"))
    loss = OBJECTIVES[recipe.method](embeddings, recipe, run.generators["slices"])
    require(loss.isfinite(), lambda _: _diverged(run, "the loss is NaN or infinite"))
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(recipe, run.step, run.steps_per_epoch)
    run.optimizer.zero_grad()
    run.scaler.scale(loss).backward()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.step += 1
    return loss.detach(), embeddings.detach()


def _loop(run: Run, images: ImageSet, out: Path) -> None:
    """Train to the last epoch; a row in metrics.csv an epoch, a checkpoint at most half a minute apart."""
    recipe, size = run.recipe, run.recipe.batch_size
    networks = (run.encoder.train(), run.projector.train())
    if recipe.compile:
        networks = tuple(torch.compile(network) for network in networks)
    total = recipe.epochs * run.steps_per_epoch
    saved = ticked = time.monotonic()
    with stop_requests() as stop, progress(run, total) as report:
        while run.step < total:
            position = run.step % run.steps_per_epoch
            if position == 0:
                order = torch.randperm(len(images), generator=run.generators["batches"])
                run.order = order.to(images.images.device)
                run.loss_sum, run.epoch_seconds = torch.zeros_like(run.loss_sum), 0.0
            index = run.order[position * size : (position + 1) * size]
            batch = replace(images, images=images.images[index], labels=images.labels[index])
            loss, embeddings = train_step(run, networks, batch)
            run.loss_sum += loss
            now = time.monotonic()
            run.seconds, run.epoch_seconds, ticked = (
                run.seconds + now - ticked,
                run.epoch_seconds + now - ticked,
                now,
            )
            if position + 1 == run.steps_per_epoch:
                settle()
                records.append_metrics(out, _epoch_row(run, embeddings))
            if stop or run.step == total or now - saved > CHECKPOINT_SECONDS:
                _save(run, out)
                saved = time.monotonic()
            report(loss)
            if stop:
                print(f"stopped after step {run.step}; resume to go on from there", flush=True)
                raise KeyboardInterrupt if stop[0] == signal.SIGINT else SystemExit(128 + stop[0])


def _save(run: Run, out: Path) -> None:
    """Write a checkpoint, but never of a run that has diverged: the last good one must stay."""
    settle()
    if not all(bool(parameter.isfinite().all()) for parameter in run.parameters()):
        raise _diverged(run, "the weights hold NaN or infinity")
    save_checkpoint(out, run.state_dict())


def _epoch_row(run: Run, embeddings: Tensor) -> dict[str, float]:
    """A row of metrics.csv; the measures of collapse are of the last batch, in training mode."""
    recipe = run.recipe
    rows = embeddings.flatten(0, 1).cpu()
    return {
        "epoch": run.step // run.steps_per_epoch,
        "step": run.step,
        "loss": float(run.loss_sum) / run.steps_per_epoch,
        "learning_rate": learning_rate(recipe, run.step - 1, run.steps_per_epoch),
        "embedding_std": embedding_std(rows),
        "effective_rank": effective_rank(rows),
        "views_per_second": run.steps_per_epoch * recipe.batch_size * recipe.positives / run.epoch_seconds,
        "seconds": run.seconds,
    }


def _diverged(run: Run, what: str) -> DivergenceError:
    return DivergenceError(
        f"{what} near step {run.step}: training diverged. The last good checkpoint, if any, is kept. "
        f"Try a lower learning_rate (now {run.recipe.learning_rate}), a longer warm-up or precision float32."
    )


def _finished(out: Path, recipe: Recipe, limit: int | None, resume: bool) -> bool:
    """Whether the run in `out` is finished; refuse to touch it unless it is to be resumed, and the same."""
    record = records.read_record(out)
    if not resume:
        raise FileExistsError(
            f"{out} holds a run already: resume it, or choose another folder (--resume, --out)"
        )
    now = records.plain(asdict(recipe) | {"limit": limit})
    before = record["recipe"] | {"limit": record["limit"]}
    changed = [f"{key} was {before.get(key)}, is {now[key]}" for key in now if before.get(key) != now[key]]
    if changed:
        raise FileExistsError(
            f"{out} holds a run with other settings: {'; '.join(changed)}. Choose another folder."
        )
    return record["status"] == "finished"
