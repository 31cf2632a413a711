"""The machine that a run is on: what it is, what it is told before the work, and what memory that took."""

import ctypes
import math
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

CGROUP = Path("/sys/fs/cgroup")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # numbers of glibc's mallopt


def prepare(device: torch.device) -> None:
    """Set this process up for work on a device.

    For CUDA, cuDNN tries its algorithms and keeps the fastest, as the official code lets it. For a CPU, as
    many threads as cores that the process may use (`usable_cores`), never more than torch has set already,
    and left alone where OMP_NUM_THREADS is set: a thread too many waits for the others, and all wait for it.
    And on Linux freed memory stays with the process, but for blocks above 32 MiB. A step frees and takes the
    same gigabyte each time, and each time the kernel would clear every page of it: a fifth of a step of the
    slim ResNet-18 on two cores. Larger blocks go back: kept too, they cost a fifth more memory at full width.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    if device.type != "cpu":
        return
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library than glibc: as it is
        return
    if mallopt(M_MMAP_THRESHOLD, 2**25):  # where it is refused, the other alone would make things worse
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def usable_cores() -> int:
    """CPU cores that this process may use: those it is bound to, within a container's quota; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cores, _quota())))


def _quota() -> float:
    """Cores' worth of time that a control group of Linux grants (version 2, else 1); infinite without one."""
    try:
        if (CGROUP / "cpu.max").exists():
            quota, period = (CGROUP / "cpu.max").read_text().split()
        else:
            quota, period = (
                (CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
            )
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):  # ValueError: "max", no limit
        return math.inf


def describe(device: torch.device) -> dict[str, Any]:
    """Device type, platform, processor, cores and threads; for CUDA also the GPU. For records."""
    processor = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    machine: dict[str, Any] = {
        "device": device.type,
        "platform": platform.platform(terse=True),
        "cpu": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {"gpu": properties.name, "gpu_memory_mb": properties.total_memory // 2**20}
        machine |= {
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return machine


def in_words(machine: dict[str, Any]) -> str:
    """What `describe` found, for a reader: the GPU, or threads and processor."""
    if "gpu" in machine:
        return str(machine["gpu"])
    threads = machine.get("threads")
    count = f"{threads} thread{'s' * (threads != 1)} of " if threads else ""
    return f"{count}{machine.get('cpu') or machine.get('device', 'a machine')}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("wmse", "torchvision", "numpy", "scikit-learn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def peak_memory_mb(device: torch.device) -> float:
    """The most memory this process has held so far in MiB: the GPU's if `device` is one, else the host's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:  # Linux: of this program alone, where the next takes over that of the process which started it
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) / 2**10
    except (OSError, StopIteration):
        import resource  # Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def duration(seconds: float) -> str:
    """A time in words: seconds up to two minutes, minutes up to an hour and a half, then hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
