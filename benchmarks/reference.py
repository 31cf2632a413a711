"""Training as in the method's official code and in this package: views per second of both, in turns.

    python -m benchmarks.reference [--device cuda] [--width 64] [--steps 2] [--rounds 2]

`reference` works as the official code does: views by torchvision from Pillow images, in a DataLoader with one
worker per core; one view at a time through the encoder; a loop over slices and pairs for the loss; float32;
plain Adam; the loss fetched from the device after each step. `wmse` is this package's training. Each is timed
in processes of its own, because threads and memory are settings of a process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks import measuring
from benchmarks.loss import plain_loop
from benchmarks.step import noise_images
from benchmarks.views import pillow_views
from wmse import machine
from wmse.data import ImageSet
from wmse.distributed import choose_device
from wmse.networks import build_encoder, build_projector
from wmse.recipes import Recipe, get_recipe
from wmse.run import Run

MODES = ("reference", "wmse")


class PillowImages(Dataset):
    """Images as d views each, by torchvision's transforms of Pillow images, and labels."""

    def __init__(self, images: ImageSet, recipe: Recipe):
        self.pixels = images.images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        self.labels, self.d = images.labels.cpu(), recipe.positives
        self.transform = pillow_views(recipe.views, images.mean, images.std, self.pixels.shape[1])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int):
        from PIL import Image

        picture = Image.fromarray(self.pixels[index])
        return [self.transform(picture) for _ in range(self.d)], int(self.labels[index])


def reference_steps(recipe: Recipe, images: ImageSet, device: torch.device, workers: int):
    """An endless iterator; each `next` takes one step as the official code does."""
    encoder = build_encoder(recipe.encoder, recipe.stem, recipe.width).to(device).train()
    projector = build_projector(encoder.out_features, recipe.projector_width, recipe.embedding_dim)
    projector.to(device).train()
    torch.backends.cudnn.benchmark = True
    parameters = [*encoder.parameters(), *projector.parameters()]
    optimizer = torch.optim.Adam(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay)
    loader = DataLoader(
        PillowImages(images, recipe),
        recipe.batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )
    losses = []
    while True:
        for views, _ in loader:
            optimizer.zero_grad()
            features = [encoder(view.to(device, non_blocking=True)) for view in views]
            embeddings = projector(torch.cat(features)).unflatten(0, (recipe.positives, -1))
            loss = plain_loop(embeddings, recipe.slice_size)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            yield


def wmse_steps(recipe: Recipe, images: ImageSet, device: torch.device):
    """The same by this package."""
    machine.configure_process(device)
    images = images.to(device)
    run = Run(recipe, len(images), device)
    while True:
        yield from run.epoch(images)


def child(mode: str, recipe: Recipe, device: torch.device, steps: int) -> dict[str, float]:
    """Views per second over `steps` steps, after some untimed ones, and the peak of memory.

    An epoch is as long as CIFAR-10's, because a DataLoader starts anew at each epoch.
    """
    images = noise_images(97 * recipe.batch_size, torch.device("cpu"))
    if mode == "reference":
        work = reference_steps(recipe, images, device, machine.usable_cores())
    else:
        work = wmse_steps(recipe, images, device)
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    for _ in range(
        2 * machine.usable_cores() if device.type == "cuda" else 2
    ):  # until the workers' queues are full
        next(work)
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        next(work)
    wait()
    speed = steps * recipe.batch_size * recipe.positives / (time.perf_counter() - start)
    return {"views_per_second": speed, "memory_mb": machine.peak_memory_mb(device)}


def measured(mode: str, name: str, options: argparse.Namespace, width: int, steps: int) -> dict[str, float]:
    """`child` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.reference", "--child", mode, "--recipe", name]
    command += ["--width", str(width), "--steps", str(steps), "--device", str(options.device)]
    command += ["--batch-size", str(options.batch_size)] if options.batch_size else []
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> None:
    options = measuring.parse(
        __doc__,
        ("--recipe", {"default": "cifar10/w-mse-2", "help": "recipe (%(default)s)"}),
        ("--width", {"type": int, "action": "append", "help": "of ResNet-18; 64, and on a CPU 16 too"}),
        ("--batch-size", {"type": int, "help": "images a batch; the recipe's if left out"}),
        ("--steps", {"type": int, "help": "timed steps a process (50 on CUDA, 2 on a CPU, 8 if slim)"}),
        ("--rounds", {"type": int, "default": 2, "help": "processes of each (%(default)s)"}),
        ("--child", {"choices": MODES, "help": argparse.SUPPRESS}),
        arguments=arguments,
        prepare=False,  # each child sets threads and memory in its own way
    )
    on_gpu = options.device.type == "cuda"
    if options.child:
        recipe = replace(get_recipe(options.recipe), width=options.width[0])
        recipe = replace(recipe, batch_size=options.batch_size or recipe.batch_size)
        print(json.dumps(child(options.child, recipe, choose_device(str(options.device)), options.steps)))
        return
    rows = []
    for width in options.width or ([64] if on_gpu else [64, 16]):
        steps = options.steps or (50 if on_gpu else 2 if width >= 64 else 8)
        results: dict[str, list[dict]] = {mode: [] for mode in MODES}
        for _ in range(options.rounds):
            for mode in MODES:
                results[mode].append(measured(mode, options.recipe, options, width, steps))
        speeds = {
            mode: statistics.fmean(r["views_per_second"] for r in found) for mode, found in results.items()
        }
        peaks = {mode: max(r["memory_mb"] for r in found) for mode, found in results.items()}
        rows.append(
            {"width": width, "reference": speeds["reference"], "wmse": speeds["wmse"]}
            | {"ratio": speeds["wmse"] / speeds["reference"]}
            | {"reference_mb": peaks["reference"], "wmse_mb": peaks["wmse"]}
        )
    columns = {"width": "width of ResNet-18", "reference": "as published, views/s", "wmse": "wmse, views/s"}
    columns |= {"ratio": "ratio", "reference_mb": "as published, peak MiB", "wmse_mb": "wmse, peak MiB"}
    table = measuring.Table(
        "reference",
        f"Training of {options.recipe}, as published and here",
        columns,
        rows,
        "As published: torchvision's transforms of Pillow images in a DataLoader with a worker a core, "
        "float32, the loss a loop over slices, its value fetched each step. Both in processes of their own, "
        f"{options.rounds} of each in turns; on a GPU, memory is the GPU's.",
    )
    measuring.finish(table, options.device, options.out)


if __name__ == "__main__":
    main()
