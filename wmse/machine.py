"""What a run runs on: processor, threads and memory of this process; the package's code and its versions."""

import ctypes
import errno
import hashlib
import math
import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch  # which takes a second to import: only functions that are told a device need it

CGROUP = Path("/sys/fs/cgroup")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # numbers of glibc's mallopt
REMEDIES = {  # by the number of an operating system's error
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
    errno.ENFILE: "Too many files are open on the whole machine: end other programs.",
    errno.EACCES: "Give yourself the right to read it.",
    errno.EPERM: "Give yourself the right to read it.",
    errno.ENOENT: "Put it back, or mend the link.",
    errno.EISDIR: "It is a folder: name a file, or move the folder away.",
    errno.ENOTDIR: "A file stands where a folder should be.",
    errno.ENOMEM: "Free memory, or use a machine with more.",
}


def configure_process(device: "torch.device") -> None:
    """Set this process up for work on a device.

    CUDA: the device becomes the current one, whose streams and events are then meant; cuDNN times its
    algorithms and keeps the fastest, as in the official code. CPU: torch gets at most as many threads
    as there are cores to use, because one thread too many makes all others wait; where
    OMP_NUM_THREADS is set, threads stay as they are. On Linux, freed blocks of up to 32 MiB stay with the
    process: clearing their pages anew in each step cost a fifth of a step of the slim ResNet-18 on two cores.
    Keeping larger blocks too would cost a fifth more memory at full width.
    """
    import torch

    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    if device.type != "cpu":
        return
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    with suppress(OSError, AttributeError, TypeError):  # a C library other than glibc has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(M_MMAP_THRESHOLD, 2**25):  # without this limit the next one alone would cost time
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def usable_cores() -> int:
    """CPU cores that this process may use: those it is bound to, within a container's quota; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cores, _quota())))


def _quota() -> float:
    """Cores' worth of time that a control group of Linux grants (version 2, else 1); infinite without one."""
    two, one = CGROUP / "cpu.max", [CGROUP / f"cpu/cpu.cfs_{name}_us" for name in ("quota", "period")]
    try:
        words = two.read_text().split() if two.exists() else [path.read_text() for path in one]
        quota, period = map(int, words)
        return quota / period if quota > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):  # ValueError: "max", no limit
        return math.inf


def describe(device: "torch.device") -> dict[str, Any]:
    """Device type, platform, processor, cores and threads; for CUDA also the GPU. A record's `hardware`."""
    import torch

    processor = platform.processor()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    found = {"device": device.type, "platform": platform.platform(terse=True), "cpu": processor}
    found |= {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        found |= {"gpu": gpu.name, "gpu_memory_mb": gpu.total_memory // 2**20}
        found |= {"compute_capability": f"{gpu.major}.{gpu.minor}", "cuda": torch.version.cuda}
    return found


def hardware_label(hardware: dict[str, Any]) -> str:
    """What `describe` found, for a reader: the GPU, or threads and processor."""
    if "gpu" in hardware:
        return str(hardware["gpu"])
    threads = hardware.get("threads")
    count = f"{threads} thread{'s' * (threads != 1)} of " if threads else ""
    return f"{count}{hardware.get('cpu') or hardware.get('device', 'a machine')}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers."""
    import torch

    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("wmse", "torchvision", "numpy", "scikit-learn"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def package_hash() -> str:
    """SHA-256 over the package's sources: two records with the same one ran the same code."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def git_state() -> dict[str, Any] | None:
    """Commit of the package's checkout and whether the checkout differs from it; None outside of one."""

    def git(*arguments: str) -> str:
        options = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "check": True}
        return subprocess.run(["git", *arguments], timeout=20, **options).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # fails if installed inside somebody else's checkout
        code = [":(top)", ":(top,exclude)results", ":(top,exclude)benchmarks/results"]
        dirty = bool(git("status", "--porcelain", "--", *code))  # what runs leave behind changes no run
        return {"commit": git("rev-parse", "HEAD"), "dirty": dirty}
    except (OSError, subprocess.SubprocessError):
        return None


def read_error(error: OSError, path: str | os.PathLike) -> OSError:
    """A failure of the machine to read a file, in words: file, reason, what to do; same class, same errno."""
    remedy = REMEDIES.get(error.errno, "The file may be sound: check the disk or the network, and try again.")
    return OSError(error.errno, f"{os.fspath(path)} could not be read: {os.strerror(error.errno)}. {remedy}")


def peak_memory_mb(device: "torch.device") -> float:
    """The most memory this process has held so far in MiB: the GPU's if `device` is one, else the host's."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError, StopIteration):  # Linux; getrusage would count the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) / 2**10
    import resource  # Unix only

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def write_whole(path: Path, content: bytes | memoryview, previous: Path | None = None) -> None:
    """Replace a file in one step, and return when the disk has it; the old one becomes `previous`, if given.

    A reader, and whoever comes after a power cut, sees the old file or the new one. If writing fails, as on a
    full disk, the old file stays, and what was written of the new one is removed.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and not error.filename:  # the disk is full
            error.filename = str(path)
        raise
    with suppress(OSError):  # Windows opens no folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name
        finally:
            os.close(folder)


def duration(seconds: float) -> str:
    """A time for a reader: seconds below two minutes, minutes below an hour and a half, then hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
