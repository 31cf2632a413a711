"""The state of a run while it trains, and checkpoints of it that survive whatever stops the run."""

import inspect
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from wmse import distributed
from wmse.networks import Learner, Outputs, build_learner, target_momentum
from wmse.numerics import require, resolve_precision
from wmse.objectives import OBJECTIVES, WHOLE_BATCH, Batch
from wmse.recipes import Recipe

CHECKPOINTS = ("checkpoint.pt", "checkpoint.previous.pt")  # newest first
STATEFUL = ("learner", "optimizer", "scaler")
PLAIN = ("order", "step", "seconds", "epoch_seconds")


@dataclass
class Run:
    """All that changes while a recipe trains; a checkpoint holds its state dict."""

    recipe: Recipe
    dtype: torch.dtype  # of autocast; float32 is none
    learner: Learner
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    generators: dict[str, torch.Generator]  # of the batches (on the CPU), the views and the slices
    steps_per_epoch: int
    order: Tensor  # of the images in this epoch
    loss_sum: Tensor  # of this epoch's steps so far
    step: int = 0  # steps behind us
    seconds: float = 0.0  # of training behind us, earlier sittings included
    epoch_seconds: float = 0.0  # those of this epoch

    @property
    def memory_format(self) -> torch.memory_format:
        """Channels last, which CPUs and tensor cores like best; float32 on a GPU does without."""
        plain = self.dtype == torch.float32 and self.loss_sum.is_cuda
        return torch.contiguous_format if plain else torch.channels_last

    @property
    def encoder(self) -> nn.Module:
        return self.learner.encoder

    @property
    def projector(self) -> nn.Module:
        return self.learner.projector

    def state_dict(self) -> dict[str, Any]:
        """All of it, with what is each process's own; all processes must ask at once."""
        state = {name: getattr(self, name).state_dict() for name in STATEFUL}
        own = {name: generator.get_state() for name, generator in self.generators.items()}
        state["own"] = distributed.from_all(own | {"loss_sum": self.loss_sum.cpu()})
        return state | {name: getattr(self, name) for name in PLAIN}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError where another number of processes wrote the state."""
        processes = len(state["own"])
        if processes != distributed.size():
            raise ValueError(
                f"the checkpoint was written by {processes} process(es), and now there are "
                f"{distributed.size()}: resume with as many as before, or start again in another folder"
            )
        for name in STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        own = state["own"][distributed.rank()]
        for name, generator in self.generators.items():
            generator.set_state(own[name])
        self.loss_sum = own["loss_sum"].to(self.loss_sum.device)
        for name in PLAIN:
            value = state[name]
            setattr(self, name, value.to(self.loss_sum.device) if isinstance(value, Tensor) else value)


def start_run(recipe: Recipe, images: int, device: torch.device, classes: int = 10) -> Run:
    """A run before its first step, on so many images. Its first weights are the same on any device.

    Batches are drawn alike in all processes; views and slices are each process's own.
    """
    dtype = resolve_precision(recipe.precision, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        learner = build_learner(recipe, classes)
    if recipe.sync_batchnorm and distributed.size() > 1:
        learner = nn.SyncBatchNorm.convert_sync_batchnorm(learner)
    learner = learner.to(device)
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(
        trained or [torch.zeros(0)],  # raw pixels have none, and Adam wants some
        recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )
    homes = {"batches": torch.device("cpu"), "views": device, "slices": device}
    own = distributed.rank() << 32
    run = Run(
        recipe=recipe,
        dtype=dtype,
        learner=learner,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        generators={
            name: torch.Generator(home).manual_seed(
                recipe.seed * len(homes) + index + (0 if name == "batches" else own)
            )
            for index, (name, home) in enumerate(homes.items())
        },
        steps_per_epoch=images // recipe.batch_size,
        order=torch.empty(0, dtype=torch.int64, device=device),
        loss_sum=torch.zeros((), device=device),
    )
    run.encoder.to(memory_format=run.memory_format)
    if learner.target is not None:
        learner.target.to(memory_format=run.memory_format)
    return run


def build_networks(recipe: Recipe, classes: int = 10) -> tuple[nn.Module, nn.Module]:
    """The encoder and the projector of a recipe, fresh."""
    learner = build_learner(recipe, classes)
    return learner.encoder, learner.projector


def save_networks(run: Run, folder: Path) -> None:
    """Write encoder.safetensors and projector.safetensors, float32."""
    for name in ("encoder", "projector"):
        tensors = {key: value.cpu().contiguous() for key, value in getattr(run, name).state_dict().items()}
        temporary = folder / f"{name}.tmp"
        save_file(tensors, temporary)
        os.replace(temporary, folder / f"{name}.safetensors")


def load_networks(
    folder: str | Path, recipe: Recipe, device: torch.device | str = "cpu"
) -> tuple[nn.Module, nn.Module]:
    """The trained encoder and projector of a finished run, in eval mode."""
    tensors = [load_file(Path(folder) / f"{name}.safetensors") for name in ("encoder", "projector")]
    classes = len(tensors[1]["weight"]) if recipe.method == "supervised" else 10
    networks = build_networks(recipe, classes)
    for network, state in zip(networks, tensors, strict=True):
        network.load_state_dict(state)
    return tuple(network.to(device).eval() for network in networks)


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Make `state` the newest checkpoint and the newest so far the previous one, each whole or absent."""
    newest, previous = (folder / name for name in CHECKPOINTS)
    temporary = folder / "checkpoint.tmp"
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    if newest.exists():
        os.replace(newest, previous)
    os.replace(temporary, newest)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint, on the CPU, or None. A damaged one is reported and passed over."""
    for path in (folder / name for name in CHECKPOINTS):
        if path.exists():
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # a cut file fails in as many ways as there are places to cut it
                print(f"{path} is damaged and passed over ({type(error).__name__})", flush=True)
    return None


def remove_checkpoints(folder: Path) -> None:
    """A finished run needs none."""
    for name in (*CHECKPOINTS, "checkpoint.tmp"):
        (folder / name).unlink(missing_ok=True)


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
