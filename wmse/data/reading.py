"""Read image files of any mode as RGB, one or many of them in threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from wmse.machine import read_error, usable_cores

BLOCK = 100  # images per task of a reading thread


def read_rgb(path: str, upright: bool = False) -> Image.Image:
    """Read an image file of any mode as RGB. Gray levels of 16 bits are scaled to 8; transparency is dropped.

    upright: turn the image as its EXIF orientation says, which the protocols of published sets do not.

    Raises:
        ValueError: the file is no complete image, or has levels without a known range, or too many pixels.
        OSError: the machine could not read the file: no right to, too many open files, a lost disk, ...
        MemoryError: there is too little memory for the image.
    """
    try:
        with Image.open(path) as image:
            if upright:
                ImageOps.exif_transpose(image, in_place=True)
            rgb = _as_rgb(image)
    except Exception as error:  # decoders fail in as many ways as there are spoilt files
        if isinstance(error, MemoryError) or "out of memory" in str(error):
            raise MemoryError(f"{path} could not be read: too little memory for its pixels") from error
        if isinstance(error, OSError) and error.errno is not None:
            raise read_error(error, path) from error
        if isinstance(error, Image.DecompressionBombError):
            raise ValueError(f"{path} is refused: {error} Shrink the image, or take it away.") from error
        raise ValueError(f"{path} is no whole image: {error}. Replace it by a sound copy.") from error
    if rgb is None:
        raise ValueError(f"{path} has mode {image.mode}, which has no sure form in RGB: save it as 8-bit RGB")
    return rgb


def _as_rgb(image: Image.Image) -> Image.Image | None:
    """The image as RGB, or None if that has no sure meaning. Pillow would clip 16-bit gray levels at 255."""
    gray = image.mode == "I" and image.format in ("PNG", "PPM")  # 16 bits, though the mode is 32-bit integers
    if gray or image.mode.startswith("I;16"):
        levels = (np.asarray(image).astype(np.int64) + 128) // 257
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F", "LAB"):
        return None
    if image.mode == "P":  # by way of RGBA, because Pillow warns of palettes with transparent colours
        image = image.convert("RGBA")
    return image.convert("RGB")


def stack_images(paths: Sequence[str], side: int, read: Callable[[str], Image.Image]) -> Tensor:
    """Images of `side` x `side` pixels, which `read` makes of paths, in threads: uint8 (n, 3, side, side)."""
    images = torch.empty(len(paths), 3, side, side, dtype=torch.uint8)
    levels = images.numpy()

    def fill(start: int) -> int:
        block = paths[start : start + BLOCK]
        for row, path in enumerate(block, start):
            levels[row] = np.asarray(read(path)).transpose(2, 0, 1)
        return len(block)

    bar = tqdm(total=len(paths), desc="reading images", unit="images", disable=None)
    with bar, ThreadPoolExecutor(min(16, usable_cores())) as pool:
        for count in pool.map(fill, range(0, len(paths), BLOCK)):
            bar.update(count)
    return images
