"""Streamed sets: their batches and views, which depend on nothing but the seed and the image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode, v2

from wmse.data import ImageSet, view_batches
from wmse.data import streaming as streams
from wmse.data.streaming import StreamedSet
from wmse.views import ViewSettings

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # leave [0, 1] as it is
NOTHING = ViewSettings(
    jitter_probability=0,
    grayscale_probability=0,
    crop_scale=(1, 1),
    crop_ratio=(1, 1),
    flip_probability=0,
    size=32,
)
BUSY = ViewSettings(0.8, 0.8, 0.8, 0.2, crop_scale=(0.08, 1), blur_probability=0.5, size=24)


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> tuple[str, ...]:
    """Smooth JPEGs of several sizes, the third in gray, made once."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.RandomState(0)
    for i in range(10):
        levels = rng.randint(0, 256, (6, 6, 3)).astype(np.uint8)
        image = Image.fromarray(levels).resize((40 + 3 * i, 60 - 2 * i), Image.Resampling.BICUBIC)
        image.convert("L" if i == 2 else "RGB").save(folder / f"{i}.JPEG", quality=95)
    return tuple(str(folder / f"{i}.JPEG") for i in range(10))


@pytest.fixture(scope="module")
def square(tmp_path_factory) -> tuple[str, ...]:
    """PNGs of noise, 32 x 32, made once."""
    folder, rng = tmp_path_factory.mktemp("square"), np.random.RandomState(0)
    for i in range(6):
        Image.fromarray(rng.randint(0, 256, (32, 32, 3)).astype(np.uint8)).save(folder / f"{i}.png")
    return tuple(str(folder / f"{i}.png") for i in range(6))


def streamed(paths, workers=0, **changes) -> StreamedSet:
    usual = {"labels": torch.arange(len(paths)) % 3, "classes": ("a", "b", "c"), "mean": MEAN, "std": STD}
    return StreamedSet("test", paths, workers=workers, **usual | changes)


def levels_of(path: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)


def views_of(images, order=None, d=2, batch_size=5, settings=BUSY, **options) -> torch.Tensor:
    """Views of an epoch, batches one after another: (d, n, 3, h, w)."""
    order = torch.arange(len(images)) if order is None else order
    return torch.cat([v for v, _ in view_batches(images, order, d, batch_size, settings, **options)], dim=1)


# --- the set and its un-augmented images ----------------------------------------------------------


def test_first_labelled_and_to(paths):
    images = streamed(paths, labels=torch.tensor([0, -1, 2, 1, -1, 0, 0, 0, 0, 0]))
    assert len(images) == 10 and len(images.first(4)) == 4 and len(images.first(99)) == 10
    labelled = images.first(5).labelled()
    assert labelled.paths == (paths[0], paths[2], paths[3]) and labelled.labels.tolist() == [0, 2, 1]
    moved = images.to("meta")
    assert moved.device == torch.device("meta") and moved.labels.device.type == "meta"


def test_batches_are_pillows_resize_and_central_crop(paths):
    images = streamed(paths, resize=32, crop=28)
    batches = list(images.batches(4))
    assert [tuple(batch.shape) for batch in batches] == [(4, 3, 28, 28), (4, 3, 28, 28), (2, 3, 28, 28)]
    assert all(batch.dtype == torch.float32 for batch in batches)
    steps = [v2.Resize(32, InterpolationMode.BICUBIC), v2.CenterCrop(28), v2.PILToTensor()]
    for path, ours in zip(paths, torch.cat(batches), strict=True):
        levels = v2.Compose(steps)(Image.open(path).convert("RGB"))
        expected = v2.functional.normalize(levels / 255, MEAN, STD)
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_default_geometry_is_imagenets(paths):
    assert next(iter(streamed(paths).first(1).batches(8))).shape == (1, 3, 224, 224)


def test_batches_are_those_of_the_same_set_in_memory(square):
    images = streamed(square, resize=32, crop=32)
    levels = torch.stack([levels_of(path) for path in square])
    memory = ImageSet("test", levels, images.labels, images.classes, MEAN, STD)
    pairs = list(zip(images.batches(4), memory.batches(4), strict=True))
    assert len(pairs) == 2 and all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_batches_of_no_images_are_none(paths):
    assert list(streamed(paths).first(0).batches(4)) == []


# --- views ----------------------------------------------------------------------------------------


def test_views_come_with_their_labels_in_the_order_given(paths):
    order = torch.tensor([7, 3, 1, 0, 9, 2, 4])
    batches = list(view_batches(streamed(paths), order, 3, 3, BUSY))
    assert len(batches) == 2  # the seventh image makes no batch
    for (views, labels), index in zip(batches, order[:6].split(3), strict=True):
        assert views.shape == (3, 3, 3, 24, 24) and views.dtype == torch.float32 and views.is_contiguous()
        assert labels.tolist() == (index % 3).tolist() and labels.dtype == torch.int64


def test_views_without_augmentation_are_the_images(square):
    views = views_of(streamed(square, **RAW), batch_size=6, settings=NOTHING)
    expected = torch.stack([levels_of(path) for path in square]) / 255
    torch.testing.assert_close(views, expected.expand(2, -1, -1, -1, -1), atol=1e-6, rtol=0)
    normalised = views_of(streamed(square), batch_size=6, settings=NOTHING)
    torch.testing.assert_close(normalised[0], v2.functional.normalize(expected, MEAN, STD))


def test_same_seed_same_views_and_another_seed_others(paths):
    images = streamed(paths)
    first, again, other = (views_of(images, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert (first != other).flatten(2).any(-1).all()  # every view
    assert len(first.flatten(0, 1).flatten(1).unique(dim=0)) == 20


def test_views_do_not_depend_on_workers_pieces_batches_or_place(paths, monkeypatch):
    expected = views_of(streamed(paths))
    for workers in (1, 2):
        assert torch.equal(views_of(streamed(paths, workers)), expected)
    order = torch.tensor([9, 1, 8, 2, 7, 3, 6, 4])
    monkeypatch.setattr(streams, "PIECE", 3)
    assert torch.equal(views_of(streamed(paths, 2), order, batch_size=4), expected[:, order])


def test_views_do_not_depend_on_where_the_epoch_starts(paths):
    images = streamed(paths)
    assert torch.equal(views_of(images, batch_size=2, start=3), views_of(images, batch_size=2)[:, 6:])
    assert not list(view_batches(images, torch.arange(10), 2, 2, BUSY, start=5))


def test_global_random_numbers_are_left_alone(paths):
    before = torch.random.get_rng_state()
    for workers in (0, 1):
        views_of(streamed(paths, workers))
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        expected = views_of(streamed(paths))
        torch.manual_seed(99)
        assert torch.equal(views_of(streamed(paths)), expected)


def test_an_epoch_may_be_left_in_the_middle(paths):
    batches = view_batches(streamed(paths, 2), torch.arange(10), 2, 2, BUSY)
    next(batches)
    del batches
    assert views_of(streamed(paths, 2)).shape[1] == 10


# --- settings -------------------------------------------------------------------------------------


def changed(settings: ViewSettings, **changes) -> ViewSettings:
    return ViewSettings(**{**vars(settings), **changes})


def test_flip_and_grayscale(square):
    plain = views_of(streamed(square), batch_size=6, settings=NOTHING)
    flipped = views_of(streamed(square), batch_size=6, settings=changed(NOTHING, flip_probability=1))
    assert torch.equal(flipped, plain.flip(-1))
    gray = views_of(streamed(square, **RAW), batch_size=6, settings=changed(NOTHING, grayscale_probability=1))
    assert torch.equal(gray[:, :, 0], gray[:, :, 1]) and torch.equal(gray[:, :, 0], gray[:, :, 2])
    assert gray.std() > 0.1


@pytest.mark.parametrize("operation", ["brightness", "contrast", "saturation", "hue"])
def test_jitter_is_of_the_operation_asked_for(square, operation):
    still = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0) | {"jitter_probability": 1}
    plain = views_of(streamed(square), batch_size=6, settings=NOTHING)
    none, one = (
        views_of(streamed(square), batch_size=6, settings=changed(NOTHING, **still | strength))
        for strength in ({}, {operation: 0.4})
    )
    assert torch.equal(none, plain)
    assert (one != plain).flatten(2).any(-1).all()


def test_crops_have_the_scale_asked_for(tmp_path):
    """Of a ramp from black at the left to white at the right, a crop of a quarter spans half the levels."""
    ramp = np.broadcast_to(np.arange(0, 256, 2, dtype=np.uint8)[None, :, None], (128, 128, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "ramp.png")
    images = streamed((str(tmp_path / "ramp.png"),), **RAW)
    settings = changed(NOTHING, crop_scale=(0.25, 0.25), size=64)
    rows = views_of(images, d=40, batch_size=1, settings=settings)[:, 0, 0, 32]
    spans = (rows[:, -1] - rows[:, 0]) * 255
    assert (spans - 126).abs().max() < 4 and len(rows[:, 0].unique()) > 10


def test_blur_is_pillows_with_a_radius_in_its_range(square):
    settings = changed(NOTHING, blur_probability=1, blur_radius=(1.5, 1.5))
    views = views_of(streamed(square, **RAW), batch_size=6, settings=settings)
    for path, view in zip(square, views[0], strict=True):
        blurred = Image.open(path).convert("RGB").filter(ImageFilter.GaussianBlur(1.5))
        expected = torch.from_numpy(np.asarray(blurred).copy()).permute(2, 0, 1) / 255
        torch.testing.assert_close(view, expected, atol=1e-6, rtol=0)
    one = streamed(square, **RAW).first(1)
    wide = views_of(one, d=60, batch_size=1, settings=changed(settings, blur_radius=(0.1, 2.0)))
    spread = wide.std((1, 2, 3, 4))  # falls as the blur widens
    assert spread.max() > 1.8 * spread.min() and len(spread.unique()) > 30


def test_probabilities_are_honoured(square):
    one = streamed(square, **RAW).first(1)
    plain = views_of(one, d=1, batch_size=1, settings=NOTHING)
    for name in ("jitter_probability", "grayscale_probability", "flip_probability", "blur_probability"):
        views = views_of(one, d=200, batch_size=1, settings=changed(NOTHING, **{name: 0.3}))
        share = (views != plain).flatten(1).any(-1).float().mean()
        assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 200) ** 0.5, name


# --- refusals, workers ----------------------------------------------------------------------------


def test_wrong_requests_are_refused(paths):
    images, order = streamed(paths), torch.arange(10)
    with pytest.raises(ValueError, match="size is None"):
        view_batches(images, order, 2, 5, ViewSettings())
    with pytest.raises(ValueError, match="d is 0"):
        view_batches(images, order, 0, 5, BUSY)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_file_is_named(paths, tmp_path, workers):
    broken = tmp_path / "broken.JPEG"
    broken.write_bytes(Path(paths[0]).read_bytes()[:400])
    images = streamed((paths[1], str(broken)), workers)
    with pytest.raises(ValueError, match="broken.JPEG is no whole image"):
        views_of(images, batch_size=2)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_worker_meets_is_told_in_its_one_sentence(paths, tmp_path, workers):
    (tmp_path / "folder.JPEG").mkdir()
    (tmp_path / "broken.JPEG").write_bytes(b"no image")
    for name, kind in {
        "folder.JPEG": IsADirectoryError,
        "gone.JPEG": FileNotFoundError,
        "broken.JPEG": ValueError,
    }.items():
        path = str(tmp_path / name)
        with pytest.raises(kind) as told:
            views_of(streamed((paths[1], path), workers), batch_size=2)
        assert type(told.value) is kind and path in str(told.value)
        assert "\n" not in str(told.value) and "Traceback" not in str(told.value)


def end_worker(_image) -> torch.Tensor:
    """In place of a view: the worker is killed, as by a system out of memory."""
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_told_in_a_sentence(paths):
    made = streams._stream(streamed(paths, 1), [torch.arange(2)], 1, end_worker, 0)
    with pytest.raises(ChildProcessError, match="a process that reads images ended: .*may lack memory"):
        next(made)


def test_number_of_workers(monkeypatch):
    monkeypatch.setattr(streams, "usable_cores", lambda: 64)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert streams._default_workers() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert streams._default_workers() == 8
    monkeypatch.setattr(streams, "usable_cores", lambda: 2)
    assert streams._default_workers() == 1


def worker_state(_image) -> torch.Tensor:
    """In place of a view: this process's number of threads, and whether it ignores Ctrl-C."""
    import signal

    return torch.tensor([torch.get_num_threads(), signal.getsignal(signal.SIGINT) == signal.SIG_IGN])


def test_workers_have_one_thread_and_ignore_interrupts_though_the_parent_used_threads(paths):
    torch.rand(512, 512) @ torch.rand(512, 512)
    loader = streams._loader(streams._Views(paths, worker_state, 1, 0, False), [[0], [1]], streamed(paths, 2))
    assert [piece.flatten().tolist() for piece in loader] == [[1, 1], [1, 1]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_gives_the_cpus_views(paths):
    views, labels = next(view_batches(streamed(paths, 2).to("cuda"), torch.arange(10), 2, 5, BUSY))
    assert views.is_cuda and labels.is_cuda
    torch.testing.assert_close(views.cpu(), views_of(streamed(paths))[:, :5], atol=1e-5, rtol=0)
