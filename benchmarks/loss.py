"""The W-MSE loss, forward and backward, against the plain loop over slices and pairs.

    python -m benchmarks.loss [--device cuda] [--rounds 120] [--threads 1]

The plain loop factorises each slice once (z = h @ L^-T) and leaves the gradient to autograd.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measuring
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


def compare(size: tuple[int, int, int, int], device: torch.device, rounds: int) -> dict[str, float]:
    """A row of the table: medians in milliseconds of both forms, after a check that they agree."""
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

    def step(loss):
        embeddings.grad = None
        loss(embeddings, slice_size).backward()

    forms = {"plain": lambda: step(plain_loop), "wmse": lambda: step(w_mse_loss)}
    times = measuring.medians(forms, rounds, device, block=10)
    row = dict(zip(("d", "n", "k", "slice"), size, strict=True))
    row |= {f"{name}_ms": 1e3 * time for name, time in times.items()}
    return row | {"ratio": times["plain"] / times["wmse"]}


def main(arguments: list[str] | None = None) -> None:
    options = measuring.parse(
        __doc__,
        ("--rounds", {"type": int, "default": 120, "help": "timed calls of each form (%(default)s)"}),
        ("--threads", {"type": int, "default": 1, "help": "CPU threads (%(default)s)"}),
        arguments=arguments,
    )
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    table = measuring.Table(
        "loss",
        "W-MSE loss, forward and backward",
        {"d": "d", "n": "n", "k": "k", "slice": "slice", "plain_ms": "plain loop, ms"}
        | {"wmse_ms": "wmse, ms", "ratio": "ratio"},
        [compare(size, options.device, options.rounds) for size in SIZES],
        "`wmse.losses.w_mse_loss` against the same loss as a loop over slices, views and pairs, whose "
        "gradient is autograd's; both checked to agree. "
        f"Medians of {options.rounds} calls, ten at a time in turns, float32"
        + (f", {options.threads} CPU thread(s)." if options.device.type == "cpu" else "."),
    )
    measuring.finish(table, options.device, options.out)
    torch.set_num_threads(before)


if __name__ == "__main__":
    main()
