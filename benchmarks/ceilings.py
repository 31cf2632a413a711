"""What a machine can do at best: the two ceilings that a training step is measured against."""

import torch
import torch.nn.functional as F

from benchmarks.measuring import seconds
from wmse.evaluation import float32_arithmetic


def copy_bandwidth(device: torch.device, mebibytes: int = 512) -> float:
    """Bytes a second of a large copy, each byte read and written: the best of five."""
    count = mebibytes * 2**20
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * count / min(seconds(lambda: target.copy_(source), device) for _ in range(5))


def product_speed(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Operations a second of a large matrix product, the best of ten; float32 without TF32.

    Two forms, as libraries differ: a square product, and one written as the 3x3 convolution of ResNet-18's
    last stage, (images * 16, 9 * 512) times (9 * 512, 512), which CPUs do better.
    """
    with float32_arithmetic(device), torch.inference_mode():
        return _product_speed(device, dtype, size)


def _product_speed(device: torch.device, dtype: torch.dtype, size: int | None) -> float:
    size = size or (8192 if device.type == "cuda" else 3072)
    a = torch.randn(size, size, device=device).to(dtype)
    square = 2 * size**3 / min(seconds(lambda: a @ a, device) for _ in range(5))

    images = size // 24
    x = torch.randn(images, 512, 4, 4, device=device).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(512, 512, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
    operations = 2 * images * 16 * 9 * 512 * 512
    best = min(seconds(lambda: F.conv2d(x, weight, padding=1), device) for _ in range(5))
    return max(square, operations / best)
