"""Image sets, with labels and the statistics that normalise them: in memory, or streamed from files.

`digits` is made offline from what scikit-learn ships. `cifar10`, `cifar100` and `stl10` are read in
torchvision's layouts and downloaded if absent; `tiny-imagenet` and `imagenet100` are folders of files
(`wmse.folders`), and the last is too large for memory, so it is streamed (`wmse.streams`).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wmse.downloads import restore
from wmse.folders import list_imagenet100, list_tiny_imagenet, read_images
from wmse.streams import StreamedSet, stream_views
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

# The embedded set `digits`. These constants govern how hard it is.
DIGITS_SEED = 0
DIGITS_COUNT = {"train": 2048, "test": 2048}  # images, of 1,437 and 360 handwritten digits
TEST_DIGITS = 0.2  # share of the handwritten digits kept for the test split
TEST_COLUMNS = 0.25  # share of each photograph, at its right edge, kept for test backgrounds
DIGIT_SIDE = (22.0, 32.0)  # side of the digit's 8x8 grid in pixels of the 32x32 image, uniform
DIGIT_OVERHANG = 2.0  # pixels by which the grid may leave the image; its outermost cells are mostly empty
DIGIT_SHARPNESS = 1.6  # slope of the ink's edges; 1 leaves the bilinear enlargement as it is
DIGIT_INK = (0.1, 1.0)  # strength of the ink in each channel, uniform, 1 being a difference of 255 levels
BACKGROUND_SHRINK = 8  # the photographs are shrunk by this whole factor, so that a crop sees more of them
BACKGROUND_SIDE = 2  # side of a crop of the shrunk photographs in pixels; enlarged to 32, so out of focus
BACKGROUND_CONTRAST = 0.35  # background levels are multiplied by this, so that strong ink stays visible


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
    `wmse.downloads.DownloadError` for a set that is absent and cannot be had, and FileNotFoundError or
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
    train = _draw_digits("train")[0]
    pixels = train.transpose(1, 0, 2, 3).reshape(3, -1) / np.float32(255)
    images, labels = _draw_digits("test" if split == "test" else "train")
    return ImageSet(
        name=name,
        images=torch.from_numpy(images.copy()),
        labels=torch.from_numpy(labels.copy()),
        classes=tuple("0123456789"),
        mean=tuple(pixels.mean(1, dtype=np.float64).tolist()),
        std=tuple(pixels.std(1, dtype=np.float64).tolist()),
    )


@lru_cache
def _draw_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits over photographs, |background - ink|: images uint8 (n, 3, 32, 32), labels (n,).

    The recipe of MNIST-M (Ganin et al., JMLR 17(59), 2016) with the 1,797 digits of 8x8 pixels and the two
    photographs that scikit-learn ships; here the ink has a random colour and the photographs are dim and out
    of focus, so that the digit tells images apart better than its background does. Splits share neither
    digits nor background pixels.
    """
    from sklearn.datasets import load_digits, load_sample_images
    from sklearn.model_selection import train_test_split

    count, test = DIGITS_COUNT[split], split == "test"
    rng = np.random.RandomState(DIGITS_SEED + test)  # numpy guarantees this generator's stream for good
    digits, targets = load_digits(return_X_y=True)
    share = train_test_split(
        np.arange(len(digits)), test_size=TEST_DIGITS, stratify=targets, random_state=DIGITS_SEED
    )[test]
    digits, targets = digits[share].reshape(-1, 8, 8) / 16, targets[share]
    chosen = np.resize(rng.permutation(len(digits)), count)

    side = rng.uniform(*DIGIT_SIDE, count)
    room = (32 - side + 2 * DIGIT_OVERHANG)[:, None]
    corner = rng.uniform(size=(count, 2)) * room - DIGIT_OVERHANG  # top and left edge, pixels
    rows, columns = (_enlarge(8, edge[:, None], side[:, None]) for edge in corner.T)
    ink = rows @ digits[chosen] @ columns.transpose(0, 2, 1)
    ink = np.clip(0.5 + DIGIT_SHARPNESS * (ink - 0.5), 0, 1) * 255
    ink = ink[:, None] * rng.uniform(*DIGIT_INK, (count, 3, 1, 1))

    photographs = np.stack([_shrink(image, BACKGROUND_SHRINK) for image in load_sample_images().images])
    border = round(photographs.shape[2] * (1 - TEST_COLUMNS))
    photographs = photographs[:, :, border:] if test else photographs[:, :, :border]
    crops = np.lib.stride_tricks.sliding_window_view(photographs, (BACKGROUND_SIDE,) * 2, axis=(1, 2))
    crops = crops[tuple(rng.randint(0, n, count) for n in crops.shape[:3])]  # (n, 3, side, side)
    sharp = _enlarge(BACKGROUND_SIDE, 0, 32)
    sharp /= sharp.sum(1, keepdims=True)  # carry the outermost pixels on to the border
    background = sharp @ crops @ sharp.T
    images = np.abs(background * BACKGROUND_CONTRAST - ink)
    return np.rint(images).astype(np.uint8), targets[chosen].astype(np.int64)


def _enlarge(cells: int, edge, side) -> np.ndarray:
    """Bilinear weights (..., 32, cells) that stretch cells over `side` pixels from `edge` on, else zero."""
    position = (np.arange(32) + 0.5 - edge) / side * cells - 0.5
    return np.clip(1 - np.abs(position[..., None] - np.arange(cells)), 0, None)


def _shrink(photograph: np.ndarray, factor: int) -> np.ndarray:
    """Means of factor x factor blocks: (h, w, 3) to (h // factor, w // factor, 3), float64."""
    h, w = (size // factor for size in photograph.shape[:2])
    return photograph[: h * factor, : w * factor].reshape(h, factor, w, factor, 3).mean((1, 3))


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
