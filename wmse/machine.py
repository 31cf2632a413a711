"""What a run meets on this machine: threads, memory, the code's versions, files, and what people type."""

import ctypes
import errno
import hashlib
import math
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch  # which takes a second to import: only functions that are told a device need it

PROFILES = ("smoke", "colab", "paper")
LARGEST_SEED = 2**32 - 1  # of NumPy's generators, from which UMAP draws
# The folders that published data sets unpack to. Each lies in the folder of the data sets.
SET_FOLDERS = ("cifar-10-batches-py", "cifar-100-python", "stl10_binary", "tiny-imagenet-200")
SET_FOLDERS += ("imagenet100", "imagenet")
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

    CUDA: the device becomes the current one, for streams and events; cuDNN times its algorithms and keeps
    the fastest, as in the official code. CPU: torch gets at most as many threads as there are cores to use,
    because one thread too many makes all others wait; where OMP_NUM_THREADS is set, threads stay as they
    are. On Linux, freed blocks of up to 32 MiB stay with the process: clearing their pages anew in each step
    cost a fifth of a step of the slim ResNet-18 on two cores. Keeping larger blocks too would cost a fifth
    more memory at full width.
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
    """An error like `error`, same class and number, whose text names the file, the reason and a remedy."""
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

    Readers see the old file or the new one, also after a power cut. If writing fails, as on a full disk, the
    old file stays, and what was written of the new one is removed.
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


def as_path(typed: str | os.PathLike) -> Path:
    """A path with `~` and variables expanded, without blanks and quotes around it.

    Raises ValueError for an empty path, an address, a variable that is not set, and an unknown user's home.
    """
    text = os.fspath(typed).strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1].strip()
    if not text:
        raise ValueError("the path is empty: name a folder")
    if re.match(r"\w{2,}:/", text) and not os.path.lexists(text):  # Path turns :// into :/
        raise ValueError(f"{text!r} is an address: name a folder of this machine")
    names = [name or braced for name, braced in re.findall(r"\$(?:(\w+)|\{(\w+)\})", text)]
    unset = [name for name in names if name not in os.environ]
    if unset and not os.path.lexists(text):
        raise ValueError(f"the path {text!r} names the variable {unset[0]}, which is not set")
    try:
        return Path(os.path.expandvars(text)).expanduser()
    except RuntimeError as error:
        raise ValueError(f"the path {text!r} begins with a home that is not known: {error}") from None


def data_folder(typed: str | os.PathLike | None = None) -> Path:
    """The folder of the data sets: `typed`, else `$WMSE_DATA`, else "data".

    A data set's own folder, such as cifar-10-batches-py, stands for the folder that holds it.
    """
    folder = as_path(typed or os.environ.get("WMSE_DATA") or "data")
    _check_folder("the folder of the data sets", folder)
    own = folder.resolve()
    holds_sets = any((folder / name).is_dir() for name in SET_FOLDERS)
    return own.parent if own.name in SET_FOLDERS and not holds_sets else folder


def check_seed(seed: int) -> int:
    """The seed as an int; ValueError unless it is a whole number from 0 to 2**32 - 1, as generators need."""
    allowed = f"a whole number from 0 to {LARGEST_SEED} (2**32 - 1)"
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        whole = isinstance(seed, float) and seed.is_integer()
        raise ValueError(f"seed is {seed!r}; give {allowed}" + (f", such as {int(seed)}" if whole else ""))
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed is {seed}; give {allowed}")
    return int(seed)


def check_parameters(profile: str, seed: int, data: str, out: str) -> tuple[str, int, str, str]:
    """The parameters of a chapter, with paths expanded; ValueError, saying what is allowed, if one is bad.

    Args:
        profile: "smoke", "colab" or "paper".
        seed: 0 to 2**32 - 1.
        data: folder of the data sets; "" stands for `$WMSE_DATA`, else "data", and stays "".
        out: folder for the runs.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile is {profile!r}; there are: {', '.join(PROFILES)}")
    for name, value in {"data": data, "out": out}.items():
        if not isinstance(value, str | os.PathLike):
            raise ValueError(f"{name} is {value!r}; give a path in quotes (papermill: -r {name} {value})")
    seed, root = check_seed(seed), data_folder(data)
    try:
        folder = as_path(out)
        _check_folder("out", folder)
    except ValueError as error:
        raise ValueError(f"out is {out!r}: {error}") from None
    return profile, seed, str(root) if data else "", str(folder)


def _check_folder(name: str, folder: Path) -> None:
    """Raise NotADirectoryError if a file stands where `folder` is, or is to be."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise NotADirectoryError(f"{name} is {str(folder)!r}, but {nearest} is no folder: name another")
