"""The W-MSE loss, forward and backward, against the plain loop over slices and pairs.

    python -m benchmarks.loss [--device cuda] [--rounds 60]

The plain loop factorises each slice once (z = h @ L^-T) and leaves the gradient to autograd. Both run in
turn, so that both meet the same machine; medians are compared.
"""

import argparse
import itertools
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from wmse.losses import w_mse_loss

SIZES = [(2, 512, 64, 128), (4, 256, 64, 128), (2, 1024, 128, 256)]  # d, n, k, slice


def plain_loop(embeddings: Tensor, slice_size: int, generator: torch.Generator | None = None) -> Tensor:
    """The same loss as `w_mse_loss(embeddings, slice_size)`, written as the paper describes it."""
    n, k = embeddings.shape[1:]
    order = torch.randperm(n, generator=generator, device=embeddings.device)
    identity = torch.eye(k, dtype=embeddings.dtype, device=embeddings.device)
    losses = []
    for indices in order.split(slice_size):
        whitened = []
        for view in embeddings:
            h = view[indices]
            h = h - h.mean(0)
            factor = torch.linalg.cholesky(h.T @ h / (slice_size - 1))
            whitened.append(h @ torch.linalg.solve_triangular(factor, identity, upper=False).T)
        for a, b in itertools.combinations(whitened, 2):
            losses.append((2 - 2 * (F.normalize(a, dim=-1) * F.normalize(b, dim=-1)).sum(-1)).mean())
    return torch.stack(losses).mean()


def seconds(loss, embeddings: Tensor, slice_size: int) -> float:
    """Wall time of one forward and backward."""
    embeddings.grad = None
    synchronize = torch.cuda.synchronize if embeddings.is_cuda else (lambda: None)
    synchronize()
    start = time.perf_counter()
    loss(embeddings, slice_size).backward()
    synchronize()
    return time.perf_counter() - start


def compare(size: tuple[int, int, int, int], device: str, rounds: int) -> dict[str, float]:
    """Medians in milliseconds of both forms at one size, after a check that they agree."""
    d, n, k, slice_size = size
    generator = torch.Generator(device).manual_seed(0)
    base = torch.randn(n, k, generator=generator, device=device)
    embeddings = base + 0.5 * torch.randn(d, n, k, generator=generator, device=device)
    embeddings.requires_grad_()

    results = []
    for loss in (plain_loop, w_mse_loss):
        value = loss(embeddings, slice_size, generator=torch.Generator(device).manual_seed(1))
        (gradient,) = torch.autograd.grad(value, embeddings)
        results.append((value.detach(), gradient))
    (plain_value, plain_gradient), (value, gradient) = results
    assert abs(value / plain_value - 1) < 1e-5, "the two losses differ"
    assert (gradient - plain_gradient).norm() / plain_gradient.norm() < 1e-5, "the two gradients differ"

    times: dict[str, list[float]] = {"plain": [], "wmse": []}
    for _ in range(rounds):
        times["plain"].append(seconds(plain_loop, embeddings, slice_size))
        times["wmse"].append(seconds(w_mse_loss, embeddings, slice_size))
    return {name: 1e3 * statistics.median(values[rounds // 6 :]) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=120, help="timed calls of each form")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    name = (
        torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {arguments.threads} thread(s)"
    )
    print(
        f"W-MSE loss, forward + backward, medians of {arguments.rounds} on {name}, torch {torch.__version__}"
    )
    print(f"{'d':>3} {'n':>5} {'k':>4} {'slice':>6} {'plain loop':>12} {'wmse':>9} {'ratio':>6}")
    for size in SIZES:
        medians = compare(size, arguments.device, arguments.rounds)
        ratio = medians["plain"] / medians["wmse"]
        sizes = "{:3d} {:5d} {:4d} {:6d}".format(*size)
        print(f"{sizes} {medians['plain']:9.2f} ms {medians['wmse']:6.2f} ms {ratio:5.1f}x")


if __name__ == "__main__":
    main()
