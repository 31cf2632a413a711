"""Several processes as one run: started by torchrun, each with its share of every batch.

A process alone needs none of this: every function here then does nothing, or the obvious. The first process
(rank 0) writes the record; what it alone decides reaches the others by `from_first`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=24)  # that processes wait for each other: the first may download a set for hours


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def launcher() -> list[str]:
    """The words of the command line that start these processes: python, or torchrun with their numbers."""
    if size() == 1:
        return ["python"]
    machines, each = os.environ.get("GROUP_WORLD_SIZE", "1"), os.environ.get("LOCAL_WORLD_SIZE", str(size()))
    return ["torchrun", "--nnodes", machines, "--nproc-per-node", each]


def choose_device(name: str | None) -> torch.device:
    """The device of that name; None means CUDA where there is any. ValueError for one that is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used: {first_line}; leave it out, or take cpu") from None
    return device


@contextmanager
def joined(device: str | None = None) -> Iterator[torch.device]:
    """Join the other processes, if torchrun has started this one, and part from them at the end.

    Gradients travel by NCCL on CUDA and by gloo on CPUs; what the hosts agree on always goes by gloo, so that
    no GPU is waited for.

    Args:
        device: "cpu", "cuda", ...; None means CUDA where there is any. Each process of a machine gets a GPU
            of its own.

    Yields:
        The device of this process.
    """
    where = choose_device(device)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield where
        return
    if where.type == "cuda":
        where = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(where)
    if dist.is_initialized():  # by whoever called
        yield where
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo", timeout=PATIENCE)
    yield where
    dist.destroy_process_group()  # not after an error: the others may be gone, and torchrun ends them


def any_of(*flags: bool) -> list[bool]:
    """Which flags are set in any process. All processes must ask, and wait for each other's answer."""
    if size() == 1:
        return list(flags)
    tensor = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.bool().tolist()


def from_first(decide: Callable[[], Any]) -> Any:
    """What `decide` returns in the first process, which alone calls it; any object that can be pickled.

    What it raises is raised in all processes; in the others as ToldByFirst.
    """
    if size() == 1:
        return decide()
    answer: list[Any] = [None, None]
    if rank() == 0:
        try:
            answer[0] = decide()
        except Exception as error:
            dist.broadcast_object_list([None, str(error)], device=torch.device("cpu"))
            raise
    dist.broadcast_object_list(answer, device=torch.device("cpu"))
    if answer[1] is not None:
        raise ToldByFirst(answer[1])
    return answer[0]


class ToldByFirst(RuntimeError):
    """The first process failed, and has said why: this one need not say it again."""


def first_before_others(work: Callable[[], Any]) -> Any:
    """What `work` returns here; the first process does it before the others, who find what it downloads."""
    done: list[Any] = []
    from_first(lambda: done.append(work()))
    return done[0] if done else work()


def from_all(own: Any) -> list[Any]:
    """Each process's object, in their order; any that can be pickled."""
    if size() == 1:
        return [own]
    answers: list[Any] = [None] * size()
    dist.all_gather_object(answers, own)
    return answers


def mean(tensor: Tensor) -> Tensor:
    """The mean over processes, element by element."""
    if size() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / size()


def share(order: Tensor, batch_size: int) -> Tensor:
    """This process's part of an epoch's order: of each batch of `batch_size` images, its own run of images.

    The batch is that of one process alone: rank r of w has images r n/w ... (r + 1) n/w - 1 of it. An
    incomplete last batch is dropped.

    Args:
        order: (images,) int64, the same in all processes.
    """
    whole = len(order) // batch_size * batch_size
    return order[:whole].view(-1, size(), batch_size // size())[:, rank()].flatten()


def gather_images(embeddings: Tensor) -> Tensor:
    """All processes' embeddings, (d, n, k) from each to (d, size * n, k), differentiable.

    The images come in the order of the batch. Each process then computes the same loss; since the gradient
    that reaches a process's own part is the sum of what all of them send it, size times the gradient of one
    loss, and gradients of parameters are averaged over processes, they are those of one process alone.
    """
    return _Gather.apply(embeddings) if size() > 1 else embeddings


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(size())]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(size(), dim=1)[rank()]
