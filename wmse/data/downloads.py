"""Download archives of data sets: resume, verify and unpack them; errors say how to do it by hand."""

import hashlib
import http.client
import os
import ssl
import sys
import tarfile
import time
import warnings
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

TIMEOUT = 30.0  # seconds without a byte after which a connection counts as lost
PAUSE = 1.0  # seconds between two attempts
BLOCK = 1 << 16  # bytes
LOST = (URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


class DownloadError(ConnectionError):
    """A file could not be downloaded completely. The message says what was tried and what to do by hand."""


def md5_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def restore(source: type, root: Path, mirror: str | None = None, patience: str = "") -> None:
    """Put a data set of torchvision (CIFAR-10, CIFAR-100 or STL-10) under `root`, if it is absent or damaged.

    An archive that is already under `root` is used if its MD5 sum is right.

    Args:
        source: the torchvision class, which has the address, the file names and the MD5 sums.
        mirror: base address, to which the file name is added; None: `$WMSE_MIRROR`, else the publisher's.
        patience: a sentence that says how large the download is or how long it may take.

    Raises:
        DownloadError: the archive could not be downloaded.
        ValueError: `mirror` is not an address.
    """
    mirror = mirror or os.environ.get("WMSE_MIRROR")
    url = f"{mirror.rstrip('/')}/{source.filename}" if mirror else source.url
    if "://" not in url:
        raise ValueError(f"the mirror {mirror!r} is no address: give one such as https://host/folder")
    folder, archive = (root / source.base_folder).absolute(), (root / source.filename).absolute()
    files = {folder / name: md5 for name, md5 in (*source.train_list, *source.test_list)}
    if hasattr(source, "meta"):  # CIFAR's class names
        files[folder / source.meta["filename"]] = source.meta["md5"]
    files[archive] = source.tgz_md5
    sound = {path: md5_of(path) == md5 for path, md5 in files.items() if path.is_file()}
    for path in (path for path in sound if not sound[path]):
        warnings.warn(f"{path} is damaged and will be replaced: its MD5 is wrong", stacklevel=2)
    if not sound.get(archive):
        print(
            f"Downloading {url} to {archive}. {patience}\nInterrupt freely: the next run goes on where this "
            "one stopped. WMSE_MIRROR=URL names a faster server.",
            file=sys.stderr,
        )
        advice = (
            f"By hand: fetch {source.url} (MD5 {source.tgz_md5}) where there is a network and put it at\n"
            f"  {archive}\nor its unpacked folder at\n  {folder}\n"
            "Another data folder: --data DIR or WMSE_DATA=DIR. Another server: WMSE_MIRROR=URL of the folder "
            "that holds the file."
        )
        fetch(url, archive, source.tgz_md5, advice)
    with tarfile.open(archive) as tar:
        tar.extractall(root, filter="data")


def fetch(url: str, path: Path, md5: str, advice: str = "") -> None:
    """Download `url` to `path`, through `path`.part, from which an interrupted download continues.

    After a lost connection the download is resumed, as long as each attempt adds bytes. A complete file
    with a wrong MD5 sum is removed. Raises DownloadError, whose message ends with `advice`.
    """
    part = path.with_name(path.name + ".part")
    while not (_size(part) and md5_of(part) == md5):
        before = _size(part)
        try:
            _receive(url, part)
        except LOST as error:
            if isinstance(error, HTTPError) and error.code == 416 and before:
                part.unlink()  # the part is as long as the file or longer, yet wrong: start again
            elif _size(part) <= before:
                size = _size(part)
                kept = f"{size:,} bytes are kept in {part} and will be continued.\n" if size else ""
                raise DownloadError(f"could not download {url}: {error}\n{kept}{advice}") from error
            time.sleep(PAUSE)
        else:
            if (found := md5_of(part)) != md5:
                part.unlink()
                raise DownloadError(
                    f"{url} is not the file expected: MD5 {found}, not {md5}; removed.\n{advice}"
                )
    part.replace(path)


def _receive(url: str, part: Path) -> None:
    """Append the missing bytes of `url` to `part`; start from zero if the server cannot resume."""
    start = _size(part)
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urlopen(request, timeout=TIMEOUT) as response:
        if not (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        part.parent.mkdir(parents=True, exist_ok=True)
        bar = tqdm(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True, disable=None)
        with bar, part.open("ab" if start else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                bar.update(len(block))
    if total and _size(part) < total:
        raise ConnectionError(f"the connection ended after {_size(part):,} of {total:,} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
