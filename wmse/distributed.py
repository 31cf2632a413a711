"""Several processes, started by torchrun, that train one run: each has its share of every batch.

Rank 0 decides and writes the record; `from_first` passes its decisions to the others. In a single process
these functions return what they are given, or what the process itself computes.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(hours=24)  # for processes that wait for each other: rank 0 may download a set for hours


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def say(message: str) -> None:
    """Print on rank 0, at once."""
    if rank() == 0:
        print(message, flush=True)


def launcher() -> list[str]:
    """The command line's first words: python, or torchrun with its numbers of machines and processes."""
    if size() == 1:
        return ["python"]
    machines, each = os.environ.get("GROUP_WORLD_SIZE", "1"), os.environ.get("LOCAL_WORLD_SIZE", str(size()))
    return ["torchrun", "--nnodes", machines, "--nproc-per-node", each]


def choose_device(name: str | None) -> torch.device:
    """The device of that name; None means CUDA if there is any. ValueError if it cannot be used."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used: {first_line}; leave it out, or take cpu") from None
    return device


@contextmanager
def joined(device: str | None = None) -> Iterator[torch.device]:
    """Join the other processes, if torchrun has started this one, and leave them at the end.

    Yields this process's device, chosen by `choose_device`. Under torchrun each process of a machine gets a
    GPU of its own. NCCL exchanges gradients on CUDA, gloo on CPUs; the hosts' own messages always go by gloo,
    so that no host waits for a GPU.
    """
    where = choose_device(device)
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    if launched and where.type == "cuda":
        where = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(where)
    joins = launched and not dist.is_initialized()  # the caller may have joined already
    if joins:
        dist.init_process_group("cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo", timeout=TIMEOUT)
    yield where
    if joins:
        dist.destroy_process_group()  # left out after an error, because others may be gone: torchrun ends all


def any_of(*flags: bool) -> list[bool]:
    """For each flag whether any process has set it. All processes must call; they wait for each other."""
    if size() == 1:
        return list(flags)
    tensor = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.bool().tolist()


def from_first(decide: Callable[[], Any]) -> Any:
    """The picklable object that `decide` returns on rank 0; if it raises there, ToldByFirst on the others."""
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


class StopRequests:
    """SIGINT and SIGTERM while a run lives; `numbers` lists the signals that have come.

    Inside `heard` the first signal raises KeyboardInterrupt or SystemExit at once. Inside `held` it is noted,
    so that a step can end first, and raised at the end. A second signal of the same kind has its usual
    effect, except under torchrun, which repeats to its processes what the terminal has already sent them.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self._holding = self._listening = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Handle the signals inside; does nothing in a thread other than the main one."""
        if self._listening or threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}

        def note(number: int, _frame: Any) -> None:
            self.numbers.append(number)
            if size() == 1:
                signal.signal(number, before[number])
            if not self._holding and len(self.numbers) == 1:
                self.act()

        self._listening = True
        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            self._listening = False
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Note signals inside; afterwards act on the first, if there was one."""
        with self.heard():
            self._holding = True
            try:
                yield
            finally:
                self._holding = False
        if self.numbers:
            self.act()

    def act(self) -> NoReturn:
        """Raise what the first signal asks for; SystemExit if another process received it."""
        raise KeyboardInterrupt if self.numbers[:1] == [signal.SIGINT] else SystemExit(128 + signal.SIGTERM)


class ToldByFirst(RuntimeError):
    """Raised on ranks > 0 when rank 0 failed; rank 0 reports the reason."""


def first_before_others(work: Callable[[], Any]) -> Any:
    """The result of `work`, done by rank 0 first, so that the others find what it downloaded."""
    done: list[Any] = []
    from_first(lambda: done.append(work()))
    return done[0] if done else work()


def from_all(own: Any) -> list[Any]:
    """The picklable object `own` of every process, in the order of their ranks."""
    if size() == 1:
        return [own]
    answers: list[Any] = [None] * size()
    dist.all_gather_object(answers, own)
    return answers


def mean(tensor: Tensor) -> Tensor:
    """The elementwise mean of a tensor over processes."""
    if size() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / size()


def share(order: Tensor, batch_size: int) -> Tensor:
    """This process's images in an epoch's order, int64 (images,), which is the same in all processes.

    Rank r of w takes images r n/w ... (r + 1) n/w - 1 of each batch of n = `batch_size`, so the batches are
    those of a single process. An incomplete last batch is dropped.
    """
    whole = len(order) // batch_size * batch_size
    return order[:whole].view(-1, size(), batch_size // size())[:, rank()].flatten()


def gather_images(embeddings: Tensor) -> Tensor:
    """Embeddings (d, n, k) of every process as (d, size * n, k), in the order of the batch; differentiable.

    Each process then computes the same loss. The gradient of its own embeddings is the sum over processes,
    `size` times that of one loss; DDP's mean over processes divides by `size` again.
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
