"""A folder of the user's own images as a data set: flat or a folder per class, any format, mode and size."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from wmse.data.folders import SUFFIXES, Listing, a_few, files_in, subfolders
from wmse.data.reading import read_rgb, stack_images
from wmse.data.sets import Images, ImageSet, stratified_subset
from wmse.data.streaming import StreamedSet
from wmse.machine import as_path
from wmse.views import Triple

OWN_SUFFIXES = (*SUFFIXES, ".webp", ".bmp", ".gif", ".tif", ".tiff")  # read in folders of the user's own
PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}  # of a set: no classes
HELD_OUT = 0.1  # share of the images, of each class, that is kept for evaluation
ORDER_SEED = 2021  # orders the images and so draws the share, once for all runs: no recipe's seed changes it
FEWEST = 20  # images: two are held out, which the measures of collapse need
NEIGHBOURS = 5  # labelled images that k-NN needs
STREAMED_FROM = 224  # pixels; smaller images are held in memory
THUMBNAIL = 32  # pixels at which the statistics of streamed images are computed


def load_own(
    folder: str | Path | None,
    size: int | None,
    device: str | torch.device = "cpu",
    known: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Images], dict[str, Any]]:
    """The splits of a folder of images, by name, and what a record keeps of it.

    Every file is read here, once, so that no damaged one stops a run: it is left out, with a warning. Images
    are turned upright, and scaled and cropped at the centre to `size` x `size` pixels. From 224 pixels on
    they are streamed from their files. A tenth of the images of each class, drawn once for all runs, is the
    split "test". "probe" is the images of "train" that have a class. Without classes all labels are -1 and
    `classes` is empty. The record's facts are `path`, `classes`, `mean`, `std` and, by path from the folder,
    why files are `left_out`.

    Args:
        folder: images, or a folder per class; see `list_own`.
        size: height and width in pixels.
        device: where the sets are put.
        known: `mean` and `std` per channel, as in the record of the run that is evaluated; None: those of the
            split "train".

    Raises:
        FileNotFoundError, ValueError: no folder of images, or too few images to train on and to evaluate.
    """
    if not folder or not size:
        raise ValueError("your own images need a folder and a size in pixels: --data DIR --size 32")
    folder = as_path(folder).absolute()
    paths, labels, classes = list_own(folder)
    streamed = size >= STREAMED_FROM
    side = THUMBNAIL if streamed else size
    left_out: dict[str, str] = {}

    def read(path: str) -> Image.Image:
        try:
            return ImageOps.fit(read_rgb(path, upright=True), (side, side), Image.BICUBIC)
        except (ValueError, FileNotFoundError, PermissionError) as error:
            left_out[path] = str(error)
            return Image.new("RGB", (side, side))

    images = stack_images(paths, side, read)
    sound = torch.tensor([path not in left_out for path in paths])
    if left_out:
        some = "; ".join(sorted(left_out.values())[:3])
        warnings.warn(f"{len(left_out)} of {len(paths)} files are left out: {some}", stacklevel=2)
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(ORDER_SEED))
    order = order[sound[order]]
    if len(order) < FEWEST:
        raise ValueError(
            f"{folder} holds {len(order)} images that can be read, and at least {FEWEST} are needed: add some"
        )
    held_out = stratified_subset(labels[order], HELD_OUT, ORDER_SEED)
    train = order[torch.ones(len(order), dtype=torch.bool).index_fill(0, held_out, False)]
    labelled = int((labels[train] >= 0).sum())
    if classes and labelled < NEIGHBOURS:
        raise ValueError(
            f"{folder} holds {len(classes)} classes, and {labelled} of their images remain to learn from, "
            f"fewer than k-NN's {NEIGHBOURS}: add some, or put all images into one folder without classes"
        )
    mean, std = (known["mean"], known["std"]) if known else _statistics(images[train])
    about = {"name": "folder", "labels": labels, "classes": classes, "mean": mean, "std": std}
    whole: Images = ImageSet(images=images, **about)
    if streamed:
        whole = StreamedSet(paths=paths, **about, resize=size * 8 // 7, crop=size, upright=True)
    learn, test = whole.take(train).to(device), whole.take(order[held_out]).to(device)
    sets = {"train": learn, "probe": learn, "test": test}
    if classes:
        sets |= {"probe": learn.labelled(), "test": test.labelled()}
    facts = {"path": str(folder), "classes": list(classes), "mean": list(mean), "std": list(std)}
    return sets, facts | {
        "left_out": {str(Path(path).relative_to(folder)): why for path, why in left_out.items()}
    }


def list_own(folder: Path) -> Listing:
    """Files of a folder of the user's own: a subfolder is a class, whatever lies deeper in it.

    Classes are sorted; images beside the folders of classes have the label -1. Without two folders that hold
    images there are no classes, and all labels are -1. FileNotFoundError or ValueError, with advice, for a
    folder that is absent or holds no images, and for one that holds parts of a set, such as train and test.
    """
    found = {name: _files_below(folder / name) for name in subfolders(folder)}
    classes = tuple(name for name, paths in found.items() if paths)
    if classes and {name.lower() for name in classes} <= PARTS:
        raise ValueError(
            f"{folder} holds {a_few(list(classes))}: parts of a set, not classes. Name the part to learn "
            f"from, {folder / classes[0]}; a share of it is held out for evaluation"
        )
    paths = files_in(folder, OWN_SUFFIXES)
    labels = [-1] * len(paths)
    for label, name in enumerate(classes):
        paths += found[name]
        labels += [label if len(classes) > 1 else -1] * len(found[name])
    if not paths:
        state = "holds no images" if folder.is_dir() else "is absent, or no folder"
        raise FileNotFoundError(f"{folder} {state}: name one with files in {' '.join(OWN_SUFFIXES)}")
    return tuple(paths), torch.tensor(labels), classes if len(classes) > 1 else ()


def _files_below(folder: Path) -> list[str]:
    """Paths of the user's own images in a folder and in all below it."""
    deeper = [path for name in subfolders(folder) for path in _files_below(folder / name)]
    return [*files_in(folder, OWN_SUFFIXES), *deeper]


def _statistics(images: Tensor) -> tuple[Triple, Triple]:
    """Mean and standard deviation per channel of images uint8 (n, 3, h, w), in units of [0, 1]; std not 0."""
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]).double()
    shares, levels = counts / counts.sum(1, keepdim=True), torch.arange(256).double() / 255
    mean = shares @ levels
    std = (shares @ levels.square() - mean.square()).clamp_min(255**-2).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())
