"""The image sets: what `digits` is made of, layouts of CIFAR and STL-10, downloads over a poor network."""

import errno
import hashlib
import io
import os
import pickle
import tarfile
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, STL10

from wmse import data
from wmse.data import digits, downloads
from wmse.data.downloads import DownloadError, fetch
from wmse.views import ViewSettings, make_views

# --- digits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_digits_are_uint8_images_with_balanced_labels(split):
    images = data.load("digits", split)
    n = digits.DIGITS_COUNT[split]
    assert len(images) == n and images.images.shape == (n, 3, 32, 32) and images.labels.shape == (n,)
    assert images.images.dtype == torch.uint8 and images.labels.dtype == torch.int64
    assert images.classes == tuple("0123456789")
    share = torch.bincount(images.labels, minlength=10) / n
    assert share.min() > 0.09 and share.max() < 0.11


def test_digits_are_the_same_each_time():
    once, again = digits.draw_digits.__wrapped__("test"), digits.draw_digits.__wrapped__("test")
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))


def test_a_caller_cannot_change_the_next_load():
    first = data.load("digits", "test", limit=4)
    before = first.images.clone()
    first.images.zero_()
    assert torch.equal(data.load("digits", "test", limit=4).images, before)


def test_splits_share_no_background(monkeypatch):
    """Photographs whose level tells the column, and no ink: training columns lie left of test columns."""
    shrink = digits._shrink

    def columns(photograph, factor):
        shape = shrink(photograph, factor).shape
        return np.broadcast_to(np.linspace(0, 255, shape[1])[:, None], shape)

    monkeypatch.setattr(digits, "_shrink", columns)
    monkeypatch.setattr(digits, "DIGIT_INK", (0.0, 0.0))
    monkeypatch.setattr(digits, "BACKGROUND_CONTRAST", 1.0)
    train, test = (digits.draw_digits.__wrapped__(split)[0] for split in ("train", "test"))
    assert train.min() == 0 and train.max() < test.min() and test.max() == 255


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_of_one_handwritten_digit_are_told(split, monkeypatch):
    """Drawn at full size on black in white, all images of a digit are the same, and others differ."""
    settings = {"BACKGROUND_CONTRAST": 0.0, "DIGIT_SIDE": (32.0, 32.0), "DIGIT_OVERHANG": 0.0}
    for name, value in (settings | {"DIGIT_INK": (1.0, 1.0)}).items():
        monkeypatch.setattr(digits, name, value)
    images, _ = digits.draw_digits.__wrapped__(split)
    numbers = digits.digit_of_image(split)
    assert len(numbers) == len(images) and len(set(numbers)) == digits.HANDWRITTEN[split]
    pictures = {}
    for number, image in zip(numbers, images, strict=True):
        pictures.setdefault(number, set()).add(image.tobytes())
    assert all(len(found) == 1 for found in pictures.values())
    assert len(set.union(*pictures.values())) == len(pictures)


def test_splits_share_no_digit(monkeypatch):
    """Drawn at full size on black, an image is the digit itself; no test digit occurs in training."""
    monkeypatch.setattr(digits, "BACKGROUND_CONTRAST", 0.0)
    monkeypatch.setattr(digits, "DIGIT_SIDE", (32.0, 32.0))
    monkeypatch.setattr(digits, "DIGIT_OVERHANG", 0.0)
    monkeypatch.setattr(digits, "DIGIT_SHARPNESS", 1.0)
    monkeypatch.setattr(digits, "DIGIT_INK", (1.0, 1.0))
    drawn = {}
    for split in ("train", "test"):
        images, _ = digits.draw_digits.__wrapped__(split)
        drawn[split] = {image.tobytes() for image in images}
    assert len(drawn["train"]) > 1400 and len(drawn["test"]) > 340
    assert not drawn["train"] & drawn["test"]


def test_digits_are_hard_for_raw_pixels_but_not_noise():
    from sklearn.neighbors import KNeighborsClassifier

    train, test = data.load("digits", "train"), data.load("digits", "test")
    neighbours = KNeighborsClassifier(5).fit(train.images.flatten(1).float().numpy(), train.labels)
    accuracy = neighbours.score(test.images.flatten(1).float().numpy(), test.labels)
    assert 0.20 < accuracy < 0.60


# --- the interface --------------------------------------------------------------------------------


def test_statistics_are_those_of_the_training_split():
    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert (train.mean, train.std) == (test.mean, test.std)
    x = train.normalized()
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)


def test_normalized_takes_an_index():
    images = data.load("digits", "test")
    index = torch.tensor([5, 3])
    assert torch.equal(images.normalized(index), images.normalized()[index])


def test_limit_takes_the_first_images():
    whole, part = data.load("digits", "train"), data.load("digits", "train", limit=100)
    assert len(part) == 100 and torch.equal(part.images, whole.images[:100])
    assert part.mean == whole.mean


@pytest.mark.parametrize("limit", [0, -1, digits.DIGITS_COUNT["train"] + 1])
def test_limit_outside_the_set_is_refused(limit):
    with pytest.raises(ValueError, match=rf"{limit}.*{digits.DIGITS_COUNT['train']}"):
        data.load("digits", "train", limit=limit)


def test_unknown_names_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match="digits, cifar10"):
        data.load("mnist", "train")
    with pytest.raises(ValueError, match="train, probe, test"):
        data.load("digits", "validation")


def test_to_moves_images_and_labels():
    moved = data.load("digits", "test", limit=2).to("meta")
    assert moved.images.device.type == moved.labels.device.type == moved.device.type == "meta"


def test_probe_of_digits_is_train():
    assert torch.equal(data.load("digits", "probe").images, data.load("digits", "train").images)


def test_validation_images_are_a_tenth_of_train_and_always_the_same(monkeypatch):
    images = torch.arange(50_000, dtype=torch.int32).view(torch.uint8).view(-1, 4, 1, 1)[:, :3].contiguous()
    train = data.ImageSet("cifar10", images, torch.arange(50_000), ("one",), (0.5,) * 3, (0.2,) * 3)
    monkeypatch.setitem(data.SETS, "cifar10", lambda name, split, *_: {"train": train}[split])
    learn, score = data.load_validation("cifar10")
    assert len(learn) == 45_000 and len(score) == 5_000
    assert torch.equal(torch.cat([learn.labels, score.labels]).sort().values, train.labels)
    for part in (learn, score):
        assert torch.equal(part.labels, part.labels.sort().values), "the order of the split"
        assert torch.equal(part.images, images[part.labels])
    # Another draw would train on images that settings were chosen on.
    assert score.labels[:5].tolist() == [22, 41, 47, 50, 64]
    torch.manual_seed(1)
    assert torch.equal(data.load_validation("cifar10")[1].labels, score.labels)


@pytest.mark.parametrize("name", ["stl10", "imagenet100"])
def test_sets_without_validation_images_say_so_before_they_load(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} has no validation split.*--validate"):
        data.load_validation(name, tmp_path)


def test_batches_are_the_normalised_images_in_order():
    images = data.load("digits", "test", limit=10)
    batches = list(images.batches(4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert torch.equal(torch.cat(batches), images.normalized())


def test_labelled_drops_images_without_a_label():
    images = data.load("digits", "test", limit=5)
    assert images.labelled() is images
    some = replace(images, labels=torch.tensor([3, -1, 0, -1, 2])).labelled()
    assert some.labels.tolist() == [3, 0, 2] and torch.equal(some.images, images.images[[0, 2, 4]])


def test_first_is_a_copy_of_as_many_as_there_are():
    images = data.load("digits", "test", limit=5)
    assert len(images.first(3)) == 3 and len(images.first(9)) == 5
    assert images.first(5).images.data_ptr() != images.images.data_ptr()


def test_view_batches_are_make_views_of_the_order():
    images, settings = data.load("digits", "test", limit=10), ViewSettings()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    generator, again = (torch.Generator().manual_seed(1) for _ in range(2))
    batches = list(data.view_batches(images, order, 2, 4, settings, generator))
    assert len(batches) == 2
    for (views, labels), index in zip(batches, (order[:4], order[4:8]), strict=True):
        expected = make_views(images.images[index], 2, images.mean, images.std, settings, again)
        assert torch.equal(views, expected) and torch.equal(labels, images.labels[index])


def test_view_batches_go_on_in_mid_epoch():
    images, order = data.load("digits", "test", limit=12), torch.arange(12)
    generator = torch.Generator().manual_seed(1)
    batches = data.view_batches(images, order, 2, 4, ViewSettings(), generator)
    next(batches)
    resumed = torch.Generator()
    resumed.set_state(generator.get_state())  # nothing is drawn ahead
    rest = list(data.view_batches(images, order, 2, 4, ViewSettings(), resumed, start=1))
    assert len(rest) == 2
    for (views, labels), (same, same_labels) in zip(batches, rest, strict=True):
        assert torch.equal(views, same) and torch.equal(labels, same_labels)


def test_view_batches_without_a_whole_batch_are_none():
    images = data.load("digits", "test", limit=3)
    assert not list(data.view_batches(images, torch.arange(3), 2, 4, ViewSettings()))
    assert not list(data.view_batches(images, torch.arange(3), 2, 1, ViewSettings(), start=3))


def test_view_batches_refuse_wrong_numbers_and_blur():
    images, order = data.load("digits", "test", limit=4), torch.arange(4)
    with pytest.raises(ValueError, match="batch_size is 0"):
        data.view_batches(images, order, 2, 0, ViewSettings())
    with pytest.raises(ValueError, match="start -1"):
        data.view_batches(images, order, 2, 2, ViewSettings(), start=-1)
    with pytest.raises(ValueError, match="blur_probability is 0.5"):
        next(data.view_batches(images, order, 2, 2, ViewSettings(blur_probability=0.5)))


def test_a_stratified_subset_has_its_share_of_each_class():
    labels = torch.tensor([0] * 200 + [1] * 100 + [2] * 30 + [3])[
        torch.randperm(331, generator=torch.Generator().manual_seed(0))
    ]
    index = data.stratified_subset(labels, 0.1)
    assert labels[index].bincount().tolist() == [20, 10, 3, 1], "but one image at least"
    assert torch.equal(index, index.unique()), "ascending, none twice"
    assert torch.equal(data.stratified_subset(labels, 1.0), torch.arange(331))


def test_a_stratified_subset_depends_on_its_seed_and_lies_within_a_larger_one():
    labels = torch.arange(500) % 5
    index = data.stratified_subset(labels, 0.1, seed=1)
    assert torch.equal(index, data.stratified_subset(labels, 0.1, seed=1))
    assert not torch.equal(index, data.stratified_subset(labels, 0.1, seed=2))
    assert set(data.stratified_subset(labels, 0.01, seed=1).tolist()) <= set(index.tolist())


# --- CIFAR-10 -------------------------------------------------------------------------------------

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def publish(monkeypatch, source: type, files: dict[str, bytes]) -> dict[str, bytes]:
    """Make torchvision's `source` expect these files and their archive, which is added: {name: bytes}."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{source.base_folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(source, part, [[name, md5(files[name])] for name, _ in getattr(source, part)])
    if hasattr(source, "meta"):
        monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5(files[source.meta["filename"]])})
    monkeypatch.setattr(source, "tgz_md5", md5(buffer.getvalue()))
    monkeypatch.setattr(source, "url", f"http://127.0.0.1:9/{source.filename}")  # port 9 refuses
    monkeypatch.delenv("WMSE_MIRROR", raising=False)
    return files | {source.filename: buffer.getvalue()}


def lay_out(root: Path, files: dict[str, bytes], source: type = CIFAR10) -> None:
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    for name, content in files.items():
        if name != source.filename:
            (folder / name).write_bytes(content)


@pytest.fixture
def small_cifar(monkeypatch):
    """Six files of two images each in CIFAR-10's layout, and CIFAR10 made to expect them: {name: bytes}."""
    rng = np.random.RandomState(0)
    files = {}
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        pixels = rng.randint(0, 256, (2, 3072)).astype(np.uint8)
        files[name] = pickle.dumps({"data": pixels, "labels": rng.randint(0, 10, 2).tolist()})
    files["batches.meta"] = pickle.dumps({"label_names": CLASSES})
    return publish(monkeypatch, CIFAR10, files)


def test_cifar10_is_read_in_its_published_layout(small_cifar, tmp_path, monkeypatch):
    lay_out(tmp_path, small_cifar)
    monkeypatch.setenv("WMSE_DATA", str(tmp_path))
    train, test = data.load("cifar10", "train"), data.load("cifar10", "test")
    batch = pickle.loads(small_cifar["data_batch_2"])
    assert train.images.shape == (10, 3, 32, 32) and test.images.shape == (2, 3, 32, 32)
    assert torch.equal(train.images[2:4].flatten(1), torch.from_numpy(batch["data"]))
    assert train.labels[2:4].tolist() == batch["labels"] and train.labels.dtype == torch.int64
    assert train.images.is_contiguous() and train.classes == tuple(CLASSES)
    assert train.mean == test.mean == (0.4914, 0.4822, 0.4465) and train.std == (0.2023, 0.1994, 0.2010)


@pytest.mark.parametrize("name", ["cifar-10-batches-py", "cifar-100-python"])
def test_a_sets_own_folder_is_taken_for_the_one_that_holds_it(small_cifar, tmp_path, name):
    """Also another set's: nothing is downloaded into either."""
    lay_out(tmp_path, small_cifar)
    (tmp_path / name).mkdir(exist_ok=True)
    assert len(data.load("cifar10", "train", root=tmp_path / name)) == 10


def test_a_sets_own_folder_under_another_name_is_told(small_cifar, tmp_path):
    lay_out(tmp_path, small_cifar)
    (tmp_path / CIFAR10.base_folder).rename(tmp_path / "cifar10")
    with pytest.raises(
        ValueError, match="cifar10 holds the files of cifar10 itself: rename it to cifar-10-batches"
    ):
        data.load("cifar10", "train", root=tmp_path / "cifar10")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_files_that_the_machine_cannot_read_are_neither_damaged_nor_absent(
    small_cifar, tmp_path, monkeypatch, number
):
    lay_out(tmp_path, small_cifar)

    def fail(path, *_, **__):
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(OSError, match=rf"data_batch_1 could not be read: {os.strerror(number)}") as told:
        data.load("cifar10", "train", root=tmp_path)
    assert told.value.errno == number


def test_absent_cifar10_without_network_says_what_to_do(small_cifar, tmp_path, capsys):
    with pytest.raises(DownloadError) as error:
        data.load("cifar10", "train", root=tmp_path / "nowhere")
    for word in (CIFAR10.url, CIFAR10.tgz_md5, str(tmp_path / "nowhere" / CIFAR10.filename), "WMSE_DATA"):
        assert word in str(error.value)
    assert "WMSE_MIRROR" in str(error.value) and "40 minutes" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_damaged_file_is_named_and_replaced_from_the_archive(small_cifar, tmp_path):
    lay_out(tmp_path, small_cifar)
    (tmp_path / CIFAR10.base_folder / "data_batch_3").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="data_batch_3"), pytest.raises(DownloadError):
        data.load("cifar10", "test", root=tmp_path)
    (tmp_path / CIFAR10.filename).write_bytes(small_cifar[CIFAR10.filename])
    with pytest.warns(UserWarning, match="data_batch_3"):
        assert len(data.load("cifar10", "train", root=tmp_path)) == 10


def test_damaged_archive_is_named(small_cifar, tmp_path):
    (tmp_path / CIFAR10.filename).write_bytes(small_cifar[CIFAR10.filename][:-1])
    with pytest.warns(UserWarning, match="tar.gz is damaged"), pytest.raises(DownloadError):
        data.load("cifar10", "train", root=tmp_path)


def test_real_cifar10_where_it_lies():
    root = Path(os.environ.get("WMSE_DATA") or "data")
    if not (root / CIFAR10.base_folder).is_dir():
        pytest.skip(f"no CIFAR-10 under {root}: set WMSE_DATA to check the real files")
    for split, n in (("train", 50_000), ("test", 10_000)):
        images = data.load("cifar10", split, root=root)
        assert images.images.shape == (n, 3, 32, 32)
        assert torch.bincount(images.labels).tolist() == [n // 10] * 10
        assert images.classes == tuple(CLASSES)


# --- CIFAR-100 and STL-10 -------------------------------------------------------------------------


@pytest.fixture
def small_cifar100(monkeypatch):
    """Four training images and two for testing in CIFAR-100's layout: {name: bytes}."""
    rng = np.random.RandomState(0)
    names = {"fine_label_names": [f"fine {i}" for i in range(100)], "coarse_label_names": ["coarse"] * 20}
    files = {"meta": pickle.dumps(names)}
    for name, n in (("train", 4), ("test", 2)):
        labels = {"fine_labels": rng.randint(0, 100, n).tolist(), "coarse_labels": [0] * n}
        pixels = rng.randint(0, 256, (n, 3072)).astype(np.uint8)
        files[name] = pickle.dumps({"data": pixels, "filenames": ["x.png"] * n, **labels})
    return publish(monkeypatch, CIFAR100, files)


def test_cifar100_is_read_with_its_fine_labels(small_cifar100, tmp_path):
    lay_out(tmp_path, small_cifar100, CIFAR100)
    for split, file in (("train", "train"), ("probe", "train"), ("test", "test")):
        images, batch = data.load("cifar100", split, root=tmp_path), pickle.loads(small_cifar100[file])
        assert torch.equal(images.images.flatten(1), torch.from_numpy(batch["data"]))
        assert images.labels.tolist() == batch["fine_labels"] and images.labels.dtype == torch.int64
        assert images.classes == tuple(f"fine {i}" for i in range(100))
        assert images.mean == (0.5071, 0.4867, 0.4408) and images.std == (0.2675, 0.2565, 0.2761)


def test_mirror_brings_cifar100(small_cifar100, serve, tmp_path, capsys):
    address, _ = serve(small_cifar100[CIFAR100.filename])
    assert len(data.load("cifar100", "train", root=tmp_path, mirror=address)) == 4
    assert "40 minutes" in capsys.readouterr().err


@pytest.fixture
def small_stl10(monkeypatch):
    """3, 5 and 2 images for training, without labels and for testing: ({file: pixels}, {name: bytes})."""
    rng = np.random.RandomState(0)
    pixels = {
        name: rng.randint(0, 256, (n, 3, 96, 96)).astype(np.uint8)
        for name, n in (("train_X.bin", 3), ("unlabeled_X.bin", 5), ("test_X.bin", 2))
    }
    files = {name: images.transpose(0, 1, 3, 2).tobytes() for name, images in pixels.items()}  # columns first
    files |= {"train_y.bin": bytes([1, 10, 5]), "test_y.bin": bytes([2, 1])}  # counted from 1
    files |= {"class_names.txt": b"airplane\n", "fold_indices.txt": b"0 1\n"}
    return pixels, publish(monkeypatch, STL10, files)


def test_stl10_trains_on_all_images_at_full_size(small_stl10, tmp_path):
    pixels, files = small_stl10
    lay_out(tmp_path, files, STL10)
    train = data.load("stl10", "train", root=tmp_path)
    expected = np.concatenate([pixels["train_X.bin"], pixels["unlabeled_X.bin"]])
    assert torch.equal(train.images, torch.from_numpy(expected)) and train.images.is_contiguous()
    assert train.labels.tolist() == [0, 9, 4, -1, -1, -1, -1, -1] and train.labels.dtype == torch.int64
    assert len(train.labelled()) == 3 and train.classes[0] == "airplane" and train.classes[9] == "truck"
    assert train.mean == (0.43, 0.42, 0.39) and train.std == (0.27, 0.26, 0.27)


@pytest.mark.parametrize(
    ("split", "file", "labels"), [("probe", "train_X.bin", [0, 9, 4]), ("test", "test_X.bin", [1, 0])]
)
def test_stl10_is_probed_and_tested_at_pillows_resize_and_central_crop(
    small_stl10, tmp_path, split, file, labels
):
    pixels, files = small_stl10
    lay_out(tmp_path, files, STL10)
    images = data.load("stl10", split, root=tmp_path)
    assert images.images.shape == (len(labels), 3, 64, 64) and images.images.dtype == torch.uint8
    assert images.labels.tolist() == labels and images.labels.dtype == torch.int64
    for levels, ours in zip(pixels[file], images.images, strict=True):
        resized = Image.fromarray(levels.transpose(1, 2, 0)).resize((70, 70), Image.Resampling.BICUBIC)
        expected = np.asarray(resized.crop((3, 3, 67, 67))).transpose(2, 0, 1)
        assert np.array_equal(ours.numpy(), expected)


def test_absent_stl10_says_what_to_do_and_comes_from_a_mirror(small_stl10, serve, tmp_path, capsys):
    _, files = small_stl10
    with pytest.raises(DownloadError, match="stl10_binary.tar.gz"):
        data.load("stl10", "test", root=tmp_path)
    assert "2.6 GB" in capsys.readouterr().err
    address, _ = serve(files[STL10.filename])
    assert len(data.load("stl10", "train", root=tmp_path, mirror=address)) == 8


def test_damaged_stl10_is_named(small_stl10, tmp_path):
    _, files = small_stl10
    lay_out(tmp_path, files | {"unlabeled_X.bin": b"damaged"}, STL10)
    with pytest.warns(UserWarning, match="unlabeled_X.bin"), pytest.raises(DownloadError):
        data.load("stl10", "test", root=tmp_path)


# --- downloads ------------------------------------------------------------------------------------

CONTENT = np.random.RandomState(1).bytes(300_000)


class Server(BaseHTTPRequestHandler):
    """Serves `content` at /file*; each entry of `drops` ends one answer after so many bytes of it."""

    def __init__(self, *args, content, ranges, drops, log):
        self.content, self.ranges, self.drops, self.log = content, ranges, drops, log
        super().__init__(*args)

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.log.append(wanted)
        if "absent" in self.path:
            return self.send_error(404)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start >= len(self.content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            last = len(self.content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(self.content)}")
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        size = self.drops.pop(0) if self.drops else len(self.content)
        self.wfile.write(self.content[start : start + size])

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch):
    """serve(content, ranges, drops) -> (base address, the Range headers received)."""
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(content=CONTENT, ranges=True, drops=()):
        log = []
        handler = partial(Server, content=content, ranges=ranges, drops=list(drops), log=log)
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}", log

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_mirror_brings_cifar10(small_cifar, serve, tmp_path, monkeypatch):
    address, _ = serve(small_cifar[CIFAR10.filename])
    assert len(data.load("cifar10", "test", root=tmp_path / "a", mirror=address)) == 2
    monkeypatch.setenv("WMSE_MIRROR", address + "/")
    assert len(data.load("cifar10", "train", root=tmp_path / "b")) == 10
    with pytest.raises(ValueError, match="nonsense"):
        data.load("cifar10", "train", root=tmp_path / "c", mirror="nonsense")


def test_download_goes_on_after_lost_connections(serve, tmp_path):
    address, log = serve(drops=[100_000, 50_000])
    fetch(f"{address}/file", tmp_path / "file", md5(CONTENT))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert log == [None, "bytes=100000-", "bytes=150000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_interrupted_download_keeps_its_part_for_the_next_run(serve, tmp_path):
    address, _ = serve(drops=[100_000, 0])
    with pytest.raises(DownloadError, match="100,000 bytes are kept"):
        fetch(f"{address}/file", tmp_path / "file", md5(CONTENT))
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:100_000]
    address, log = serve()
    fetch(f"{address}/file", tmp_path / "file", md5(CONTENT))
    assert (tmp_path / "file").read_bytes() == CONTENT and log == ["bytes=100000-"]


def test_server_that_cannot_resume_starts_afresh(serve, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT[:100_000])
    address, log = serve(ranges=False)
    fetch(f"{address}/file", tmp_path / "file", md5(CONTENT))
    assert (tmp_path / "file").read_bytes() == CONTENT and log == ["bytes=100000-"]


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"more", bytes(len(CONTENT))])
def test_part_as_long_as_the_file_or_longer(serve, tmp_path, part):
    (tmp_path / "file.part").write_bytes(part)
    address, log = serve()
    fetch(f"{address}/file", tmp_path / "file", md5(CONTENT))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(log) == (0 if part == CONTENT else 2)


def test_wrong_file_is_removed_and_reported(serve, tmp_path):
    address, _ = serve(b"a login page")
    with pytest.raises(DownloadError, match=md5(b"a login page")):
        fetch(f"{address}/file", tmp_path / "file", md5(CONTENT))
    assert not list(tmp_path.iterdir())


def test_missing_file_and_dead_server_are_reported(serve, tmp_path):
    address, log = serve()
    with pytest.raises(DownloadError, match=r"(?s)absent: .*404.*ask the owner"):
        fetch(f"{address}/absent", tmp_path / "file", md5(CONTENT), "ask the owner")
    with pytest.raises(DownloadError, match="refused"):
        fetch("http://127.0.0.1:9/file", tmp_path / "file", md5(CONTENT))
    assert len(log) == 1
