"""Which sizes of batch, slice, embedding and group fit together, and what to say where they do not."""

from collections.abc import Sequence


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
