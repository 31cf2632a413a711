"""The dtype of autocast, plain float32 where it is needed, deferred checks, and sizes that losses need."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

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


def loss_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """A scaler of the loss; off on a CPU.

    In float16 it keeps small gradients from vanishing. In the other precisions its factor stays 1. In all of
    them a step whose gradients are not finite changes no weight and no moment, and the host does not wait.
    """
    factor = {} if dtype == torch.float16 else {"init_scale": 1.0, "growth_interval": 2**31 - 1}
    return torch.amp.GradScaler(device.type, enabled=device.type == "cuda", **factor)


_NEW_SETTINGS = hasattr(torch.backends.cuda.matmul, "fp32_precision")  # torch 2.9; before it, allow_tf32
_SETTING, _IEEE = ("fp32_precision", "ieee") if _NEW_SETTINGS else ("allow_tf32", False)
_CUDA, _CPU, _CUDNN = torch.backends.cuda.matmul, torch.backends.mkldnn, torch.backends.cudnn
PRODUCTS = (_CUDA, _CPU.matmul) if _NEW_SETTINGS else (_CUDA,)
CONVOLUTIONS = (_CUDNN.conv,) if _NEW_SETTINGS else (_CUDNN,)


def float32_products(device: torch.device) -> AbstractContextManager:
    """A context in which matrix products of float32 are computed in float32: autocast and TF32 are off.

    It costs nothing where both are off already. While code is compiled, only autocast is turned off.
    """
    if not torch.compiler.is_compiling():
        if any(getattr(owner, _SETTING) not in ("none", _IEEE) for owner in PRODUCTS):
            return float32_arithmetic(device)
    autocast = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if autocast else nullcontext()


@contextmanager
def float32_arithmetic(device: torch.device | str) -> Iterator[None]:
    """Turn autocast and TF32 off inside, for matrix products and convolutions, and restore both afterwards.

    It sets torch's newer `fp32_precision` where there is one, and restores what turned TF32 on: that setting,
    `allow_tf32` or `torch.set_float32_matmul_precision`.
    """
    owners = (*PRODUCTS, *CONVOLUTIONS)
    before = [getattr(owner, _SETTING) for owner in owners]
    try:
        for owner in owners:
            setattr(owner, _SETTING, _IEEE)
        with torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        for owner, value in zip(owners, before, strict=True):
            setattr(owner, _SETTING, value)


def at_least_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator: tensor arguments become at least float32 (float64 stays), and autocast is off inside."""

    @functools.wraps(function)
    def wrapped(*arguments, **options) -> Tensor:
        arguments = [_promoted(value) for value in arguments]
        options = {name: _promoted(value) for name, value in options.items()}
        tensors = [value for value in (*arguments, *options.values()) if isinstance(value, Tensor)]
        with float32_products(tensors[0].device if tensors else torch.device("cpu")):
            return function(*arguments, **options)

    return wrapped


def _promoted(value):
    return value.to(torch.promote_types(value.dtype, torch.float32)) if isinstance(value, Tensor) else value


MAX_REFUSED = 5  # steps in a row without an update, after which a run on a GPU stops


class Checks:
    """Checks that are deferred so that the host does not wait for a GPU; a run enters them in every step.

    Inside `with checks:` `require` raises nothing. It ANDs its flags in place into a tensor on the device,
    one tensor for each check; checks are told apart by their order in a step. `count` counts the steps that
    were refused. `look` reads both, where the host waits anyway.

    deferred: False lets `require` raise at once, as it does outside.
    """

    def __init__(self, deferred: bool = True):
        self.deferred = deferred
        # int64 (4,): steps refused: all, in this epoch, in a row until now, most in a row since the last look
        self.counts: Tensor | None = None
        self._flags: list[Tensor] = []  # by check: False where it has failed since the last look
        self._explain: list[Callable[[Tensor], Exception]] = []
        self._next = 0

    def __enter__(self) -> "Checks":
        self._next = 0
        self._token = _active.set(self if self.deferred else None)
        return self

    def __exit__(self, *_) -> None:
        _active.reset(self._token)

    def note(self, ok: Tensor, explain: Callable[[Tensor], Exception]) -> None:
        """AND the flags of this step's next check into its flags of earlier steps."""
        if self._next == len(self._flags):
            self._flags.append(torch.ones_like(ok))
            self._explain.append(explain)
        self._flags[self._next] &= ok
        self._explain[self._next] = explain
        self._next += 1

    def count(self, ok: Tensor) -> None:
        """Count a step; `ok`, a bool scalar, says whether it could be taken."""
        if not self.deferred:
            return
        if self.counts is None:
            self.counts = torch.zeros(4, dtype=torch.int64, device=ok.device)
        refused, (_, _, in_a_row, most) = ~ok, self.counts.unbind()
        self.counts[:2] += refused
        in_a_row.add_(1).mul_(refused)
        torch.maximum(most, in_a_row, out=most)

    @property
    def refused(self) -> tuple[int, int]:
        """Steps refused in all, and in this epoch. The host waits for the device."""
        return (0, 0) if self.counts is None else tuple(self.counts[:2].tolist())

    def start_epoch(self) -> None:
        if self.counts is not None:
            self.counts[1] = 0

    def look(self) -> None:
        """Raise for the first check that failed since the last look.

        Where steps are counted, fewer than `MAX_REFUSED` refused steps in a row raise nothing. The host waits
        for the device: call this where the host waits anyway, and before anything is saved.
        """
        stop = True
        if self.counts is not None:
            stop = int(self.counts[3]) >= MAX_REFUSED
            self.counts[3] = 0
        for flags, explain in zip(self._flags, self._explain, strict=True):
            if stop and not bool(flags.all()):
                raise explain(flags.cpu())
            flags.fill_(True)


_active: ContextVar[Checks | None] = ContextVar("checks", default=None)


def require(ok: Tensor, explain: Callable[[Tensor], Exception]) -> None:
    """Raise `explain(ok)` unless every element of `ok` is true: at once, or inside `with checks:` at `look`.

    Args:
        ok: bool tensor of any shape and device. On CUDA the host waits for it, unless checks are deferred.
        explain: builds the exception from the flags. It is called only on failure, so it may be slow.
    """
    if checks := _active.get():
        checks.note(ok, explain)
    elif ok.is_cuda and torch.cuda.is_current_stream_capturing():
        return  # a captured graph replays without Python: whoever captures it defers the checks
    elif not bool(ok.all()):
        raise explain(ok)


def all_finite(x: Tensor) -> Tensor:
    """A bool scalar on the device of `x`: no element is NaN or infinite."""
    return x.detach().abs().amax() < math.inf  # false for NaN; fewer launches than with isfinite


def deferred() -> bool:
    """Whether `require` defers. Its `explain` must then not hold on to the values of one step."""
    return _active.get() is not None


def refuse_second_derivative(name: str) -> None:
    """RuntimeError where autograd records a backward pass in closed form: its derivative would be wrong."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(f"{name} has no second derivative: call autograd without create_graph=True")


def check_sizes(n: int, k: int, slice_size: int, iterations: int = 1) -> None:
    """Raise ValueError for sizes that `w_mse_loss` cannot work with, naming the nearest that do."""
    if slice_size <= k:
        raise ValueError(
            f"slice_size = {slice_size} is not more than k = {k}: a slice's covariance would be singular. "
            f"The least that works is {k + 1}; 2k = {2 * k} is advised."
        )
    _check_slices(n, slice_size, iterations, range(k + 1, n + 1))


def check_channel_sizes(n: int, k: int, slice_size: int, groups: int, iterations: int = 1) -> None:
    """Raise ValueError for sizes that `cw_rgp_loss` cannot work with, naming the nearest that do."""
    if groups < 1 or k % groups:
        nearest = _around([size for size in range(1, k + 1) if k % size == 0], groups)
        raise ValueError(
            f"k = {k} channels cannot be dealt into {groups} groups. Nearest that work: {nearest}."
        )
    if k // groups <= slice_size:
        raise ValueError(
            f"a group of k / groups = {k // groups} channels is not larger than slice_size = {slice_size}: "
            f"its covariance between images would be singular. Use slices of {k // groups - 1} images at "
            f"most ({k // groups // 2} is advised), fewer groups or a larger k."
        )
    _check_slices(n, slice_size, iterations, range(1, min(n, k // groups - 1) + 1))


def check_pairs(d: int) -> None:
    """Raise ValueError for fewer than two views."""
    if d < 2:
        raise ValueError(f"d = {d} positives make no pair: at least 2 views of an image are needed")


def _check_slices(n: int, slice_size: int, iterations: int, allowed: range) -> None:
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1; got {iterations}")
    if slice_size < 1 or n == 0 or n % slice_size:
        batches = _around(range(slice_size, n + 2 * slice_size, slice_size), n) if slice_size > 0 else "none"
        slices = _around([size for size in allowed if n % size == 0], slice_size)
        raise ValueError(
            f"n = {n} images are not a multiple of slice_size = {slice_size}. "
            f"Nearest batches that work: {batches} images. Nearest slice sizes for n = {n}: {slices}."
        )


def _around(sizes: Sequence[int], size: int) -> str:
    """The nearest of ascending `sizes` on either side of `size`, for a message."""
    nearest = [*[s for s in sizes if s < size][-1:], *[s for s in sizes if s > size][:1]]
    return " or ".join(map(str, nearest)) or "none"
