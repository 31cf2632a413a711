"""Encoder and projector: images -> features (evaluated) -> embeddings (trained on)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def build_encoder(name: str) -> nn.Module:
    """An encoder by name; its `out_features` says how many features an image gets.

    "resnet18": torchvision's, with the stem that the paper uses for 32-pixel images: a 3x3 convolution of
    stride 1 in place of the 7x7, and no max-pooling. 512 features. "small": three convolutions and a linear
    layer for `digits`, which two CPU cores train in a minute. 256 features.

    Raises:
        ValueError: an unknown name.
    """
    if name not in ENCODERS:
        raise ValueError(f"unknown encoder {name!r}; there are: {', '.join(ENCODERS)}")
    return ENCODERS[name]()


def _resnet18() -> nn.Module:
    from torchvision.models import resnet18

    network = resnet18()
    network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    network.maxpool = nn.Identity()
    network.out_features = network.fc.in_features
    network.fc = nn.Identity()
    return network


def _small() -> nn.Module:
    def halve(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    # 32 pixels to 4. A digit is told by where its strokes are, so they are not averaged away at the end.
    convolutions = [*halve(3, 32, 5), *halve(32, 64, 3), *halve(64, 128, 3)]
    head = [nn.Linear(128 * 4 * 4, 256, bias=False), nn.BatchNorm1d(256), nn.ReLU(inplace=True)]
    network = nn.Sequential(*convolutions, nn.Flatten(), *head)
    network.out_features = 256
    return network


ENCODERS = {"resnet18": _resnet18, "small": _small}


def build_projector(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, Linear, as in the official code (there 512, 1024, 64 on CIFAR-10)."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Linear(width, outputs)
    )


def embed(encoder: nn.Module, projector: nn.Module, views: Iterable[Tensor]) -> Tensor:
    """Embeddings (d, n, k) of d views, each (n, 3, h, w).

    What BatchNorm sees changes results, so it is as in the official code: the encoder takes one view at a
    time (its running statistics move d times a step), the projector all views together.
    """
    features = [encoder(view) for view in views]
    return projector(torch.cat(features)).unflatten(0, (len(features), -1))
