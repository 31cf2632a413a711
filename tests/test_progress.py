"""What a run prints where the output is no terminal."""

from types import SimpleNamespace

import torch

from wmse import machine, progress
from wmse.numerics import Checks
from wmse.recipes import get_recipe


def test_the_first_line_of_progress_comes_early_and_the_others_are_rare(monkeypatch, capsys):
    """A step takes a second by this clock. In pytest, stderr is no terminal."""
    clock = iter(range(1000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    recipe = get_recipe("digits/w-mse-2")
    run = SimpleNamespace(recipe=recipe, steps_taken=0, steps_per_epoch=10, checks=Checks(deferred=False))
    with progress.progress(run, 100) as report:
        for run.steps_taken in range(1, 101):
            report(torch.tensor(1.5))
    lines = capsys.readouterr().out.splitlines()
    views = recipe.batch_size * recipe.positives
    assert lines[0] == f"epoch 1/{recipe.epochs}, loss 1.500, {views:,} views/s, 1 min 37 s left"
    assert [line.split("/")[0] for line in lines] == ["epoch 1", "epoch 4", "epoch 7", "epoch 10"]


def test_what_is_trained_and_where_is_said(capsys):
    device = torch.device("cpu")
    progress.announce("digits/w-mse-2", get_recipe("digits/w-mse-2"), device)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("digits/w-mse-2, seed 0, ") and ("float32 on " in line or "bfloat16 on " in line)
    assert machine.hardware_label(machine.describe(device)) in line
