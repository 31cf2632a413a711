"""Encoder (images -> features, which are evaluated), projector (features -> embeddings), BYOL's target."""

import copy
import math
from collections.abc import Iterable
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from wmse.machine import read_error
from wmse.recipes import Recipe


def build_encoder(
    name: str, stem: str = "32px", width: int = 64, zero_init_residual: bool = False
) -> nn.Module:
    """An encoder by name.

    Its `out_features` is the number of features per image. Its `image_size` is the height and width in pixels
    that it takes; None for resnet18, which pools and takes any.

    "resnet18": torchvision's, with 8 * `width` features. "small": three convolutions and a linear layer for
    `digits`, 256 features; two CPU cores train it in a minute. "pixels": the normalised image of 32 pixels
    itself, a baseline without learning.

    Args:
        stem: first layers of resnet18, as in the paper. "32px" (CIFAR): a 3x3 convolution of stride
            1 in place of the 7x7, no max-pooling; "64px" (STL-10, Tiny ImageNet): the same with max-pooling;
            "224px": torchvision's own.
        width: channels of resnet18's first stage, 64 in the paper.
        zero_init_residual: start resnet18's residual branches at zero.

    ValueError for an unknown name or stem, or a width below 1.
    """
    if name not in ENCODERS:
        raise ValueError(f"unknown encoder {name!r}; there are: {', '.join(ENCODERS)}")
    if name == "resnet18":
        network, features = _resnet18(stem, width, zero_init_residual), 8 * width
    else:
        network, features = (_small(), 256) if name == "small" else (nn.Sequential(nn.Flatten()), 3 * 32 * 32)
    network.out_features, network.image_size = features, None if name == "resnet18" else 32
    return network


def _resnet18(stem: str, width: int, zero_init_residual: bool) -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    if stem not in STEMS:
        raise ValueError(f"unknown stem {stem!r}; there are: {', '.join(STEMS)}")
    if width < 1:
        raise ValueError(f"width must be at least 1 channel; got {width}")

    class Slim(ResNet):
        """torchvision's ResNet with every number of channels multiplied by width / 64."""

        def _make_layer(self, block, planes, *arguments, **options):
            if planes == 64:  # the first stage reads the stem's output
                self.inplanes = width
            return super()._make_layer(block, planes * width // 64, *arguments, **options)

    network = Slim(BasicBlock, [2, 2, 2, 2], zero_init_residual=zero_init_residual)
    kernel, stride = (7, 2) if stem == "224px" else (3, 1)
    if (stem, width) != ("224px", 64):
        network.conv1 = nn.Conv2d(3, width, kernel, stride, padding=kernel // 2, bias=False)
    if width != 64:
        network.bn1 = nn.BatchNorm2d(width)
    if stem == "32px":
        network.maxpool = nn.Identity()
    network.fc = nn.Identity()
    return network


def _small() -> nn.Module:
    def halve(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    # 32 pixels to 4. The position of strokes tells digits apart, so no pooling averages over positions.
    convolutions = [*halve(3, 32, 5), *halve(32, 64, 3), *halve(64, 128, 3)]
    head = [nn.Linear(128 * 4 * 4, 256, bias=False), nn.BatchNorm1d(256), nn.ReLU(inplace=True)]
    return nn.Sequential(*convolutions, nn.Flatten(), *head)


ENCODERS = ("resnet18", "small", "pixels")
STEMS = ("32px", "64px", "224px")


def build_projector(
    inputs: int,
    width: int,
    outputs: int,
    batchnorm: bool = True,
    output_batchnorm: bool = False,
    layers: int = 2,
) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, Linear, as in the official code (512, 1024, 64 units on CIFAR-10).

    Also BYOL's predictor. `batchnorm`: whether a hidden layer has one. `output_batchnorm`: an affine
    BatchNorm at the end (SimCLR). `layers`: how many linear layers; 0 gives the identity. ValueError for a
    negative number, and for an identity whose outputs are not its inputs.
    """
    if layers < 0 or (layers == 0 and outputs != inputs):
        wanted = f"outputs = inputs = {inputs} for no layer" if layers == 0 else "0 layers at least"
        raise ValueError(f"a projector of {layers} layers to {outputs} dimensions: give {wanted}")
    parts: list[nn.Module] = []
    for size in [width] * (layers - 1):
        hidden = [nn.BatchNorm1d(size)] if batchnorm else []
        parts += [nn.Linear(inputs, size), *hidden, nn.ReLU(inplace=True)]
        inputs = size
    parts += [nn.Linear(inputs, outputs)] if layers else []
    return nn.Sequential(*parts, *([nn.BatchNorm1d(outputs)] if output_batchnorm else []))


def embed(
    encoder: nn.Module, projector: nn.Module, views: Iterable[Tensor], one_view_at_a_time: bool = False
) -> Tensor:
    """Embeddings (d, n, k) of d views, each (n, 3, h, w).

    The images that BatchNorm sees together change the results, so they are those of the official code: the
    encoder takes one view at a time (its running statistics move d times per step), the projector takes all
    views together, or one view at a time as in BYOL.
    """
    features = [encoder(view) for view in views]
    if one_view_at_a_time:
        return torch.stack([projector(rows) for rows in features])
    return projector(torch.cat(features)).unflatten(0, (len(features), -1))


class Outputs(NamedTuple):
    """Outputs of the networks for d views of n images."""

    embeddings: Tensor  # (d, n, k); in supervised training the scores of k classes
    predictions: Tensor | None = None  # (d, n, k), BYOL only
    targets: Tensor | None = None  # (d, n, k), BYOL only, without gradient


class Networks(nn.Module):
    """All networks of a run as one module, which is compiled or wrapped by DDP as a whole.

    BYOL adds a predictor, and a target: a copy of encoder and projector whose parameters follow theirs
    (`follow`), and whose BatchNorm stays in training mode with statistics of its own, as in the official
    code. `per_view`: the projector takes one view at a time, as it does in BYOL.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        predictor: nn.Module | None = None,
        per_view: bool = False,
    ):
        super().__init__()
        self.per_view = per_view
        self.encoder, self.projector, self.predictor = encoder, projector, predictor
        self.target = None
        if predictor is not None:
            target = nn.ModuleList([copy.deepcopy(encoder), copy.deepcopy(projector)])
            self.target = target.requires_grad_(False)

    def forward(self, views: list[Tensor]) -> Outputs:
        """Outputs for a list of d views, each (n, 3, h, w)."""
        if self.predictor is None:
            return Outputs(embed(self.encoder, self.projector, views, self.per_view))
        embeddings = embed(self.encoder, self.projector, views, one_view_at_a_time=True)
        predictions = torch.stack([self.predictor(rows) for rows in embeddings])
        with torch.no_grad():
            targets = embed(*self.target, views, one_view_at_a_time=True)
        return Outputs(embeddings, predictions, targets)

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Set the target's parameters to momentum * target + (1 - momentum) * online; leave its buffers."""
        online = [*self.encoder.parameters(), *self.projector.parameters()]
        get_ema_multi_avg_fn(momentum)(list(self.target.parameters()), online, None)


class InPrecision(nn.Module):
    """Networks computed under autocast: views (d, n, 3, h, w) in, their outputs in float32 out.

    The outputs are a tuple of the tensors of `Outputs`, without None, because a CUDA graph takes and gives
    tensors only. `dtype` float32 means no autocast.
    """

    def __init__(self, networks: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format):
        super().__init__()
        self.networks, self.dtype, self.memory_format = networks, dtype, memory_format

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        separate = [view.contiguous(memory_format=self.memory_format) for view in views]
        with torch.autocast(views.device.type, self.dtype, enabled=self.dtype != torch.float32):
            outputs = self.networks(separate)
        return tuple(tensor.float() for tensor in outputs if tensor is not None)


def as_cuda_graph(model: nn.Module, views: Tensor) -> nn.Module:
    """`model`, its forward and its backward pass each one CUDA graph for views of this shape.

    The arithmetic is that of `model`, in two launches instead of hundreds. Recording needs a few passes; what
    they do to BatchNorm's statistics is undone. Each replay overwrites the outputs of the one before.
    """
    before = [buffer.clone() for buffer in model.buffers()]
    # Gradients are added up on the stream of the recording: autograd waits for it, and would warn of it.
    getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", bool)(False)
    graphed = torch.cuda.make_graphed_callables(model, (views.clone(),))
    for buffer, value in zip(model.buffers(), before, strict=True):
        buffer.copy_(value)
    return graphed


def target_momentum(first: float, progress: float) -> float:
    """BYOL's momentum, from `first` to 1 along a cosine (Grill et al., 2020, Sec. 3.2).

    `progress` goes from 0 to 1; the official code takes epoch / epochs, once per epoch.
    """
    return 1 - (1 - first) * (math.cos(math.pi * progress) + 1) / 2


def build_networks(recipe: Recipe, classes: int = 10) -> Networks:
    """Untrained networks. A supervised projector is a linear classifier; pixels are their own embeddings."""
    encoder = build_encoder(recipe.encoder, recipe.stem, recipe.width, recipe.zero_init_residual)
    if recipe.method == "supervised":
        return Networks(encoder, nn.Linear(encoder.out_features, classes))
    if recipe.encoder == "pixels":
        return Networks(encoder, nn.Identity())
    width, k = recipe.projector_width, recipe.embedding_dim
    batchnorms = recipe.projector_batchnorm, recipe.output_batchnorm
    projector = build_projector(encoder.out_features, width, k, *batchnorms, recipe.projector_layers)
    predictor = build_projector(k, width, k) if recipe.method == "byol" else None
    return Networks(encoder, projector, predictor, recipe.projector_per_view)


class Normalized(nn.Module):
    """An encoder behind its normalisation: images (n, 3, h, w), uint8 or float in [0, 1], to features (n, f).

    Args:
        encoder: from `build_encoder`. ResNet-18 averages over all positions, so it takes images of any size
            (best: the size that it was trained on, because it knows objects at that scale). The others take
            32 x 32 pixels.
        mean, std: per channel, in units of [0, 1].
        check: whether to look at the values of float images. Their least and largest value must be known for
            that, so the host waits for a GPU in each call; False spares the wait. Under `torch.compile` and
            `torch.export` nobody looks, because a graph cannot depend on values.

    Raises:
        ValueError: on a call, for images of another form or size, or whose floats are not in [0, 1] give or
            take `OVERSHOOT`: bytes that were not divided by 255, or images that are normalised already.
    """

    OVERSHOOT = 0.25  # by which bicubic resizing may leave [0, 1]

    def __init__(self, encoder: nn.Module, mean: Iterable[float], std: Iterable[float], check: bool = True):
        super().__init__()
        self.encoder, self.out_features, self.check = encoder, encoder.out_features, check
        self.register_buffer("mean", torch.tensor([*mean]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([*std]).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        size, shape = getattr(self.encoder, "image_size", None), tuple(images.shape)
        if len(shape) != 4 or shape[1] != 3 or (size and shape[2:] != (size, size)):
            raise ValueError(f"images must be (n, 3, {size or 'h'}, {size or 'w'}); got {shape}")
        if images.dtype == torch.uint8:
            images = images / 255
        elif not images.is_floating_point():
            raise ValueError(f"images must be uint8, or float in [0, 1]; got {images.dtype}")
        elif self.check and images.numel() and not torch.compiler.is_compiling():
            low, high = torch.stack(images.aminmax()).tolist()
            if not (low >= -self.OVERSHOOT and high <= 1 + self.OVERSHOOT):
                raise ValueError(
                    f"float images must be in [0, 1]; got values from {low:.4g} to {high:.4g}. Divide bytes "
                    "by 255, or give them as uint8; leave the normalisation to this module"
                )
        return self.encoder((images - self.mean) / self.std)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. ValueError or OSError, with the path, if it cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip()
        return load_file(path)
    except OSError as error:
        raise error if error.errno is None else read_error(error, path) from error
    except SafetensorError as error:
        found = "a cut or damaged file"
        if not start:
            found = "an empty file"
        elif start.startswith(b"version https://git-lfs"):
            found = "a pointer of Git LFS, which `git lfs pull` replaces by the weights"
        elif start.startswith(b"<"):
            found = "a web page, saved in place of the weights"
        elif start.startswith((b"PK", b"\x80")):
            found = "a file of torch.save"
        raise ValueError(
            f"{path} holds no weights, but is {found} ({error}). Copy it afresh, or train the run again."
        ) from error


def fill(network: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load the weights that were read from `path`; ValueError, with what differs, if they do not fit."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:  # torch lists the differences below a heading
        differences = shorten(str(error).partition("\n")[2], 400, placeholder=" ...")
        raise ValueError(
            f"{path} does not hold the {path.stem} of this run's recipe: {differences} Was another network "
            "saved under this name, or that of another recipe? Copy the right one, or train the run again."
        ) from None
