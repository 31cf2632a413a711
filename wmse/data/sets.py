"""`load` a data set by name, and draw random views of its batches with `view_batches`.

`digits` is made from images that scikit-learn ships, without a download. `cifar10`, `cifar100` and `stl10`
are read in torchvision's layouts and downloaded if absent. `tiny-imagenet` and `imagenet100` are folders of
image files (`wmse.data.folders`). ImageNet-100 is too large for memory and is streamed
(`wmse.data.streaming`); the other sets are held in memory.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wmse.data.digits import draw_digits
from wmse.data.downloads import restore
from wmse.data.folders import list_imagenet100, list_tiny_imagenet, read_images
from wmse.data.streaming import StreamedSet, stream_views
from wmse.machine import data_folder, read_error
from wmse.views import Triple, ViewSettings, make_views, normalize_

SPLITS = ("train", "probe", "test")
OWN_PROBE = ("stl10",)  # sets whose probe split differs from their train split
# Sets whose train split is not in memory, or not all labelled
NO_VALIDATION = (*OWN_PROBE, "imagenet100", "folder")
VALIDATION_SEED = 2007  # draws the validation images, once for all runs: no recipe's seed changes them

# (mean, standard deviation) of the red, green and blue channels in units of [0, 1], as in the official code.
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
    """One split of a data set, all of it in memory."""

    name: str
    images: Tensor  # uint8 (n, 3, h, w)
    labels: Tensor  # int64 (n,), indices into `classes`; -1 for an image without a label
    classes: tuple[str, ...]
    mean: Triple  # per channel, in units of [0, 1]; those of the training split, in every split
    std: Triple  # likewise

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        return self.images.device

    def to(self, device: str | torch.device) -> "ImageSet":
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def take(self, index: Tensor) -> "ImageSet":
        """The images of an index, int64 (m,), as a copy."""
        return replace(self, images=self.images[index], labels=self.labels[index])

    def first(self, n: int) -> "ImageSet":
        """The first n images, or all if there are fewer, as a copy: the whole set's memory can be freed."""
        return self.take(torch.arange(min(n, len(self)), device=self.device))

    def labelled(self) -> "ImageSet":
        """The images that have a label; `self`, not a copy, if all have one."""
        index = self.labels >= 0
        return self if index.all() else self.take(index.nonzero()[:, 0])

    def fingerprint(self) -> str:
        """SHA-256 of all pixels, labels and class names."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.classes)).encode())
        for part in (*self.images.split(4096), self.labels):
            digest.update(part.cpu().contiguous().numpy())
        return digest.hexdigest()

    def normalized(self, index=None) -> Tensor:
        """Normalised images without augmentation, all or those of `index`: float32 (m, 3, h, w)."""
        images = self.images if index is None else self.images[index]
        return normalize_(images.float().div_(255), self.mean, self.std)

    def batches(self, size: int) -> Iterator[Tensor]:
        """All images in order, `size` at a time, without augmentation: normalised float32 (b, 3, h, w)."""
        return (self.normalized(slice(start, start + size)) for start in range(0, len(self), size))


Images = ImageSet | StreamedSet


def load(
    name: str,
    split: str,
    root: str | Path | None = None,
    device: str | torch.device = "cpu",
    limit: int | None = None,
    mirror: str | None = None,
) -> Images:
    """One split of a data set.

    The encoder learns from "train"; classifiers learn from "probe" and are tested on "test". The probe and
    train splits are the same images, except in STL-10, whose train split has larger images, and 100,000 more
    without labels.

    Args:
        name: a key of `SETS`.
        split: "train", "probe" or "test".
        root: the folder of data sets, each in its published layout, or the set's own folder in it; None:
            `$WMSE_DATA`, else "data".
        device: where the set is put.
        limit: take only the first images, 1 to the size of the split.
        mirror: base address for downloads; None: `$WMSE_MIRROR`, else the publisher's.

    Raises:
        ValueError: an unknown name or split, a limit out of range, or image files that are not as published.
        FileNotFoundError: a folder of image files that is absent.
        OSError: files that the machine cannot read.
        wmse.data.downloads.DownloadError: a set that is absent and could not be downloaded.
    """
    if name not in SETS:
        raise ValueError(f"unknown data set {name!r}; there are: {', '.join(SETS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are: {', '.join(SPLITS)}")
    images = SETS[name](name, split, data_folder(root), mirror)
    if limit is not None:
        if not 0 < limit <= len(images):
            raise ValueError(f"limit is {limit}, not within 1 to {len(images)}, the size of {name} {split}")
        images = images.first(limit)
    return images.to(device)


def load_validation(
    name: str, root: str | Path | None = None, device: str | torch.device = "cpu"
) -> tuple[ImageSet, ImageSet]:
    """The train split in two: images to learn from, and a tenth kept aside to choose settings on.

    The tenth is 5,000 of CIFAR's 50,000 images. It is drawn without regard to class, and is the same on every
    machine. Both parts keep the order of the split. Arguments and errors are those of `load`; also ValueError
    for `NO_VALIDATION`.
    """
    if name in NO_VALIDATION:
        raise ValueError(f"{name} has no validation split, so its runs are scored on test: no --validate")
    images = load(name, "train", root, device)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(VALIDATION_SEED))
    aside = round(len(images) / 10)
    learn, score = (part.sort().values.to(images.device) for part in (order[aside:], order[:aside]))
    return images.take(learn), images.take(score)


def stratified_subset(labels: Tensor, share: float, seed: int = 0) -> Tensor:
    """Indices, ascending int64, of a share of each class in labels (n,), rounded, but one image at least.

    Each class gives the first of its images in one random order of all images, drawn by the seed. So a subset
    of smaller share lies within one of larger share.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = labels.cpu()[order]
    members = [order[shuffled == label] for label in shuffled.unique()]
    chosen = [part[: max(1, round(share * len(part)))] for part in members]
    return torch.cat(chosen).sort().values.to(labels.device)


def view_batches(
    images: Images,
    order: Tensor,
    d: int,
    batch_size: int,
    settings: ViewSettings,
    generator: torch.Generator | None = None,
    start: int = 0,
    seed: int = 0,
    compiled: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Random views and labels, batch by batch, of one epoch.

    An incomplete last batch is dropped. Views of images in memory are drawn from `generator` when their batch
    is requested, so the generator's state at that moment determines them. Streamed views are made ahead of
    time, and are determined by `seed` and the index of the image.

    Args:
        order: int64 (m,), indices of images in the order of the epoch.
        d: views per image.
        settings: distribution of the views; streamed sets need its `size`, sets in memory allow no blur.
        generator: for images in memory; None: the global generator of their device.
        start: index of the first batch to make, to continue an interrupted epoch.
        seed: for streamed sets; should differ between epochs.
        compiled: for images in memory, as in `make_views`.

    Yields:
        Views, normalised float32 (d, batch_size, 3, h, w), and labels, int64 (batch_size,), on the images'
        device.

    Raises:
        ValueError: d or batch_size < 1, start < 0, or settings that do not suit the set.
    """
    if batch_size < 1 or start < 0:
        raise ValueError(f"batch_size is {batch_size}, start {start}; give at least 1 and 0")
    streamed = isinstance(images, StreamedSet)
    order = order.to("cpu" if streamed else images.device)
    batches = order.split(batch_size)[start : len(order) // batch_size]
    if streamed:
        views = stream_views(images, batches, d, settings, seed)
    else:
        how = d, images.mean, images.std, settings, generator, compiled
        views = (make_views(images.images[index], *how) for index in batches)
    labels = (images.labels[index.to(images.device, non_blocking=True)] for index in batches)
    return zip(views, labels, strict=True)


def _digits(name: str, split: str, *_) -> ImageSet:
    train = draw_digits("train")[0].transpose(1, 0, 2, 3).reshape(3, -1) / np.float32(255)
    mean, std = (tuple(of(1, dtype=np.float64).tolist()) for of in (train.mean, train.std))
    images, labels = map(torch.tensor, draw_digits("test" if split == "test" else "train"))  # copies
    return ImageSet(name, images, labels, tuple("0123456789"), mean, std)


def _cifar(name: str, split: str, root: Path, mirror: str | None) -> ImageSet:
    """CIFAR-10 or CIFAR-100 with its fine labels (Krizhevsky, 2009): 50,000 and 10,000 images of 32 px."""
    source = _checked(name, root, mirror, train=split != "test")
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet(name, images, torch.tensor(source.targets), tuple(source.classes), *STATISTICS[name])


def _stl10(name: str, split: str, root: Path, mirror: str | None) -> ImageSet:
    """STL-10 (Coates, Ng and Lee, 2011).

    "train" has 105,000 images of 96 px, 2.9 GB: 5,000 with labels, then 100,000 without. "probe" has the
    5,000 with labels, "test" 8,000; both are resized to 70 px and cropped to the central 64, as in the
    official code.
    """
    part = "test" if split == "test" else "train"
    source = _checked(name, root, mirror, split=part)
    labels = torch.from_numpy(source.labels.astype(np.int64))
    if split == "train":
        path = root / source.base_folder / source.train_list[2][0]
        # The file is mapped, so that its images are copied to memory once. It stores columns before rows.
        unlabelled = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
        images = torch.cat([torch.from_numpy(source.data), unlabelled.view(-1, 3, 96, 96).mT])
        labels = torch.cat([labels, labels.new_full((len(images) - len(labels),), -1)])
    else:
        images = _resized_and_cropped(source.data, 70, 64)
    return ImageSet(name, images, labels, STL10_CLASSES, *STATISTICS[name])


def _resized_and_cropped(images: np.ndarray, size: int, crop: int) -> Tensor:
    """Resize square images uint8 (n, 3, h, h) by Pillow's bicubic filter, then crop their centre."""
    from torchvision.transforms import v2

    steps = [v2.ToPILImage(), v2.Resize(size, Image.BICUBIC), v2.CenterCrop(crop), v2.PILToTensor()]
    return torch.stack([v2.Compose(steps)(torch.from_numpy(image)) for image in images])


def _checked(name: str, root: Path, mirror: str | None, **options):
    """torchvision's data set under `root`; downloaded if a file is absent or its MD5 sum is wrong."""
    from torchvision import datasets

    source = getattr(datasets, name.upper())
    folder = root / source.base_folder
    if not folder.exists() and (root / source.train_list[0][0]).is_file():
        raise ValueError(
            f"{root} holds the files of {name} itself: rename it to {source.base_folder}, or move them into "
            f"{folder}"
        )
    try:
        if folder.is_dir():
            next(folder.iterdir(), None)  # torchvision takes a folder that it may not read for an absent one
        return source(root, **options)
    except OSError as error:
        raise error if error.errno is None else read_error(error, error.filename or folder) from error
    except RuntimeError:  # torchvision: "Dataset not found or corrupted"
        restore(source, root, mirror, PATIENCE[name])
        return source(root, **options)


def _tiny_imagenet(name: str, split: str, root: Path, *_) -> ImageSet:
    """Tiny ImageNet (Stanford's CS231n, 2015): 100,000 and 10,000 images of 64 px."""
    paths, labels, classes = list_tiny_imagenet(split, root)
    return ImageSet(name, read_images(paths, 64), labels, classes, *STATISTICS[name])


def _imagenet100(name: str, split: str, root: Path, *_) -> StreamedSet:
    """ImageNet-100 (Tian, Krishnan and Isola, 2020): 100 classes of ImageNet, streamed at 224 px."""
    paths, labels, classes = list_imagenet100(split, root)
    return StreamedSet(name, paths, labels, classes, *STATISTICS[name])


SETS = {"digits": _digits, "cifar10": _cifar, "cifar100": _cifar, "stl10": _stl10}
SETS |= {"tiny-imagenet": _tiny_imagenet, "imagenet100": _imagenet100}
