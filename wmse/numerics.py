"""The dtype of autocast, float32 inside autocast, and checks that do not make the host wait."""

import functools
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast for a recipe's `precision`; float32 means none.

    "auto" takes bfloat16 where the hardware computes in it: CUDA from compute capability 8 on (torch's own
    `is_bf16_supported` also counts emulation), and CPUs with AVX512-BF16 or AMX. Older GPUs get float16,
    whose small range needs loss scaling. All else gets float32.

    Raises:
        ValueError: an unknown name, or float16 on a CPU.
    """
    if name == "float16" and device.type == "cpu":
        raise ValueError("float16 needs a GPU: take bfloat16, float32 or auto on a CPU")
    if name in PRECISIONS:
        return PRECISIONS[name]
    if name != "auto":
        raise ValueError(f"unknown precision {name!r}; there are: auto, {', '.join(PRECISIONS)}")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    queries = ("_is_avx512_bf16_supported", "_is_amx_tile_supported") if device.type == "cpu" else ()
    native = any(getattr(torch.cpu, query, bool)() for query in queries)
    return torch.bfloat16 if native else torch.float32


def without_autocast(device: torch.device) -> AbstractContextManager:
    """A context in which autocast is off on `device`; it costs nothing where autocast is off already."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def at_least_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator: tensor arguments become at least float32 (float64 stays), and autocast is off inside."""

    @functools.wraps(function)
    def wrapped(*arguments, **options) -> Tensor:
        arguments = [_promoted(value) for value in arguments]
        options = {name: _promoted(value) for name, value in options.items()}
        tensors = [value for value in (*arguments, *options.values()) if isinstance(value, Tensor)]
        with without_autocast(tensors[0].device if tensors else torch.device("cpu")):
            return function(*arguments, **options)

    return wrapped


def _promoted(value):
    return value.to(torch.promote_types(value.dtype, torch.float32)) if isinstance(value, Tensor) else value


MAX_PENDING = 8

_pending: deque[tuple[torch.cuda.Event, Tensor, Callable[[Tensor], Exception]]] = deque()


def require(ok: Tensor, explain: Callable[[Tensor], Exception]) -> None:
    """Raise `explain(ok)` unless every element of `ok` is true: on the CPU now, on CUDA a few calls later.

    Args:
        ok: bool tensor of any shape and device.
        explain: builds the exception from the flags (on the CPU); it is called only on failure, so it may
            be slow, and it keeps alive what it refers to until the flags have been seen.
    """
    if not ok.is_cuda:
        if not bool(ok.all()):
            raise explain(ok)
        return
    if torch.cuda.is_current_stream_capturing():
        return  # a captured graph replays without Python; the callers' NaN is then the only guard
    settle(wait=False)
    flags = torch.empty(ok.shape, dtype=torch.bool, pin_memory=True)
    flags.copy_(ok, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    _pending.append((event, flags, explain))


def settle(wait: bool = True) -> None:
    """Look at the flags that have arrived and raise for the first bad one.

    With `wait`, wait for all of them first: do so wherever the host waits anyway (the end of an epoch, before
    a checkpoint), so that nothing unsound is ever saved.
    """
    while _pending:
        event, flags, explain = _pending[0]
        if wait or len(_pending) >= MAX_PENDING:
            event.synchronize()
        elif not event.query():
            return
        _pending.popleft()
        if not bool(flags.all()):
            _pending.clear()
            raise explain(flags)


def refuse_second_derivative(name: str) -> None:
    """RuntimeError if autograd records a closed-form backward, whose own derivative it would get wrong."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(f"{name} has no second derivative: call autograd without create_graph=True")
