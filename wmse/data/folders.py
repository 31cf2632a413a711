"""Data sets that are folders of image files: list the files and labels, and read an image.

Tiny ImageNet is read into memory by `read_images`. ImageNet-100 is too large for that, so its files are
streamed (`wmse.data.streaming`). Nothing is downloaded: an error says where to get an absent data set.
"""

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from wmse.machine import usable_cores

Listing = tuple[tuple[str, ...], Tensor, tuple[str, ...]]  # paths, labels int64 (n,), class names

SUFFIXES = (".jpeg", ".jpg", ".png")
BLOCK = 100  # images per task of a reading thread
TINY_ADDRESS = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
AFRESH = f"Unpack the published archive afresh: {TINY_ADDRESS}"

# WordNet ids of the 100 classes of Tian, Krishnan and Isola (2020), one a line, in the order of
# imagenet100.txt of github.com/HobbitLong/CMC.
IMAGENET100 = files("wmse.data").joinpath("imagenet100.txt").read_text()


def read_rgb(path: str) -> Image.Image:
    """Read an image file of any mode as RGB. ValueError if the file is not a complete image."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is no whole image: {error}. Replace it by a sound copy.") from error


def read_images(paths: Sequence[str], side: int) -> Tensor:
    """Read images of `side` x `side` pixels: uint8 (n, 3, side, side). ValueError for an image of other size."""
    images = torch.empty(len(paths), 3, side, side, dtype=torch.uint8)
    levels = images.numpy()

    def read(start: int) -> int:
        block = paths[start : start + BLOCK]
        for row, path in enumerate(block, start):
            image = read_rgb(path)
            if image.size != (side, side):
                size = "{} x {}".format(*image.size)
                raise ValueError(f"{path} has {size} pixels, not {side} x {side}. {AFRESH}")
            levels[row] = np.asarray(image).transpose(2, 0, 1)
        return len(block)

    bar = tqdm(total=len(paths), desc="reading images", unit="images", disable=None)
    with bar, ThreadPoolExecutor(min(16, usable_cores())) as pool:
        for count in pool.map(read, range(0, len(paths), BLOCK)):
            bar.update(count)
    return images


def list_tiny_imagenet(split: str, root: Path) -> Listing:
    """Files of Tiny ImageNet in its published layout, `root`/tiny-imagenet-200: 200 classes, 64 x 64 pixels.

    The split "test" is val/, 10,000 images in the order of val_annotations.txt, which names their classes.
    Any other split is train/, 100,000 images, with the classes taking turns. In every split a label is the
    rank of the class among the sorted folders of train/.

    Raises FileNotFoundError or ValueError, with advice, for a set that is absent or not as published.
    """
    folder = (root / "tiny-imagenet-200").absolute()
    wnids = _tiny_wnids(folder)
    if split == "test":
        paths, labels = _tiny_val(folder, wnids)
    else:
        paths, labels = _train_files([folder / "train" / wnid / "images" for wnid in wnids], AFRESH, 100_000)
    return paths, labels, _tiny_names(folder, wnids)


def _tiny_wnids(folder: Path) -> list[str]:
    """Sorted ids of the classes, the folders of train/; each id in wnids.txt must have one."""
    train, listing = folder / "train", folder / "wnids.txt"
    wnids = _subfolders(train)
    if not wnids:
        raise FileNotFoundError(
            f"no Tiny ImageNet: {train} is absent or empty. Fetch {TINY_ADDRESS} and unpack it in "
            f"{folder.parent}, so that there is {train}{os.sep}<wnid>{os.sep}images"
        )
    absent = sorted(set(listing.read_text().split()) - set(wnids)) if listing.is_file() else []
    if absent:
        raise ValueError(
            f"{train} lacks {len(absent)} of the classes in wnids.txt: {_some(absent)}. {AFRESH}"
        )
    return wnids


def _tiny_val(folder: Path, wnids: list[str]) -> tuple[tuple[str, ...], Tensor]:
    """Paths and labels of the validation images, from val_annotations.txt."""
    val = folder / "val"
    images, listing = val / "images", val / "val_annotations.txt"
    moved = sorted(set(wnids) & set(_subfolders(val)))
    if moved:
        raise ValueError(
            f"{val} has been rearranged into folders of classes ({_some(moved)}), but is read as published, "
            f"from images and val_annotations.txt. {AFRESH}"
        )
    if not listing.is_file():
        raise FileNotFoundError(
            f"{listing} is absent, and only it has the classes of the validation images: val read as folders "
            "of classes would be one class, and accuracy that of chance, about 0.5%. " + AFRESH
        )
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    paths, labels = [], []
    for number, line in enumerate(listing.read_text().splitlines(), 1):
        name, wnid, *_ = [*line.split("\t"), ""]  # the rest of a line is a bounding box
        if wnid not in label_of:
            raise ValueError(
                f"{listing}, line {number}: {line!r} names no class of {folder / 'train'}. {AFRESH}"
            )
        paths.append(str(images / name))
        labels.append(label_of[wnid])
    present = set(_files(images))
    missing, unlisted = sorted(set(paths) - present), sorted(present - set(paths))
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(paths)} images in {listing} are missing: {_some(missing)}. {AFRESH}"
        )
    if unlisted or not paths:
        raise ValueError(
            f"{listing} has {len(paths)} images, not the {len(present)} of {images}: it lacks "
            f"{_some(unlisted)}. {AFRESH}"
        )
    return tuple(paths), torch.tensor(labels)


def _tiny_names(folder: Path, wnids: list[str]) -> tuple[str, ...]:
    """The first name of each class in words.txt; its id where words.txt does not name it."""
    words = folder / "words.txt"
    lines = words.read_text().splitlines() if words.is_file() else []
    names = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return tuple(names.get(wnid, wnid).split(",")[0] for wnid in wnids)


def list_imagenet100(split: str, root: Path) -> Listing:
    """Files of ImageNet-100, of any size: the split "test" is val/, 5,000 images; any other train/, 126,689.

    They are read from `root`/imagenet100/{train,val}/<wnid> or, if there is no such folder, from the same
    layout of the whole of ImageNet in `root`/imagenet, of which only the 100 classes are used. A label is the
    rank of the class among the sorted wnids (WordNet ids), which are also the class names. In both splits
    the classes take turns. Raises FileNotFoundError, naming what is missing.
    """
    part = "val" if split == "test" else "train"
    own, whole = ((root / name / part).absolute() for name in ("imagenet100", "imagenet"))
    folder = own if own.parent.is_dir() else whole
    layout = (
        f"ImageNet-100 is read from {own}{os.sep}<wnid> or, of all of ImageNet, {whole}{os.sep}<wnid>: a "
        "folder a class. ImageNet comes from image-net.org, its validation images without such folders: sort "
        "them."
    )
    if not folder.is_dir():
        raise FileNotFoundError(f"no ImageNet-100: {folder} is absent. {layout}")
    wnids = sorted(IMAGENET100.split())
    absent = sorted(set(wnids) - set(_subfolders(folder)))
    if absent:
        raise FileNotFoundError(
            f"{folder} lacks {len(absent)} of the 100 classes: {', '.join(absent)}. {layout}"
        )
    paths, labels = _train_files([folder / wnid for wnid in wnids], layout, 126_689)
    return paths, labels, tuple(wnids)


def _train_files(folders: list[Path], advice: str, published: int) -> tuple[tuple[str, ...], Tensor]:
    """Paths and labels of the images in folders, one folder per class.

    The classes take turns (the first image of each class, then the second of each), so that the first n
    images are a balanced part of the set. Warns if there are not as many images as were `published`.
    """
    found = [(rank, label, path) for label, f in enumerate(folders) for rank, path in enumerate(_files(f))]
    empty = sorted({str(f) for f in folders} - {os.path.dirname(path) for _, _, path in found})
    if empty:
        raise FileNotFoundError(
            f"{len(empty)} of {len(folders)} folders of classes hold no images: {_some(empty)}. {advice}"
        )
    if len(found) != published:  # a warning, because part of a set is enough for trials
        warnings.warn(
            f"{folders[0].parent} holds {len(found):,} images in {len(folders)} classes, and "
            f"the published set {published:,}: scores will not compare. {advice}",
            stacklevel=3,
        )
    found.sort()
    return tuple(path for _, _, path in found), torch.tensor([label for _, label, _ in found])


def _files(folder: Path) -> list[str]:
    """Sorted paths of the images in a folder; an empty list if the folder is absent."""
    if not folder.is_dir():
        return []
    return sorted(entry.path for entry in os.scandir(folder) if entry.name.lower().endswith(SUFFIXES))


def _subfolders(folder: Path) -> list[str]:
    """Sorted names of the subfolders of a folder; an empty list if the folder is absent."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
