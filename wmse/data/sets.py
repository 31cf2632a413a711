"""Image sets, with labels and the statistics that normalise them: in memory, or streamed from files.

`digits` is made offline from what scikit-learn ships. `cifar10`, `cifar100` and `stl10` are read in
torchvision's layouts and downloaded if absent; `tiny-imagenet` and `imagenet100` are folders of files
(`wmse.data.folders`), and the last is too large for memory, so it is streamed (`wmse.data.streaming`).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wmse.data.digits import draw_digits
from wmse.data.downloads import restore
from wmse.data.folders import list_imagenet100, list_tiny_imagenet, read_images
from wmse.data.streaming import StreamedSet, stream_views
from wmse.views import Triple, ViewSettings, make_views, normalise_

SPLITS = ("train", "probe", "test")
OWN_PROBE = ("stl10",)  # sets whose probe split is not their train split

# Mean and standard deviation of each channel, in units of [0, 1], as in the paper's code.
STATISTICS: dict[str, tuple[Triple, Triple]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "stl10": ((0.43, 0.42, 0.39), (0.27, 0.26, 0.27)),
    "tiny-imagenet": ((0.480, 0.448, 0.398), (0.277, 0.269, 0.282)),
    "imagenet100": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_SLOW = "The publisher's server has been slow since mid-2026: this may take 40 minutes."
PATIENCE = {"cifar10": _SLOW, "cifar100": _SLOW, "stl10": "It is 2.6 GB, and 3.2 GB more when unpacked."}


@dataclass(frozen=True)
class ImageSet:
    """One split of a data set, wholly in memory.

    images: uint8 (n, 3, h, w); labels: int64 (n,), indices into `classes`, -1 where there is none;
    mean, std: a channel each, in units of [0, 1], always those of the training split.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: Triple
    std: Triple

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        return self.images.device

    def to(self, device: str | torch.device) -> "ImageSet":
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def first(self, n: int) -> "ImageSet":
        """The first n images, or all if there are fewer: a copy, which frees the rest."""
        return replace(self, images=self.images[:n].clone(), labels=self.labels[:n].clone())

    def labelled(self) -> "ImageSet":
        """The images that have a label; this very set if all have."""
        labelled = self.labels >= 0
        if bool(labelled.all()):
            return self
        return replace(self, images=self.images[labelled], labels=self.labels[labelled])

    def normalised(self, index=None) -> Tensor:
        """Images (all, or those of `index`) without augmentation: float32 (m, 3, h, w)."""
        images = self.images if index is None else self.images[index]
        return normalise_(images.float().div_(255), self.mean, self.std)

    def batches(self, size: int) -> Iterator[Tensor]:
        """All images in order, un-augmented: normalised float32 (b, 3, h, w); the last may be fewer."""
        return (self.normalised(slice(start, start + size)) for start in range(0, len(self), size))


def load(
    name: str,
    split: str,
    root: str | Path | None = None,
    device: str | torch.device = "cpu",
    limit: int | None = None,
    mirror: str | None = None,
) -> ImageSet | StreamedSet:
    """A split of the set `name`, on `device`; with `limit`, its first images only.

    "train" is what an encoder learns from, "probe" the labelled images on which classifiers are trained, and
    "test" those they are tested on. Probe is train, but in STL-10: its train is larger images, and 100,000
    without labels besides.

    root: the folder of data, in the published layouts; None means `$WMSE_DATA`, else "data".
    mirror: base address for downloads; None means `$WMSE_MIRROR`, else the publisher's.
    Raises ValueError for an unknown name or split or a limit outside 1 to the split's size,
    `wmse.data.downloads.DownloadError` for a set that is absent and cannot be had, and FileNotFoundError or
    ValueError for a folder of files that is absent or not as published.
    """
    if name not in SETS:
        raise ValueError(f"unknown data set {name!r}; there are: {', '.join(SETS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are: {', '.join(SPLITS)}")
    images = SETS[name](name, split, Path(root or os.environ.get("WMSE_DATA") or "data"), mirror)
    if limit is not None:
        if not 0 < limit <= len(images):
            raise ValueError(f"limit is {limit}, not within 1 to {len(images)}, the size of {name} {split}")
        images = images.first(limit)
    return images.to(device)


def view_batches(
    images: ImageSet | StreamedSet,
    order: Tensor,
    d: int,
    batch_size: int,
    settings: ViewSettings,
    generator: torch.Generator | None = None,
    start: int = 0,
    seed: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Views and labels of the whole batches of an epoch: float32 (d, b, 3, h, w), normalised, and int64 (b,).

    Both are on the images' device. Views in memory are drawn when their batch is asked for, so `generator`'s
    state then is all that decides them; streamed views are made ahead.

    Args:
        order: int64 (m,), indices of images, in the order of the epoch; an incomplete last batch is dropped.
        settings: what views are drawn from; streamed views need its `size`, others must not blur.
        generator: of views in memory; the global one if None.
        start: number of the first batch to make, for an epoch that was interrupted.
        seed: of streamed views: with an image's index it decides them, so give each epoch another.

    Raises:
        ValueError: d or batch_size < 1, start < 0, or settings that do not suit the set.
    """
    if batch_size < 1 or start < 0:
        raise ValueError(f"batch_size is {batch_size}, start {start}; give at least 1 and 0")
    streamed = isinstance(images, StreamedSet)
    order = order.to("cpu" if streamed else images.device)
    numbers = range(start, len(order) // batch_size)
    batches = [order[number * batch_size : (number + 1) * batch_size] for number in numbers]
    if streamed:
        views = stream_views(images, batches, d, settings, seed)
    else:
        statistics = images.mean, images.std
        views = (make_views(images.images[index], d, *statistics, settings, generator) for index in batches)
    labels = (images.labels[index.to(images.device, non_blocking=True)] for index in batches)
    return zip(views, labels, strict=True)


def _digits(name: str, split: str, *_) -> ImageSet:
    train = draw_digits("train")[0]
    pixels = train.transpose(1, 0, 2, 3).reshape(3, -1) / np.float32(255)
    images, labels = draw_digits("test" if split == "test" else "train")
    return ImageSet(
        name=name,
        images=torch.from_numpy(images.copy()),
        labels=torch.from_numpy(labels.copy()),
        classes=tuple("0123456789"),
        mean=tuple(pixels.mean(1, dtype=np.float64).tolist()),
        std=tuple(pixels.std(1, dtype=np.float64).tolist()),
    )


def _cifar(name: str, split: str, root: Path, mirror: str | None) -> ImageSet:
    """CIFAR-10 or CIFAR-100 with its fine labels (Krizhevsky, 2009): 50,000 and 10,000 images of 32 px."""
    source = _checked(name, root, mirror, train=split != "test")
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet(name, images, torch.tensor(source.targets), tuple(source.classes), *STATISTICS[name])


def _stl10(name: str, split: str, root: Path, mirror: str | None) -> ImageSet:
    """STL-10 (Coates, Ng and Lee, 2011).

    "train" is 105,000 images of 96 px, 2.9 GB: 5,000 with labels, then 100,000 without. "probe", those 5,000,
    and "test", 8,000, are resized to 70 px and cropped to 64 at the centre, as the official code does.
    """
    part = "test" if split == "test" else "train"
    source = _checked(name, root, mirror, split=part)
    labels = torch.from_numpy(source.labels.astype(np.int64))
    if split == "train":
        path = root / source.base_folder / source.train_list[2][0]
        # Mapped from the file, where columns come before rows, so that the set is in memory only once.
        unlabelled = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
        images = torch.cat([torch.from_numpy(source.data), unlabelled.view(-1, 3, 96, 96).mT])
        labels = torch.cat([labels, labels.new_full((len(images) - len(labels),), -1)])
    else:
        images = _resized_and_cropped(source.data, 70, 64)
    return ImageSet(name, images, labels, STL10_CLASSES, *STATISTICS[name])


def _resized_and_cropped(images: np.ndarray, size: int, crop: int) -> Tensor:
    """Square images uint8 (n, 3, h, h), by Pillow's bicubic filter: uint8 (n, 3, crop, crop)."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    pictures = (F.to_pil_image(torch.from_numpy(image)) for image in images)
    resized = (F.resize(picture, [size], InterpolationMode.BICUBIC) for picture in pictures)
    return torch.stack([F.pil_to_tensor(F.center_crop(picture, [crop])) for picture in resized])


def _checked(name: str, root: Path, mirror: str | None, **options):
    """torchvision's set under `root`, the MD5 of every file checked; restored if it is absent or damaged."""
    from torchvision import datasets

    source = getattr(datasets, name.upper())
    try:
        return source(root, **options)
    except RuntimeError:  # a file is absent or damaged
        restore(source, root, mirror, PATIENCE[name])
        return source(root, **options)


def _tiny_imagenet(name: str, split: str, root: Path, *_) -> ImageSet:
    """Tiny ImageNet (Stanford's CS231n, 2015): 100,000 and 10,000 images of 64 px, decoded at each load."""
    paths, labels, classes = list_tiny_imagenet(split, root)
    return ImageSet(name, read_images(paths, 64), labels, classes, *STATISTICS[name])


def _imagenet100(name: str, split: str, root: Path, *_) -> StreamedSet:
    """ImageNet-100 (Tian, Krishnan and Isola, 2020): 100 classes of ImageNet, streamed at 224 px."""
    paths, labels, classes = list_imagenet100(split, root)
    return StreamedSet(name, paths, labels, classes, *STATISTICS[name])


SETS = {"digits": _digits, "cifar10": _cifar, "cifar100": _cifar, "stl10": _stl10}
SETS |= {"tiny-imagenet": _tiny_imagenet, "imagenet100": _imagenet100}
