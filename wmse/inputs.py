"""What people type, checked before anything is done: paths, seeds, chapter parameters, sizes of a loss."""

import os
import re
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path

PROFILES = ("smoke", "colab", "paper")
LARGEST_SEED = 2**32 - 1  # of NumPy's generators, from which UMAP draws
# The folders that published data sets unpack to. Each lies in the folder of the data sets.
SET_FOLDERS = ("cifar-10-batches-py", "cifar-100-python", "stl10_binary", "tiny-imagenet-200")
SET_FOLDERS += ("imagenet100", "imagenet")


def as_path(typed: str | os.PathLike) -> Path:
    """A path as it is meant: `~` and variables expanded, without the blanks and quotes around it.

    Raises ValueError for an empty path, an address, a variable that is not set, and the home of nobody.
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
    """The seed, if it is a whole number from 0 to 2**32 - 1, which all generators take; else ValueError."""
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


def check_sizes(d: int, n: int, k: int, slice_size: int, iterations: int = 1) -> None:
    """Raise ValueError for sizes that `w_mse_loss` cannot work with, naming the nearest that do."""
    if slice_size <= k:
        raise ValueError(
            f"slice_size = {slice_size} is not more than k = {k}: a slice's covariance would be singular. "
            f"The least that works is {k + 1}; 2k = {2 * k} is advised."
        )
    _check_slices(d, n, slice_size, iterations, range(k + 1, n + 1))


def check_channel_sizes(d: int, n: int, k: int, slice_size: int, groups: int, iterations: int = 1) -> None:
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
    _check_slices(d, n, slice_size, iterations, range(1, min(n, k // groups - 1) + 1))


def check_pairs(d: int) -> None:
    """Raise ValueError for fewer than two views."""
    if d < 2:
        raise ValueError(f"d = {d} positives make no pair: at least 2 views of an image are needed")


def _check_slices(d: int, n: int, slice_size: int, iterations: int, allowed: range) -> None:
    check_pairs(d)
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
