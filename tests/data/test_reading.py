"""Reading image files: what is refused and how it is told, odd modes, many files in threads."""

import errno
import os
import warnings

import numpy as np
import pytest
from PIL import Image

from wmse.data import reading


class Failing:
    """A file whose reads fail with an error of the operating system."""

    def __init__(self, number: int):
        self.number = number

    def __call__(self, path, *_):
        raise OSError(self.number, os.strerror(self.number), path)


@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "EIO", "EACCES", "ESTALE", "ENOENT", "ENOMEM"])
def test_what_the_machine_fails_at_is_not_called_a_broken_image(tmp_path, monkeypatch, name):
    path, number = tmp_path / "sound.png", getattr(errno, name)
    Image.new("RGB", (4, 4)).save(path)
    monkeypatch.setattr("builtins.open", Failing(number))
    with pytest.raises(OSError) as told:
        reading.read_rgb(str(path))
    assert told.value.errno == number and type(told.value) is type(OSError(number, ""))
    text = str(told.value)
    assert text.startswith(f"[Errno {number}] {path} could not be read: {os.strerror(number)}. ")
    assert "sound copy" not in text and text.endswith(".")


def test_a_read_that_fails_in_the_middle_of_an_image_is_the_machines_fault(tmp_path, monkeypatch):
    path = tmp_path / "sound.png"
    Image.new("RGB", (64, 64)).save(path)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: Failing(errno.EIO)(None))
    with pytest.raises(OSError, match=r"sound.png could not be read: Input/output error") as told:
        reading.read_rgb(str(path))
    assert told.value.errno == errno.EIO


def test_too_little_memory_is_the_machines_fault(tmp_path, monkeypatch):
    path = tmp_path / "sound.png"
    Image.new("RGB", (4, 4)).save(path)
    for error in (MemoryError(), OSError("out of memory error when reading image file")):  # without an errno

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(Image.Image, "convert", fail)
        with pytest.raises(MemoryError, match="sound.png could not be read: too little memory"):
            reading.read_rgb(str(path))


def test_a_folder_for_a_file_is_told(tmp_path):
    (tmp_path / "x.jpeg").mkdir()
    with pytest.raises(IsADirectoryError, match=r"x.jpeg could not be read: Is a directory. It is a folder"):
        reading.read_rgb(str(tmp_path / "x.jpeg"))


@pytest.mark.parametrize("suffix", ["png", "jpeg"])
@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html><html>", b"version https://git-lfs", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_image_is_told_by_name(tmp_path, suffix, content):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"x.{suffix} is no whole image"):
        reading.read_rgb(str(path))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_an_image_cut_anywhere_is_told_by_name(tmp_path, format):
    path = tmp_path / "x.png"
    levels = np.random.RandomState(0).randint(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(levels).save(path, format)
    content = path.read_bytes()
    for keep in range(0, len(content) * 9 // 10, 37):
        path.write_bytes(content[:keep])
        with pytest.raises(ValueError, match="x.png is no whole image"):
            reading.read_rgb(str(path))


def test_an_image_too_large_to_be_meant_is_told_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (15, 14)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match=r"bomb.png is refused: .*210 pixels.* Shrink the image"):
        reading.read_rgb(str(tmp_path / "bomb.png"))


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    """Eight bits times 257 are the same gray in sixteen. Clipped, almost all of them would be 255."""
    gray = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for name, levels in {"deep.png": gray * 257, "deep.tiff": gray * 257}.items():
        Image.fromarray(levels).save(tmp_path / name)
    (tmp_path / "deep.pgm").write_bytes(b"P5 16 16 65535\n" + (gray * 257).astype(">u2").tobytes())
    for path in tmp_path.iterdir():
        read = np.asarray(reading.read_rgb(str(path)))
        assert read.dtype == np.uint8 and (read == gray[..., None]).all(), path.name


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_levels_without_a_known_range_are_refused_by_name(tmp_path, mode):
    image = Image.new("LAB", (4, 4)) if mode == "LAB" else Image.fromarray(np.full((4, 4), 9.0, np.float32))
    (image if mode == "LAB" else image.convert(mode)).save(tmp_path / "x.jpg", "TIFF")
    with pytest.raises(ValueError, match=f"x.jpg has mode {mode}, which has no sure form in RGB: save it as"):
        reading.read_rgb(str(tmp_path / "x.jpg"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(tmp_path, mode):
    levels = np.kron(np.array([[[0] * 3, [255] * 3], [[255, 0, 0], [0, 0, 255]]]), np.ones((8, 8, 1)))
    image = Image.fromarray(levels.astype(np.uint8))
    expected = image.convert("1").convert("RGB") if mode == "1" else image
    expected = image.convert("L").convert("RGB") if mode in ("L", "LA") else expected
    saved = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    format = {"CMYK": "TIFF", "YCbCr": "TIFF", "PA": "TIFF"}.get(mode, "PNG")
    saved.save(tmp_path / "x.png", format, **({"transparency": bytes([0, 128])} if mode == "P" else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = reading.read_rgb(str(tmp_path / "x.png"))
    assert read.mode == "RGB"
    assert np.abs(np.asarray(read).astype(int) - np.asarray(expected)).max() <= 2


def test_images_are_read_in_order_by_many_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", 3)
    monkeypatch.setattr(reading, "usable_cores", lambda: 4)
    paths = [tmp_path / f"{i}.png" for i in range(20)]
    for i, path in enumerate(paths):
        Image.fromarray(np.full((8, 8), i, dtype=np.uint8)).save(path)
    images = reading.stack_images([str(path) for path in paths], 8, reading.read_rgb)
    assert images[:, 1, 4, 4].tolist() == list(range(20))
