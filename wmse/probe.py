"""The linear probe: a linear classifier of frozen features, trained as in the official code.

A step is a few small operations, and CIFAR-10 takes 25,000 steps: gradient and Adam are written out, and on
CUDA an epoch is captured once and replayed, so that no step waits for Python.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

BETAS = (0.9, 0.999)  # of Adam
EPSILON = 1e-8


@torch.no_grad()
def train_linear(
    rows: Tensor,
    labels: Tensor,
    epochs: int = 500,
    batch_size: int = 1000,
    learning_rates: tuple[float, float] = (1e-2, 1e-6),
    weight_decay: float = 5e-6,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Weight (classes, f) and bias (classes,) of a linear classifier of rows (n, f) float32.

    The official code's schedule: cross-entropy, Adam with an L2 penalty, the learning rate falling
    exponentially an epoch from the first to the second of `learning_rates`, incomplete batches dropped (a set
    smaller than a batch is one batch), the last epoch's weights. Rows are taken as they are. First weights
    and batches depend on the seed alone, not on the device. TF32 is as it is set outside.
    """
    device, width, classes = rows.device, rows.shape[1], int(labels.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    bound = width**-0.5  # of the first weights, as in torch's own linear layer
    start = (2 * torch.rand(classes * (width + 1), generator=generator) - 1) * bound
    layer = _Layer(start.to(device), *torch.zeros(3, len(start), device=device))
    batch_size = min(batch_size, len(rows))
    order = torch.empty(len(rows) // batch_size, batch_size, dtype=torch.int64, device=device)
    scales = torch.empty(len(order), 2, device=device)

    def epoch() -> None:
        for index, (rate, guard) in zip(order, scales, strict=True):
            _gradient(layer, rows[index], labels[index], weight_decay)
            _adam(layer, rate, guard)

    run = epoch
    first, last = learning_rates
    for done in range(epochs):
        permutation = torch.randperm(len(rows), generator=generator)
        order.copy_(permutation[: order.numel()].view_as(order))
        rate = first * (last / first) ** (done / epochs)
        scales.copy_(_adam_scales(rate, done * len(order), len(order)))
        run()
        if done == 0 and device.type == "cuda":
            run = _captured(epoch, device)
    return _weight_and_bias(layer.parameters, width)


class _Layer(NamedTuple):
    """A linear layer in training by Adam. Each tensor holds a weight, row by row, and a bias: (c f + c,)."""

    parameters: Tensor
    gradient: Tensor
    mean: Tensor  # running mean of the gradient
    square: Tensor  # running mean of its square


def _weight_and_bias(flat: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Views of a tensor of `_Layer`: weight (c, f) and bias (c,), with f = `width`."""
    classes = len(flat) // (width + 1)
    return flat[: classes * width].view(classes, width), flat[classes * width :]


def _gradient(layer: _Layer, rows: Tensor, labels: Tensor, weight_decay: float) -> None:
    """Write the gradient of the mean cross-entropy and of weight_decay / 2 |parameters|^2.

    That of the former is (softmax - one-hot) / n, times the rows.
    """
    weight, bias = _weight_and_bias(layer.parameters, rows.shape[1])
    into_weight, into_bias = _weight_and_bias(layer.gradient, rows.shape[1])
    errors = torch.addmm(bias, rows, weight.T).softmax(1)
    errors.scatter_add_(1, labels[:, None], errors.new_full((len(rows), 1), -1.0))
    torch.addmm(weight, errors.T, rows, beta=weight_decay, alpha=1 / len(rows), out=into_weight)
    torch.add(errors.mean(0), bias, alpha=weight_decay, out=into_bias)


def _adam(layer: _Layer, rate: Tensor, guard: Tensor) -> None:
    """A step of Adam (Kingma and Ba, ICLR 2015, Sec. 2, last paragraph), given a row of `_adam_scales`."""
    layer.mean.lerp_(layer.gradient, 1 - BETAS[0])
    layer.square.mul_(BETAS[1]).addcmul_(layer.gradient, layer.gradient, value=1 - BETAS[1])
    layer.parameters.addcdiv_(layer.mean * rate, layer.square.sqrt().add_(guard), value=-1)


def _adam_scales(learning_rate: float, done: int, steps: int) -> Tensor:
    """Step size and epsilon, corrected for the bias of Adam's means, of the steps after the first `done`.

    (steps, 2) float64. Known ahead, they reach the device once an epoch.
    """
    step = torch.arange(done + 1, done + steps + 1, dtype=torch.float64)
    mean, square = (1 - beta**step for beta in BETAS)
    return torch.stack([learning_rate * square.sqrt() / mean, EPSILON * square.sqrt()], 1)


def _captured(epoch: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """`epoch` as one CUDA graph. It must have run once, as nothing may be initialised during a capture."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
            epoch()
    return graph.replay
