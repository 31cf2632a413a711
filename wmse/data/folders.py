"""Published data sets that are folders of image files: their files, labels and class names.

Tiny ImageNet is read into memory by `read_images`. ImageNet-100 is too large for that, so its files are
streamed (`wmse.data.streaming`). A folder of the user's own images is read by `wmse.data.own`. Nothing is
downloaded: an error says where to get an absent data set.
"""

import codecs
import os
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from wmse.data.reading import read_rgb, stack_images
from wmse.machine import read_error

Listing = tuple[tuple[str, ...], Tensor, tuple[str, ...]]  # paths, labels int64 (n,), class names

SUFFIXES = (".jpeg", ".jpg", ".png")
# What operating systems and servers leave in folders, besides names that begin with . or @
LEFTOVERS = ("__macosx", "lost+found", "system volume information", "$recycle.bin", "#recycle", "#snapshot")
TINY_ADDRESS = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
AFRESH = f"Unpack the published archive afresh: {TINY_ADDRESS}"

# WordNet ids of the 100 classes of Tian, Krishnan and Isola (2020), one a line, in the order of
# imagenet100.txt of github.com/HobbitLong/CMC.
IMAGENET100 = files("wmse.data").joinpath("imagenet100.txt").read_text("utf-8")


def read_lines(path: Path) -> list[str]:
    """Lines of a text file in UTF-8, in UTF-16 or UTF-32 with a mark, or, with a warning, in Windows-1252.

    Raises ValueError for a file that is no such text, OSError for one that the machine cannot read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise read_error(error, path) from error
    marks = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}  # before UTF-16's: it begins alike
    marks |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    marked = [name for mark, name in marks.items() if content.startswith(mark)]
    text = "\0"
    for encoding in marked[:1] or ["utf-8-sig", "cp1252"]:
        with suppress(UnicodeDecodeError):
            text = content.decode(encoding)
            break
    if "\0" in text:
        raise ValueError(f"{path} is no text in UTF-8: save it as UTF-8, or fetch it afresh")
    if encoding == "cp1252":
        warnings.warn(f"{path} is not in UTF-8; it is read as Windows-1252: save it as UTF-8", stacklevel=2)
    return re.split(r"\r\n|\r|\n", text.removesuffix("\n").removesuffix("\r"))


def read_images(paths: Sequence[str], side: int) -> Tensor:
    """Read images of `side` x `side` pixels: uint8 (n, 3, side, side). ValueError for another size."""

    def read(path: str) -> Image.Image:
        image = read_rgb(path)
        if image.size != (side, side):
            size = "{} x {}".format(*image.size)
            raise ValueError(f"{path} has {size} pixels, not {side} x {side}. {AFRESH}")
        return image

    return stack_images(paths, side, read)


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
    """Sorted ids of the classes: those in wnids.txt, each a folder of train/; without it, all its folders."""
    train, listing = folder / "train", folder / "wnids.txt"
    present = subfolders(train)
    if not present:
        raise FileNotFoundError(
            f"no Tiny ImageNet: {train} is absent or empty. Fetch {TINY_ADDRESS} and unpack it in "
            f"{folder.parent}, so that there is {train}{os.sep}<wnid>{os.sep}images"
        )
    if not listing.is_file():
        return present
    wnids = sorted(set(" ".join(read_lines(listing)).split()))
    absent = sorted(set(wnids) - set(present))
    if absent or not wnids:
        lacking = f"{train} lacks {len(absent)} of the classes in wnids.txt: {a_few(absent)}"
        raise ValueError(f"{lacking if wnids else f'{listing} is empty'}. {AFRESH}")
    _warn_of_others(train, set(present) - set(wnids), "wnids.txt")
    return wnids


def _tiny_val(folder: Path, wnids: list[str]) -> tuple[tuple[str, ...], Tensor]:
    """Paths and labels of the validation images, from val_annotations.txt."""
    val = folder / "val"
    images, listing = val / "images", val / "val_annotations.txt"
    moved = sorted(set(wnids) & set(subfolders(val)))
    if moved:
        raise ValueError(
            f"{val} has been rearranged into folders of classes ({a_few(moved)}), but is read as published, "
            f"from images and val_annotations.txt. {AFRESH}"
        )
    if not listing.is_file():
        raise FileNotFoundError(
            f"{listing} is absent, and only it has the classes of the validation images: val read as folders "
            "of classes would be one class, and accuracy that of chance, about 0.5%. " + AFRESH
        )
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    paths, labels = [], []
    for number, line in enumerate(read_lines(listing), 1):
        name, wnid, *_ = [*line.split("\t"), ""]  # the rest of a line is a bounding box
        if wnid not in label_of:
            raise ValueError(
                f"{listing}, line {number}: {line!r} names no class of {folder / 'train'}. {AFRESH}"
            )
        paths.append(str(images / name))
        labels.append(label_of[wnid])
    present = set(files_in(images))
    missing, unlisted = sorted(set(paths) - present), sorted(present - set(paths))
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(paths)} images in {listing} are missing: {a_few(missing)}. {AFRESH}"
        )
    if unlisted or not paths:
        raise ValueError(
            f"{listing} has {len(paths)} images, not the {len(present)} of {images}: it lacks "
            f"{a_few(unlisted)}. {AFRESH}"
        )
    return tuple(paths), torch.tensor(labels)


def _tiny_names(folder: Path, wnids: list[str]) -> tuple[str, ...]:
    """The first name of each class in words.txt; its id where words.txt does not name it."""
    words = folder / "words.txt"
    lines = read_lines(words) if words.is_file() else []
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
    absent = sorted(set(wnids) - set(subfolders(folder)))
    if absent:
        raise FileNotFoundError(
            f"{folder} lacks {len(absent)} of the 100 classes: {', '.join(absent)}. {layout}"
        )
    if folder == own:
        _warn_of_others(folder, set(subfolders(folder)) - set(wnids), "the list of the 100 classes")
    paths, labels = _train_files([folder / wnid for wnid in wnids], layout, 126_689)
    return paths, labels, tuple(wnids)


def _train_files(folders: list[Path], advice: str, published: int) -> tuple[tuple[str, ...], Tensor]:
    """Paths and labels of the images in folders, one folder per class.

    The classes take turns (the first image of each class, then the second of each), so that the first n
    images are a balanced part of the set. Warns if there are not as many images as were `published`.
    """
    found = [(rank, label, path) for label, f in enumerate(folders) for rank, path in enumerate(files_in(f))]
    empty = sorted({str(f) for f in folders} - {os.path.dirname(path) for _, _, path in found})
    if empty:
        raise FileNotFoundError(
            f"{len(empty)} of {len(folders)} folders of classes hold no images: {a_few(empty)}. {advice}"
        )
    if len(found) != published:  # a warning, because part of a set is enough for trials
        warnings.warn(
            f"{folders[0].parent} holds {len(found):,} images in {len(folders)} classes, and "
            f"the published set {published:,}: scores will not compare. {advice}",
            stacklevel=3,
        )
    found.sort()
    return tuple(path for _, _, path in found), torch.tensor([label for _, label, _ in found])


def files_in(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    """Sorted paths of the images in a folder, links included; an empty list if the folder is absent."""
    if not folder.is_dir():
        return []
    named = [e for e in _entries(folder) if e.name.lower().endswith(suffixes) and not e.is_dir()]
    return sorted(entry.path for entry in named if entry.is_file() or entry.is_symlink())


def subfolders(folder: Path) -> list[str]:
    """Sorted names of the subfolders of a folder; an empty list if the folder is absent."""
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir()) if folder.is_dir() else []


def _entries(folder: Path) -> list[os.DirEntry]:
    """What is in a folder, without what an operating system left there."""
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise read_error(error, folder) from error
    return [e for e in entries if not e.name.startswith((".", "@")) and e.name.lower() not in LEFTOVERS]


def _warn_of_others(folder: Path, others: set[str], listing: str) -> None:
    if others:
        warnings.warn(
            f"{folder} holds {len(others)} folders that {listing} does not name, and which are left out: "
            f"{a_few(sorted(others))}",
            stacklevel=4,
        )


def a_few(names: list[str]) -> str:
    """The first three names, for an error message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
