"""Sets too large for memory: images are read, cut and augmented by worker processes, batch by batch.

Workers send uint8, a quarter of float32's bytes, and the set's device normalises. Pillow does the work, as in
the official code: one thread a worker, the same levels on every machine.
"""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.context import BaseContext

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wmse.data.folders import read_rgb
from wmse.machine import usable_cores
from wmse.views import Triple, ViewSettings, normalise_

PIECE = 32  # images a worker makes at a time: small, so that an epoch starts soon and little memory is shared
MOST_WORKERS = 16


@dataclass(frozen=True)
class StreamedSet:
    """One split of a data set whose images stay in their files.

    Its workers import the main module, so a script that streams needs `if __name__ == "__main__":`.
    """

    name: str
    paths: tuple[str, ...] = field(repr=False)
    labels: Tensor  # int64 (n,), on `device`: indices into `classes`, -1 where there is none
    classes: tuple[str, ...] = field(repr=False)
    mean: Triple  # a channel each, in units of [0, 1]
    std: Triple
    device: torch.device = torch.device("cpu")  # where batches and labels are
    resize: int = 256  # un-augmented images: pixels of the shorter side, then ...
    crop: int = 224  # ... pixels of the side of the square at the centre
    workers: int | None = (
        None  # processes; None for the cores there are, 16 at most; 0 for this process alone
    )

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: str | torch.device) -> "StreamedSet":
        return replace(self, labels=self.labels.to(device), device=torch.device(device))

    def first(self, n: int) -> "StreamedSet":
        """The first n images, or all if there are fewer."""
        return replace(self, paths=self.paths[:n], labels=self.labels[:n].clone())

    def labelled(self) -> "StreamedSet":
        """The images that have a label."""
        index = (self.labels >= 0).nonzero()[:, 0]
        return replace(self, paths=tuple(self.paths[i] for i in index.tolist()), labels=self.labels[index])

    def batches(self, size: int) -> Iterator[Tensor]:
        """All images in order, un-augmented: normalised float32 (b, 3, crop, crop); the last may be fewer.

        Resized by Pillow's bicubic filter and cropped. ValueError for a file that is no whole image.
        """
        from torchvision.transforms import InterpolationMode, v2

        bicubic = InterpolationMode.BICUBIC
        steps = [v2.Resize(self.resize, bicubic), v2.CenterCrop(self.crop), v2.PILToTensor()]
        batches = torch.arange(len(self)).split(size) if len(self) else ()
        return (views[0] for views in _stream(self, batches, 1, v2.Compose(steps), seed=0))


def stream_views(
    images: StreamedSet, batches: Sequence[Tensor], d: int, settings: ViewSettings, seed: int
) -> Iterator[Tensor]:
    """d random views of the images of each batch: normalised float32 (d, b, 3, size, size), on their device.

    Args:
        batches: for each, int64 indices (b,) of images, on the CPU.
        settings: what views are drawn from; needs a `size`.
        seed: with an image's index it decides its views, whichever process makes them and in which place.

    Raises:
        ValueError: d < 1, settings without a size, or, on the way, a file that is no whole image.
    """
    if d < 1:
        raise ValueError(f"d is {d}; ask for at least one view of each image")
    if settings.size is None:
        raise ValueError(
            "size is None, but streamed images differ in size: give views one, such as 224 pixels"
        )
    return _stream(images, batches, d, _augmentation(settings), seed)


def _augmentation(settings: ViewSettings) -> Callable:
    """The paper's views in its order: PIL image in, uint8 (3, size, size) out, by the global generator."""
    from torchvision.transforms import InterpolationMode, v2

    strengths = settings.brightness, settings.contrast, settings.saturation, settings.hue
    bicubic = InterpolationMode.BICUBIC
    return v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(*strengths)], p=settings.jitter_probability),
            v2.RandomGrayscale(p=settings.grayscale_probability),
            v2.RandomResizedCrop(settings.size, settings.crop_scale, settings.crop_ratio, bicubic),
            v2.RandomHorizontalFlip(p=settings.flip_probability),
            v2.RandomApply([v2.Lambda(_Blur(*settings.blur_radius))], p=settings.blur_probability),
            v2.PILToTensor(),
        ]
    )


@dataclass(frozen=True)
class _Blur:
    """Pillow's Gaussian blur by a random standard deviation, `low` to `high` pixels, of a PIL image."""

    low: float
    high: float

    def __call__(self, image):
        from PIL import ImageFilter

        radius = torch.empty(()).uniform_(self.low, self.high).item()
        return image.filter(ImageFilter.GaussianBlur(radius))


@dataclass(frozen=True)
class _Views(Dataset):
    """Item i: d views of image i, uint8 (d, 3, h, w), which depend on i and the seed alone."""

    paths: tuple[str, ...]
    transform: Callable  # PIL image in, uint8 (3, h, w) out, random by torch's global generator
    d: int
    seed: int

    def __getitem__(self, index: int) -> Tensor:
        image = read_rgb(self.paths[index])
        digest = hashlib.blake2b(f"{self.seed} {index}".encode(), digest_size=8).digest()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int.from_bytes(digest, "big"))
            return torch.stack([self.transform(image) for _ in range(self.d)])


def _stream(
    images: StreamedSet, batches: Sequence[Tensor], d: int, transform: Callable, seed: int
) -> Iterator[Tensor]:
    """For each batch of indices, `transform` of its images d times: normalised float32 (d, b, 3, h, w)."""
    pieces = [piece.tolist() for batch in batches for piece in batch.split(PIECE)]
    made = iter(_loader(_Views(images.paths, transform, d, seed), pieces, images))
    for batch in batches:
        parts = [next(made).to(images.device, non_blocking=True) for _ in batch.split(PIECE)]
        views = torch.cat([part.transpose(0, 1) for part in parts], dim=1)
        yield normalise_(views.float().div_(255), images.mean, images.std)


def _loader(views: _Views, pieces: list[list[int]], images: StreamedSet) -> DataLoader:
    """A tensor for each piece, uint8 (piece, d, 3, h, w), made ahead by the workers."""
    workers = min(_default_workers() if images.workers is None else images.workers, len(pieces))
    return DataLoader(
        views,
        batch_sampler=pieces,
        num_workers=workers,
        pin_memory=images.device.type == "cuda",
        multiprocessing_context=_context() if workers else None,
        worker_init_fn=_start_worker if workers else None,
        generator=torch.Generator(),  # else it would draw a number from the global one
    )


def _default_workers() -> int:
    """One for each core, shared among the training processes of this machine (torchrun's count)."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(MOST_WORKERS, usable_cores() // processes))


def _context() -> BaseContext:
    """How workers start: forked, but not from this process.

    Its threads (OpenMP's, autograd's, CUDA's) do not survive a fork, and a lock that one of them held would
    stay shut. A server without threads is forked instead, which has imported all that workers need.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torchvision.transforms.v2", "PIL.Image"])
    return context


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C reaches every process of a terminal. The main one ends its step, which may need a batch yet, and
    # then stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed main process stops nobody, and the server that forked this one does not notice either."""
    multiprocessing.parent_process().join()
    os._exit(1)
