"""Data sets too large for memory: worker processes read, crop and augment the images of each batch.

Workers use torchvision's transforms on PIL images, as the official code does, with one thread per worker.
They send uint8, a quarter of the bytes of float32; normalisation takes place on the set's device.
"""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.context import BaseContext
from pathlib import Path

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wmse.data.reading import read_rgb
from wmse.machine import usable_cores
from wmse.views import Triple, ViewSettings, normalize_

PIECE = 32  # images per request to a worker: few, so that an epoch starts soon and needs little shared memory
MOST_WORKERS = 16


@dataclass(frozen=True)
class StreamedSet:
    """One split of a data set whose images stay in their files.

    Worker processes import the main module, so a script needs `if __name__ == "__main__":`.
    """

    name: str
    paths: tuple[str, ...] = field(repr=False)
    labels: Tensor  # int64 (n,), on `device`: indices into `classes`; -1 for an image without a label
    classes: tuple[str, ...] = field(repr=False)
    mean: Triple  # per channel, in units of [0, 1]
    std: Triple  # likewise
    device: torch.device = torch.device("cpu")  # of batches and labels
    resize: int = 256  # images without augmentation: length of the shorter side in pixels, then ...
    crop: int = 224  # ... side of the central square in pixels
    workers: int | None = None  # processes; None: one per core, at most 16; 0: no process besides this one
    upright: bool = False  # turn images as their EXIF orientation says

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: str | torch.device) -> "StreamedSet":
        return replace(self, labels=self.labels.to(device), device=torch.device(device))

    def take(self, index: Tensor) -> "StreamedSet":
        """The images of an index, int64 (m,)."""
        return replace(self, paths=tuple(self.paths[i] for i in index.tolist()), labels=self.labels[index])

    def first(self, n: int) -> "StreamedSet":
        """The first n images, or all if there are fewer."""
        return self.take(torch.arange(min(n, len(self)), device=self.device))

    def labelled(self) -> "StreamedSet":
        """The images that have a label."""
        return self.take((self.labels >= 0).nonzero()[:, 0])

    def fingerprint(self) -> str:
        """SHA-256 of labels, class names and paths, each from the folder of its class on; no pixel is read.

        The same list of images has the same digest in another place.
        """
        names = [Path(path).parts[-2:] for path in self.paths]
        return hashlib.sha256(repr((names, self.labels.tolist(), self.classes)).encode()).hexdigest()

    def batches(self, size: int) -> Iterator[Tensor]:
        """All images in order, without augmentation: normalised float32 (b, 3, crop, crop).

        Images are resized by Pillow's bicubic filter and cropped, `size` at a time. Raises as `read_rgb`.
        """
        from torchvision.transforms import v2

        steps = [v2.Resize(self.resize, Image.BICUBIC), v2.CenterCrop(self.crop), v2.PILToTensor()]
        batches = torch.arange(len(self)).split(size) if len(self) else ()
        return (views[0] for views in _stream(self, batches, 1, v2.Compose(steps), seed=0))


def stream_views(
    images: StreamedSet, batches: Sequence[Tensor], d: int, settings: ViewSettings, seed: int
) -> Iterator[Tensor]:
    """Random views of the images of each batch: normalised float32 (d, b, 3, size, size), on their device.

    Args:
        batches: indices of images, int64 (b,) on the CPU, one tensor per batch.
        d: views per image.
        settings: distribution of the views; needs a `size`.
        seed: with the index of an image it determines the image's views. The number of workers and the
            position of the image in the epoch make no difference.

    Raises:
        ValueError: d < 1, settings without a size, or (while iterating) what `read_rgb` raises.
    """
    if d < 1:
        raise ValueError(f"d is {d}; ask for at least one view of each image")
    if settings.size is None:
        raise ValueError("size is None, but streamed images differ in size: give one, such as 224 pixels")
    return _stream(images, batches, d, _augmentation(settings), seed)


def _augmentation(settings: ViewSettings) -> Callable:
    """The paper's augmentations in its order, from a PIL image to uint8 (3, size, size).

    Random numbers come from torch's global generator.
    """
    from torchvision.transforms import v2

    strengths = settings.brightness, settings.contrast, settings.saturation, settings.hue
    low, high = settings.blur_radius
    steps = [
        v2.RandomApply([v2.ColorJitter(*strengths)], p=settings.jitter_probability),
        v2.RandomGrayscale(p=settings.grayscale_probability),
        v2.RandomResizedCrop(settings.size, settings.crop_scale, settings.crop_ratio, Image.BICUBIC),
        v2.RandomHorizontalFlip(p=settings.flip_probability),
        v2.RandomApply([v2.Lambda(partial(_blurred, low=low, high=high))], p=settings.blur_probability),
    ]
    return v2.Compose([*steps, v2.PILToTensor()])


def _blurred(image: Image.Image, low: float, high: float) -> Image.Image:
    """Pillow's Gaussian blur; its standard deviation is uniform in `low` to `high` pixels."""
    return image.filter(ImageFilter.GaussianBlur(torch.empty(()).uniform_(low, high).item()))


@dataclass(frozen=True)
class _Views(Dataset):
    """d views of each image of a piece, uint8 (images, d, 3, h, w), determined by the index and `seed`."""

    paths: tuple[str, ...]
    transform: Callable  # PIL image to uint8 (3, h, w); draws from torch's global generator
    d: int
    seed: int
    upright: bool

    def __getitem__(self, piece: list[int]) -> Tensor | Exception:
        """The views, or why one cannot be made: a worker would raise that with its traceback as the text."""
        try:
            return torch.stack([self._of_image(index) for index in piece])
        except (ValueError, OSError, MemoryError) as error:
            return error

    def _of_image(self, index: int) -> Tensor:
        image = read_rgb(self.paths[index], self.upright)
        digest = hashlib.blake2b(f"{self.seed} {index}".encode(), digest_size=8).digest()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int.from_bytes(digest, "big"))
            return torch.stack([self.transform(image) for _ in range(self.d)])


def _stream(
    images: StreamedSet, batches: Sequence[Tensor], d: int, transform: Callable, seed: int
) -> Iterator[Tensor]:
    """`transform`, applied d times to each image of each batch: normalised float32 (d, b, 3, h, w)."""
    pieces = [piece.tolist() for batch in batches for piece in batch.split(PIECE)]
    made = iter(_loader(_Views(images.paths, transform, d, seed, images.upright), pieces, images))
    for batch in batches:
        parts = [_next(made).to(images.device, non_blocking=True) for _ in batch.split(PIECE)]
        views = torch.cat([part.transpose(0, 1) for part in parts], dim=1)
        yield normalize_(views.float().div_(255), images.mean, images.std)


def _next(made: Iterator[Tensor | Exception]) -> Tensor:
    """The next piece. Raises the error of a worker, and ChildProcessError if a worker died."""
    try:
        piece = next(made)
    except RuntimeError as error:
        dead = any(words in str(error) for words in ("DataLoader worker (", "ancdata", "open files"))
        if not dead or str(error).startswith("Caught"):  # a mistake in this module, which must be seen
            raise
        raise ChildProcessError(
            f"a process that reads images ended: {error} The machine may lack memory, shared memory "
            "(/dev/shm) or open files (ulimit -n)."
        ) from error
    if isinstance(piece, Exception):
        raise piece
    return piece


def _loader(views: _Views, pieces: list[list[int]], images: StreamedSet) -> DataLoader:
    """Loader that yields uint8 (piece, d, 3, h, w) for each piece, made ahead of time by the workers."""
    workers = min(_default_workers() if images.workers is None else images.workers, len(pieces))
    return DataLoader(
        views,
        sampler=pieces,
        batch_size=None,  # a piece is one item
        num_workers=workers,
        pin_memory=images.device.type == "cuda",
        multiprocessing_context=_context() if workers else None,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # without it DataLoader draws a number from the global generator
    )


def _default_workers() -> int:
    """One worker per core, divided among the training processes that torchrun started on this machine."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(MOST_WORKERS, usable_cores() // processes))


def _context() -> BaseContext:
    """Start workers from a fork server: it has no threads, and has already imported what workers need.

    The threads of this process (OpenMP, autograd, CUDA) do not survive a fork, and a lock that one of them
    holds would stay locked in the worker.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torchvision.transforms.v2", "PIL.Image"])
    return context


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C is sent to every process of a terminal. Workers ignore it: the main process first finishes its
    # step, which may need another batch, and then stops them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit when the main process is gone: neither it, if killed, nor the fork server stops the workers."""
    multiprocessing.parent_process().join()
    os._exit(1)
