"""Checks that must not make the host wait for the GPU.

Reading one flag from a CUDA tensor stops the host until the device has caught up. `require` instead copies
the flags to pinned memory behind the running work and looks at them during a later call, when they have
arrived. A bad flag therefore stops the run late, but no more than `MAX_PENDING` calls late. What lies between
must not matter: callers turn bad results into NaN, so nothing that was computed from them can pass for sound.
"""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

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
