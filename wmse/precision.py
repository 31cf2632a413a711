"""Which number format networks compute in, chosen by what the hardware does natively; losses take float32."""

import functools
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
    if name == "auto":
        return _native(device)
    if name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}; there are: auto, {', '.join(PRECISIONS)}")
    if name == "float16" and device.type == "cpu":
        raise ValueError("float16 needs a GPU: take bfloat16, float32 or auto on a CPU")
    return PRECISIONS[name]


def _native(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16
    if device.type == "cpu" and any(
        getattr(torch.cpu, query, bool)() for query in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ):
        return torch.bfloat16
    return torch.float32


def without_autocast(device: torch.device) -> AbstractContextManager:
    """A context in which autocast is off on `device`; where it is off already, one that takes no time."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def at_least_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator: the function's tensors come as float32 (float64 stays), and autocast is off inside."""

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
