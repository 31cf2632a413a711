"""What a run prints while it trains: what begins and where, then loss, views/s and the time left."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm import tqdm

from wmse import distributed, machine
from wmse.numerics import resolve_precision
from wmse.recipes import Recipe
from wmse.run import Run

# Seconds between lines of progress where the output is no terminal. The first comes early, so that whoever
# has started a long run soon sees how long.
FIRST_SECONDS, REPORT_SECONDS = 3.0, 30.0


def say(message: str) -> None:
    """Print on rank 0, at once."""
    if distributed.rank() == 0:
        print(message, flush=True)


def announce(name: str, recipe: Recipe, device: torch.device) -> None:
    """Say what is trained and on what, before the images are loaded, which may take minutes."""
    where = machine.hardware_label(machine.describe(device))
    precision = str(resolve_precision(recipe.precision, device)).removeprefix("torch.")
    shared = f", {distributed.size()} processes" if distributed.size() > 1 else ""
    say(f"{name}, seed {recipe.seed}, {precision} on {where}{shared}: loading the images")


def announce_steps(run: Run, images: int) -> None:
    """Say how long the training is, in steps, of `images` training images."""
    epochs, steps = run.recipe.epochs, run.steps_per_epoch
    say(f"{images:,} images: {epochs:,} epochs of {steps:,} steps, {epochs * steps:,} steps in all")


@contextmanager
def progress(run: Run, total: int) -> Iterator[Callable[[Tensor], None]]:
    """Yield a function to call after each step. It shows loss, views/s and the time left, on rank 0 only.

    On a terminal it draws a bar; elsewhere it prints a line after `FIRST_SECONDS`, then every
    `REPORT_SECONDS`.
    """
    views = run.recipe.batch_size * run.recipe.positives
    first, began = run.steps_taken, time.monotonic()
    due = began
    hide = True if distributed.rank() else None  # None: a bar on a terminal only
    with tqdm(total=total * views, initial=first * views, unit="views", unit_scale=True, disable=hide) as bar:
        due += FIRST_SECONDS if bar.disable else 1

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
