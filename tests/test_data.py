"""The image sets: what `digits` is made of, CIFAR-10's layout, and downloads over a poor network."""

import hashlib
import io
import os
import pickle
import tarfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from wmse import data, downloads
from wmse.downloads import DownloadError, fetch

# --- digits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_digits_are_uint8_images_with_balanced_labels(split):
    images = data.load("digits", split)
    n = data.DIGITS_COUNT[split]
    assert len(images) == n and images.images.shape == (n, 3, 32, 32) and images.labels.shape == (n,)
    assert images.images.dtype == torch.uint8 and images.labels.dtype == torch.int64
    assert images.classes == tuple("0123456789")
    share = torch.bincount(images.labels, minlength=10) / n
    assert share.min() > 0.09 and share.max() < 0.11


def test_digits_are_the_same_each_time():
    once, again = data._draw_digits.__wrapped__("test"), data._draw_digits.__wrapped__("test")
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))


def test_a_caller_cannot_change_the_next_load():
    first = data.load("digits", "test", limit=4)
    before = first.images.clone()
    first.images.zero_()
    assert torch.equal(data.load("digits", "test", limit=4).images, before)


def test_splits_share_no_background(monkeypatch):
    """Photographs whose level tells the column, and no ink: training columns lie left of test columns."""
    shrink = data._shrink

    def columns(photograph, factor):
        shape = shrink(photograph, factor).shape
        return np.broadcast_to(np.linspace(0, 255, shape[1])[:, None], shape)

    monkeypatch.setattr(data, "_shrink", columns)
    monkeypatch.setattr(data, "DIGIT_INK", (0.0, 0.0))
    monkeypatch.setattr(data, "BACKGROUND_CONTRAST", 1.0)
    train, test = (data._draw_digits.__wrapped__(split)[0] for split in ("train", "test"))
    assert train.min() == 0 and train.max() < test.min() and test.max() == 255


def test_splits_share_no_digit(monkeypatch):
    """Drawn at full size on black, an image is the digit itself; no test digit occurs in training."""
    monkeypatch.setattr(data, "BACKGROUND_CONTRAST", 0.0)
    monkeypatch.setattr(data, "DIGIT_SIDE", (32.0, 32.0))
    monkeypatch.setattr(data, "DIGIT_OVERHANG", 0.0)
    monkeypatch.setattr(data, "DIGIT_SHARPNESS", 1.0)
    monkeypatch.setattr(data, "DIGIT_INK", (1.0, 1.0))
    digits = {}
    for split in ("train", "test"):
        images, _ = data._draw_digits.__wrapped__(split)
        digits[split] = {image.tobytes() for image in images}
    assert len(digits["train"]) > 1400 and len(digits["test"]) > 340
    assert not digits["train"] & digits["test"]


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
    x = train.normalised()
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)


def test_normalised_takes_an_index():
    images = data.load("digits", "test")
    index = torch.tensor([5, 3])
    assert torch.equal(images.normalised(index), images.normalised()[index])


def test_limit_takes_the_first_images():
    whole, part = data.load("digits", "train"), data.load("digits", "train", limit=100)
    assert len(part) == 100 and torch.equal(part.images, whole.images[:100])
    assert part.mean == whole.mean


@pytest.mark.parametrize("limit", [0, -1, data.DIGITS_COUNT["train"] + 1])
def test_limit_outside_the_set_is_refused(limit):
    with pytest.raises(ValueError, match=rf"{limit}.*{data.DIGITS_COUNT['train']}"):
        data.load("digits", "train", limit=limit)


def test_unknown_names_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match="digits, cifar10"):
        data.load("mnist", "train")
    with pytest.raises(ValueError, match="train, test"):
        data.load("digits", "validation")


def test_to_moves_images_and_labels():
    moved = data.load("digits", "test", limit=2).to("meta")
    assert moved.images.device.type == moved.labels.device.type == "meta"


# --- CIFAR-10 -------------------------------------------------------------------------------------

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def small_cifar(monkeypatch):
    """Six files of two images each in CIFAR-10's layout, and CIFAR10 made to expect them: {name: bytes}."""
    rng = np.random.RandomState(0)
    files = {}
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        pixels = rng.randint(0, 256, (2, 3072)).astype(np.uint8)
        files[name] = pickle.dumps({"data": pixels, "labels": rng.randint(0, 10, 2).tolist()})
    files["batches.meta"] = pickle.dumps({"label_names": CLASSES})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, part, [[name, md5(files[name])] for name, _ in getattr(CIFAR10, part)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(files["batches.meta"])})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(buffer.getvalue()))
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")  # port 9 refuses
    monkeypatch.delenv("WMSE_MIRROR", raising=False)
    return files | {CIFAR10.filename: buffer.getvalue()}


def lay_out(root: Path, files: dict[str, bytes]) -> None:
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    for name, content in files.items():
        if name != CIFAR10.filename:
            (folder / name).write_bytes(content)


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
