"""One step of training: views -> networks -> loss -> gradient -> weights."""

import inspect
import math

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from wmse import distributed
from wmse.deferred import require
from wmse.methods import OBJECTIVES, WHOLE_BATCH, Batch
from wmse.networks import Outputs, target_momentum
from wmse.recipes import Recipe
from wmse.runs import Run


class DivergenceError(ArithmeticError):
    """The embeddings, the loss or the weights became NaN or infinite."""


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The rate for a step (from 0): linear warm-up, then constant, then drops counted back from the end.

    A drop that would fall before the start never acts, so a short run has none but those it has room for.
    With `cosine_schedule` a cosine leads from the end of the warm-up to 0 at the end, and nothing drops.
    """
    if recipe.cosine_schedule:
        return recipe.learning_rate * _warmup_and_cosine(recipe, step, recipe.epochs * steps_per_epoch)
    epoch = step // steps_per_epoch
    drops = sum(0 <= recipe.epochs - before <= epoch for before in recipe.lr_drops)
    warmup = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    return recipe.learning_rate * warmup * recipe.lr_drop_factor**drops


def _warmup_and_cosine(recipe: Recipe, step: int, steps: int) -> float:
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    return (1 + math.cos(math.pi * (step - recipe.warmup_steps) / (steps - recipe.warmup_steps))) / 2


def wrapped(run: Run) -> nn.Module:
    """The run's networks in training mode, spread over processes and compiled as asked; same weights.

    BatchNorm's running statistics stay each process's own; the first one's are saved.
    """
    learner: nn.Module = run.learner.train()
    if distributed.size() > 1:
        known = inspect.signature(DistributedDataParallel).parameters
        buffers = (
            "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        )  # as of 2.14
        learner = DistributedDataParallel(learner, gradient_as_bucket_view=True, **{buffers: False})
    return torch.compile(learner) if run.recipe.compile else learner


def train_step(run: Run, learner: nn.Module, views: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One step on a batch: the loss (of this process) and the embeddings (d, n, k), detached, on the device.

    Nothing in here waits for a GPU: NaN stops a run at once on a CPU, and a few steps late on CUDA.

    Args:
        learner: `wrapped(run)`.
        views: (d, n, 3, h, w) float32, normalised; n images of this process.
        labels: (n,) int64; only supervised training looks at them.
    """
    loss, embeddings = batch_loss(run, learner, views, labels)
    run.optimizer.zero_grad()
    run.scaler.scale(loss).backward()
    update(run)
    return loss.detach(), embeddings.detach()


def batch_loss(run: Run, learner: nn.Module, views: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of a batch and its embeddings (d, n, k), float32, with their graph; as in `train_step`."""
    outputs = forward(run, learner, views)
    embeddings = outputs.embeddings
    require(embeddings.isfinite().all(), lambda _: diverged(run, "the embeddings hold NaN or infinity"))
    if run.recipe.method in WHOLE_BATCH:
        outputs = outputs._replace(embeddings=distributed.gather_images(embeddings))
    loss = OBJECTIVES[run.recipe.method](Batch(outputs, labels, run.generators["slices"]), run.recipe)
    require(loss.isfinite(), lambda _: diverged(run, "the loss is NaN or infinite"))
    return loss, embeddings


def forward(run: Run, learner: nn.Module, views: Tensor) -> Outputs:
    """What the networks make of views (d, n, 3, h, w), in the run's precision; float32 in the end."""
    separate = [view.contiguous(memory_format=run.memory_format) for view in views]
    with torch.autocast(views.device.type, run.dtype, enabled=run.dtype != torch.float32):
        outputs = learner(separate)
    return Outputs(*(None if tensor is None else tensor.float() for tensor in outputs))


def update(run: Run) -> None:
    """Move the weights by the gradients that they have, at this step's rate, and count the step."""
    recipe = run.recipe
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(recipe, run.step, run.steps_per_epoch)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.learner.target is not None:
        progress = run.step // run.steps_per_epoch / recipe.epochs
        run.learner.follow(target_momentum(recipe.target_momentum, progress))
    run.step += 1


def diverged(run: Run, what: str) -> DivergenceError:
    return DivergenceError(
        f"{what} near step {run.step}: training diverged. The last good checkpoint, if any, is kept. "
        f"Try a lower learning_rate (now {run.recipe.learning_rate}), a longer warm-up or precision float32."
    )
