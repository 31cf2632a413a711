"""What a person sees of a run, and how they stop it."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from tqdm import tqdm

from wmse import distributed
from wmse.runs import Run

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
