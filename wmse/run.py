"""A run while it trains: networks, optimiser, random generators and schedule; its steps, epochs and state."""

import inspect
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from wmse import distributed, machine, networks
from wmse.data import STATISTICS, Images, load, view_batches
from wmse.networks import Networks, Normalized, Outputs
from wmse.numerics import Checks, all_finite, loss_scaler, require, resolve_precision
from wmse.objectives import WHOLE_BATCH, compute_loss
from wmse.recipes import Recipe
from wmse.records import NETWORKS, read_record

STATEFUL = ("networks", "optimizer", "scaler")  # fields of Run with a state dict
PLAIN = ("order", "steps_taken", "seconds", "epoch_start", "rows", "identity", "started")  # saved as they are
STATE = (*STATEFUL, *PLAIN, "own")  # keys of a run's state dict


class DivergenceError(ArithmeticError):
    """The embeddings, the loss or the weights became NaN or infinite."""


class Run:
    """Everything that changes while a recipe trains. A checkpoint is its state dict.

    The first weights are the same on every device and in every process. All processes draw the same batches,
    and each its own views and slices.

    Args:
        images: how many images there are to train on.
        classes: how many classes they have; only supervised training needs it.
    """

    def __init__(self, recipe: Recipe, images: int, device: torch.device | str, classes: int = 10):
        self.recipe, self.device = recipe, torch.device(device)
        on_gpu = self.device.type == "cuda"
        self.dtype = resolve_precision(recipe.precision, self.device)  # float32 means no autocast
        # Channels last is faster on CPUs and tensor cores, contiguous for float32 on a GPU. On some CPUs the
        # backward pass of convolutions of 8 channels or fewer, channels last, corrupts memory (PyTorch 2.14).
        contiguous = self.dtype == torch.float32 if on_gpu else recipe.width <= 8
        self.memory_format = torch.contiguous_format if contiguous else torch.channels_last
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            built: nn.Module = networks.build_networks(recipe, classes)
        if recipe.sync_batchnorm and distributed.size() > 1:
            built = nn.SyncBatchNorm.convert_sync_batchnorm(built)
        self.networks: Networks = built.to(self.device, memory_format=self.memory_format)
        self.encoder, self.projector = self.networks.encoder, self.networks.projector
        trained = [parameter for parameter in built.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(
            trained or [torch.zeros(0)],  # raw pixels have no parameter, and Adam refuses an empty list
            recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
            capturable=on_gpu,
        )
        self.scaler, self.checks = loss_scaler(self.device, self.dtype), Checks(deferred=on_gpu)
        self.generators: dict[str, torch.Generator] = {}
        for index, name in enumerate(("batches", "views", "slices")):
            shared = name == "batches"
            seed = 3 * recipe.seed + index + (0 if shared else distributed.rank() << 32)
            self.generators[name] = torch.Generator("cpu" if shared else self.device).manual_seed(seed)
        self.steps_per_epoch = images // recipe.batch_size
        self.order = torch.empty(0, dtype=torch.int64)  # of the images in this epoch, on the CPU
        self.loss_sum = torch.zeros((), device=self.device)  # this process's losses in this epoch, summed
        self.steps_taken = 0  # optimiser steps, including before a resume
        self.seconds = 0.0  # of training, including before a resume; `train` counts them
        self.epoch_start = 0.0  # `seconds` when this epoch began
        self.rows: list[dict[str, float]] = []  # of metrics.csv, one per epoch
        self.identity: dict[str, Any] = {}  # settings and images, as in a record: fixed for the run
        self.started = ""  # the time, as in a record
        self._graph: tuple[torch.Size, nn.Module] | None = None  # of the networks, for views of this shape
        # The optimiser's step as a graph, for gradients at these addresses, and its learning rate on a GPU: a
        # graph would keep a number's value.
        self._update: tuple[list[int], torch.cuda.CUDAGraph | None] = ([], None)
        self._rate = torch.zeros((), device=self.device) if on_gpu else None

    @cached_property
    def model(self) -> nn.Module:
        """The networks in training mode, wrapped for several processes and compiled as the recipe asks.

        It shares its weights with `networks`. Each process keeps BatchNorm's running statistics of its own
        images; rank 0's are saved. All processes must ask for the model at the same time.
        """
        model: nn.Module = self.networks.train()
        if distributed.size() > 1:
            options = inspect.signature(DistributedDataParallel).parameters
            buffers = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
            model = DistributedDataParallel(model, gradient_as_bucket_view=True, **{buffers: False})
        return torch.compile(model) if self.recipe.compile else model

    @property
    def compiles_views(self) -> bool:
        return self.device.type == "cuda" and self.recipe.cuda_graphs

    @property
    def replays(self) -> bool:
        """Whether the networks, BYOL's target included, are replayed as CUDA graphs.

        In one process only, because DDP exchanges gradients in hooks, which a graph leaves out. At 224 px a
        graph would gain nothing, and the threads that load images pin memory, which a capture forbids.
        """
        recipe = self.recipe
        one_gpu = self.device.type == "cuda" and distributed.size() == 1
        return one_gpu and recipe.cuda_graphs and not recipe.compile and recipe.stem != "224px"

    def epoch(self, images: Images) -> Iterator[tuple[Tensor, Tensor]]:
        """Take the steps that remain of this epoch, and yield each one's loss and embeddings as `step` does.

        An epoch begins by drawing the order of the training images, the same in all processes. A run resumed
        in mid-epoch goes on with the order, the views and the sum of losses that it had. ValueError for
        images that make another number of batches than the run was made for, or none.
        """
        recipe = self.recipe
        if not 0 < len(images) // recipe.batch_size == self.steps_per_epoch:
            raise ValueError(
                f"an epoch of this run has {self.steps_per_epoch} batches of {recipe.batch_size} images, and "
                f"the {len(images)} images given make {len(images) // recipe.batch_size}"
            )
        before = self.steps_taken
        epoch, first = divmod(before, self.steps_per_epoch)
        if first == 0:
            self.order = torch.randperm(len(images), generator=self.generators["batches"])
            self.loss_sum, self.epoch_start = torch.zeros_like(self.loss_sum), self.seconds
            self.checks.start_epoch()
        self.model.train()
        own = distributed.share(self.order, recipe.batch_size)
        shape = recipe.positives, recipe.batch_size // distributed.size(), recipe.views
        seed = recipe.seed * recipe.epochs + epoch
        drawn = self.generators["views"], first, seed, self.compiles_views
        for views, labels in view_batches(images, own, *shape, *drawn):
            loss, embeddings = self.step(views, labels)
            self.loss_sum += loss.nan_to_num(0.0, 0.0, 0.0)  # skipped steps, on CUDA
            yield loss, embeddings
        if self.steps_taken == before:
            raise ValueError(f"no batch was left in epoch {epoch + 1} after {first} of its steps")

    def step(self, views: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One optimiser step on this process's part of a batch; its loss, and embeddings (d, n, k) float32.

        Both are detached and on the device. DivergenceError and SingularCovarianceError are raised at once on
        a CPU. On CUDA the host does not wait: a step whose loss is not finite leaves the weights as they are
        and is counted in `checks`, whose `look` raises them if several steps in a row were skipped.

        views: (d, n, 3, h, w) float32, normalised, on the device.
        labels: (n,) int64, on the device; only supervised training uses them.
        """
        outputs = self.forward(views)
        loss = self.loss(outputs, labels)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.update()
        return loss.detach(), outputs.embeddings.detach()

    def loss(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """The loss of the model's outputs for a batch, with its checks."""
        embeddings = outputs.embeddings
        with self.checks:
            require(all_finite(embeddings), lambda _: self.diverged("the embeddings hold NaN or infinity"))
            if self.recipe.method in WHOLE_BATCH:
                outputs = outputs._replace(embeddings=distributed.gather_images(embeddings))
            loss = compute_loss(self.recipe, outputs, labels, self.generators["slices"])
            finite = all_finite(loss)
            require(finite, lambda _: self.diverged("the loss is NaN or infinite"))
        self.checks.count(finite)
        return loss

    def forward(self, views: Tensor) -> Outputs:
        """Outputs of the model for views (d, n, 3, h, w), computed in the run's precision, as float32."""
        if self.replays and torch.is_grad_enabled():
            if self._graph is None or self._graph[0] != views.shape:
                self._graph = views.shape, networks.as_cuda_graph(self._in_precision, views)
            return Outputs(*(tensor.clone() for tensor in self._graph[1](views)))
        return Outputs(*self._in_precision(views))

    @cached_property
    def _in_precision(self) -> nn.Module:
        return networks.InPrecision(self.model, self.dtype, self.memory_format)

    def update(self) -> None:
        """Apply the gradients at this step's learning rate, move BYOL's target, and count the step."""
        recipe = self.recipe
        rate = learning_rate(recipe, self.steps_taken, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate if self._rate is None else self._rate.fill_(rate)
        self._apply_gradients()
        if self.networks.target is not None:
            progress = self.steps_taken // self.steps_per_epoch / recipe.epochs
            self.networks.follow(networks.target_momentum(recipe.target_momentum, progress))
        self.steps_taken += 1

    def _apply_gradients(self) -> None:
        """The optimiser's and the scaler's step, replayed as one CUDA graph where the networks are.

        A graph is recorded once the gradients lie where those of the step before lay, and is replayed only
        while they do: it reads these addresses.
        """
        parameters = self.optimizer.param_groups[0]["params"] if self.replays else []
        addresses = [0 if p.grad is None else p.grad.data_ptr() for p in parameters]
        before, graph = self._update
        if not addresses or addresses != before:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self._update = addresses, None
            return
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):  # records, and computes nothing
                self.scaler.step(self.optimizer)
                self.scaler.update()
            self._update = addresses, graph
        graph.replay()

    def diverged(self, what: str) -> DivergenceError:
        return DivergenceError(
            f"{what} near step {self.steps_taken}: training diverged. The last good checkpoint, if any, is "
            f"kept. Try a lower learning_rate (now {self.recipe.learning_rate}), a longer warm-up or "
            "precision float32."
        )

    def state_dict(self) -> dict[str, Any]:
        """The state of the run in all processes, which must ask for it at the same time."""
        own = {name: generator.get_state() for name, generator in self.generators.items()}
        own |= {"loss_sum": self.loss_sum.cpu(), "refused": self.checks.counts}
        state = {name: getattr(self, name).state_dict() for name in STATEFUL}
        return state | {"own": distributed.from_all(own)} | {name: getattr(self, name) for name in PLAIN}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`. ValueError if another number of processes wrote it."""
        processes = len(state["own"])
        if processes != distributed.size():
            raise ValueError(
                f"the checkpoint was written by {processes} process(es), and now there are "
                f"{distributed.size()}: resume with as many as before, or start again in another folder"
            )
        own = state["own"][distributed.rank()]
        for name in STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        self._update = [], None  # a graph would go on with the moments of before
        for name, generator in self.generators.items():
            generator.set_state(own[name])
        self.loss_sum = own["loss_sum"].to(self.device)
        if (counts := own.get("refused")) is not None:
            self.checks.counts = counts.to(self.device)
        for name in PLAIN:
            setattr(self, name, state[name])


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step (the first is 0): linear warm-up, then drops counted from the end.

    A drop that would fall before the first epoch is left out. With `cosine_schedule` a cosine leads from the
    end of the warm-up to 0 at the end, without drops.
    """
    warmup = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    if recipe.cosine_schedule:
        after, steps = step - recipe.warmup_steps, recipe.epochs * steps_per_epoch - recipe.warmup_steps
        return recipe.learning_rate * warmup * (1 + math.cos(math.pi * max(0, after) / max(1, steps))) / 2
    epoch = step // steps_per_epoch
    drops = sum(0 <= recipe.epochs - before <= epoch for before in recipe.lr_drops)
    return recipe.learning_rate * warmup * recipe.lr_drop_factor**drops


def save_networks(run: Run, folder: Path) -> None:
    """Write encoder.safetensors and projector.safetensors, float32, each replaced as a whole."""
    for name in NETWORKS:
        state = getattr(run, name.removesuffix(".safetensors")).state_dict()
        tensors = {key: value.cpu().contiguous() for key, value in state.items()}
        machine.write_whole(folder / name, save(tensors))


def load_networks(
    folder: str | Path, recipe: Recipe, device: torch.device | str = "cpu"
) -> tuple[nn.Module, nn.Module]:
    """The trained encoder and projector of a finished run, in eval mode.

    ValueError or OSError, naming the file and its fault, where one cannot be read or does not fit.
    """
    paths = [Path(folder, name) for name in NETWORKS]
    weights = [networks.read_weights(path) for path in paths]
    scores = weights[1].get("weight") if recipe.method == "supervised" else None
    both = networks.build_networks(recipe, 10 if scores is None or not scores.ndim else len(scores))
    loaded = both.encoder, both.projector
    for network, tensors, path in zip(loaded, weights, paths, strict=True):
        networks.fill(network, tensors, path)
        network.to(device).eval()
    return loaded


def load_encoder(run: str | Path, device: torch.device | str = "cpu") -> Normalized:
    """The trained encoder of a run, with its width and stem, in eval mode behind its normalisation.

    Args:
        run: the run's folder, or encoder.safetensors in it; record.json beside it says what the encoder is.
        device: where it is put.

    Returns:
        A `Normalized`: it takes images (n, 3, h, w), uint8 or float in [0, 1], best of the size that it was
        trained on, and gives features (n, `out_features`). It refuses floats of another range. Call it in
        `torch.inference_mode()` unless gradients are wanted.

    Raises:
        FileNotFoundError: no record.json beside the weights.
        ValueError, OSError: weights that cannot be read or do not fit the record.
    """
    path = machine.as_path(run)
    folder = path.parent if path.is_file() else path
    record, path = read_record(folder), path if path.is_file() else folder / NETWORKS[0]
    recipe = record.recipe
    encoder = networks.build_encoder(recipe.encoder, recipe.stem, recipe.width)
    networks.fill(encoder, networks.read_weights(path), path)
    if recipe.dataset == "folder":
        mean, std = record.folder["mean"], record.folder["std"]
    elif recipe.dataset in STATISTICS:
        mean, std = STATISTICS[recipe.dataset]
    else:
        images = load(recipe.dataset, "train")
        mean, std = images.mean, images.std
    return Normalized(encoder, mean, std).to(device).eval()
