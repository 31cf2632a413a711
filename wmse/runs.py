"""The state of a run while it trains, and checkpoints of it that survive whatever stops the run."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wmse.networks import build_encoder, build_projector
from wmse.precision import resolve_precision
from wmse.recipes import Recipe

CHECKPOINTS = ("checkpoint.pt", "checkpoint.previous.pt")  # newest first
STATEFUL = ("encoder", "projector", "optimizer", "scaler")
PLAIN = ("order", "loss_sum", "step", "seconds", "epoch_seconds")


@dataclass
class Run:
    """All that changes while a recipe trains; a checkpoint holds its state dict."""

    recipe: Recipe
    dtype: torch.dtype  # of autocast; float32 is none
    encoder: nn.Module
    projector: nn.Module
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

    def parameters(self) -> list[nn.Parameter]:
        return [*self.encoder.parameters(), *self.projector.parameters()]

    def state_dict(self) -> dict[str, Any]:
        state = {name: getattr(self, name).state_dict() for name in STATEFUL}
        state["generators"] = {name: generator.get_state() for name, generator in self.generators.items()}
        return state | {name: getattr(self, name) for name in PLAIN}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name])
        for name in PLAIN:
            value = state[name]
            setattr(self, name, value.to(self.loss_sum.device) if isinstance(value, Tensor) else value)


def start_run(recipe: Recipe, images: int, device: torch.device) -> Run:
    """A run before its first step, on so many images. Its first weights are the same on any device."""
    dtype = resolve_precision(recipe.precision, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        encoder, projector = build_networks(recipe)
    encoder, projector = encoder.to(device), projector.to(device)
    optimizer = torch.optim.Adam(
        [*encoder.parameters(), *projector.parameters()],
        recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )
    homes = {"batches": torch.device("cpu"), "views": device, "slices": device}
    run = Run(
        recipe=recipe,
        dtype=dtype,
        encoder=encoder,
        projector=projector,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        generators={
            name: torch.Generator(home).manual_seed(recipe.seed * len(homes) + index)
            for index, (name, home) in enumerate(homes.items())
        },
        steps_per_epoch=images // recipe.batch_size,
        order=torch.empty(0, dtype=torch.int64, device=device),
        loss_sum=torch.zeros((), device=device),
    )
    run.encoder.to(memory_format=run.memory_format)
    return run


def build_networks(recipe: Recipe) -> tuple[nn.Module, nn.Module]:
    """The encoder and the projector of a recipe, fresh."""
    encoder = build_encoder(recipe.encoder)
    return encoder, build_projector(encoder.out_features, recipe.projector_width, recipe.embedding_dim)


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
    networks = build_networks(recipe)
    for name, network in zip(("encoder", "projector"), networks, strict=True):
        network.load_state_dict(load_file(Path(folder) / f"{name}.safetensors"))
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
