"""Data sets by name: found, downloaded, checked and cached.

    from vnca import data

    train = data.load("binarized-mnist", "train")
    image, label = train[0]    # (1, 28, 28) float32 in [0, 1]; int64, -1 for none

===============  ========================  ===========================================================
name             train / valid / test      what it is
===============  ========================  ===========================================================
digits           1,297 / 250 / 250         scikit-learn's 8 x 8 digits, resized to MNIST's geometry; part
                                           of scikit-learn, so it needs no download
binarized-mnist  50,000 / 10,000 / 10,000  MNIST, each pixel drawn once as 0 or 1 and kept (Larochelle and
                                           Murray 2011): the set of the VNCA paper; it has no labels
mnist            50,000 / 10,000 / 10,000  handwritten digits in grey, through torchvision; in this and
                                           the next two, valid is the last 10,000 of the 60,000
fashion-mnist    50,000 / 10,000 / 10,000  clothes in grey, through torchvision
kmnist           50,000 / 10,000 / 10,000  Japanese characters in grey, through torchvision
===============  ========================  ===========================================================

Files are looked for in two places, in this order:

1. the folder given as ``root``, else the folder that the environment variable ``VNCA_DATA`` names.
   Nothing is ever written there, so it may be read-only. It holds ``binarized_mnist_train.amat`` (or
   ``.amat.gz``), directly or in ``binarized_mnist/``, and ``MNIST/raw/`` as torchvision lays it out;
2. the cache, ``$XDG_CACHE_HOME/vnca``, or ``~/.cache/vnca`` where that variable is not set.

What neither holds is downloaded into the cache.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import queue
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from vnca import files
from vnca.checks import require_tensor

NAMES = ("digits", "binarized-mnist", "mnist", "fashion-mnist", "kmnist")
SPLITS = ("train", "valid", "test", "train+valid")
FALLBACKS = ("digits",)

SIDE = 28
PIXELS = SIDE * SIDE
PACKED = PIXELS // 8  # bytes of a bit-packed image

BINARIZED_ROWS = {"train": 50_000, "valid": 10_000, "test": 10_000}
# `content_digest` of each split. Copies of this set differ in the order of their rows, so a checksum of the
# file would refuse good copies; these refuse only other images.
BINARIZED_DIGESTS = {
    "train": "aae6de292e6b68d898acf52062a1ac62907fc7ab417c59582d6523a1da0f9a61",
    "valid": "d10b4edf2e0765693846b51a5895f81f69fa37b6459b7f665bfa9c8cc9723622",
    "test": "87ff96664646cc41575aeb3ae4fbbabc1475ca3d42be4659d7a829d9f22c845a",
}
# The first is the original set, row for row, as MATLAB matrices (2.9 MB instead of 78 MB for train). The second
# is the set's first home, gone at times. The third holds the three splits in one file.
BINARIZED_SOURCES = (
    "https://raw.githubusercontent.com/mingzhang-yin/ARM-gradient/"
    "9b5f74da4e4009c5556e8d7a87c88c8e291c253d/binarized_mnist_{split}.amat",
    "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/binarized_mnist_{split}.amat",
    "https://github.com/mgermain/MADE/releases/download/ICML2015/binarized_mnist.npz",
)
TORCHVISION_CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}

ANSWER_SECONDS = 4.0  # for all sources of a file together, so that a machine without a network knows soon
READ_SECONDS = 30.0  # without a byte, in the middle of a download

T = TypeVar("T")


class DataError(RuntimeError):
    """A data set could not be had. ``reason`` says why; the message adds what to do about it."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}. {advice}")
        self.reason = reason


class ImageDataset(TensorDataset):
    """Pairs of image and label, with the name of the data set and of the split.

    ``tensors`` is ``(images, labels)``: float32 ``(N, 1, 28, 28)`` in [0, 1] and int64 ``(N,)``, -1 where
    there is no label.
    """

    def __init__(self, name: str, split: str, images: Tensor, labels: Tensor) -> None:
        super().__init__(images, labels)
        self.name = name
        self.split = split


def load(name: str, split: str, root: str | Path | None = None, fallback: str | None = None) -> ImageDataset:
    """Load a data set, downloading it where it is neither in ``root`` (or ``VNCA_DATA``) nor in the cache.

    Args:
        name: one of "digits", "binarized-mnist", "mnist", "fashion-mnist", "kmnist".
        split: "train", "valid", "test", or "train+valid" (train first; the VNCA paper trains on both).
        root: the folder to look in first; ``$VNCA_DATA`` where it is not given.
        fallback: "digits" to take the built-in digits where the set cannot be had. With it, one printed line
            says which data was taken, and why.

    Raises:
        ValueError: for a name, split or fallback that does not exist.
        DataError: for a set that cannot be had: no source answered, or a file is truncated or wrong.

    >>> train = load("digits", "train")
    >>> len(train), train[0][0].shape
    (1297, torch.Size([1, 28, 28]))
    >>> load("digits", "test", fallback="digits").name
    Data: digits, test: 250 images of 28 x 28.
    'digits'
    """
    _require("data set", name, NAMES)
    _require("split", split, SPLITS)
    if fallback is None:
        return _load(name, split, root)
    _require("fallback", fallback, FALLBACKS)
    because = ""
    try:
        dataset = _load(name, split, root)
    except DataError as error:
        dataset = _load(fallback, split, root)
        because = f", the built-in set, because {error.reason}"
    count, _, height, width = dataset.tensors[0].shape
    print(f"Data: {dataset.name}, {split}: {count:,} images of {height} x {width}{because}.")
    return dataset


def binarize(images: Tensor, seed: int = 0) -> Tensor:
    """Draw each pixel once as 0 or 1, with its grey value as the probability of a 1.

    The draw is fixed: the same seed gives the same pixels on every device, and the first images of a longer
    batch get the same pixels as they do alone. Pixels that are 0 or 1 already stay as they are.

    Args:
        images: floating point ``(N, 1, H, W)`` in [0, 1].

    Raises:
        ValueError: for another shape or type, or values outside [0, 1].

    >>> binarize(torch.tensor([0.0, 0.1, 0.9, 1.0]).view(1, 1, 2, 2)).flatten()
    tensor([0., 0., 1., 1.])
    """
    require_tensor("images are", images)
    if images.ndim != 4 or images.shape[1] != 1:
        raise ValueError(f"images must have the shape (N, 1, H, W), not {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images must be floating point in [0, 1], not {images.dtype}")
    if not ((images >= 0) & (images <= 1)).all():
        raise ValueError("images must lie in [0, 1]; divide 8-bit pixels by 255")
    generator = torch.Generator().manual_seed(seed)
    threshold = torch.rand(images.shape, generator=generator).to(images.device)  # in [0, 1): 1 stays 1
    return (threshold < images).to(images.dtype)


def content_digest(packed: np.ndarray) -> str:
    """SHA-256 of the rows of ``packed`` (N, bytes), sorted: the same for every order of the rows."""
    return hashlib.sha256(b"".join(sorted(row.tobytes() for row in packed))).hexdigest()


def _require(kind: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise ValueError(f"unknown {kind} {value!r}; choose from {', '.join(valid)}")


def _load(name: str, split: str, root: str | Path | None) -> ImageDataset:
    if name == "digits":  # which need no folder, and so no home either
        images, labels = _digits(split)
    elif name == "binarized-mnist":
        images, labels = _binarized_mnist(split, _places(root))
    else:
        images, labels = _torchvision(name, split, _places(root))
    return ImageDataset(name, split, images, labels)


def _places(root: str | Path | None) -> list[Path]:
    """The folders to look in, the first first."""
    first = root or os.environ.get("VNCA_DATA")
    try:
        named = [Path(first).expanduser()] if first else []
    except RuntimeError:
        raise DataError(
            f"the folder of the data is {str(first)!r}, and there is no such user",
            "Let VNCA_DATA, or root, name another folder.",
        ) from None
    return [*named, _cache_folder()]


def _cache_folder() -> Path:
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "vnca"
    try:
        return Path.home() / ".cache" / "vnca"
    except RuntimeError:
        raise DataError("there is no home folder for the cache", "Point XDG_CACHE_HOME at a folder.") from None


# ---------------------------------------------------------------------------------------------- digits


def _digits(split: str) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # RandomState, because its stream is frozen: the split stays the same under every version of NumPy.
    order = np.random.RandomState(0).permutation(len(bunch.target))
    parts = {"train": order[:1297], "valid": order[1297:1547], "test": order[1547:], "train+valid": order[:1547]}
    chosen = parts[split]
    small = torch.from_numpy(bunch.images[chosen]).float()[:, None] / 16  # (N, 1, 8, 8)
    box = F.interpolate(small, size=(20, 20), mode="bicubic").clamp(0, 1)  # bicubic overshoots at edges
    return F.pad(box, (4, 4, 4, 4)), torch.from_numpy(bunch.target[chosen]).long()


# ------------------------------------------------------------------------------------- binarized-mnist


def _binarized_mnist(split: str, places: Sequence[Path]) -> tuple[Tensor, Tensor]:
    packed = np.concatenate([_binarized_split(part, places) for part in split.split("+")])
    pixels = torch.from_numpy(np.unpackbits(packed, axis=1))  # (N, 784)
    return pixels.float().view(-1, 1, SIDE, SIDE), torch.full((len(packed),), -1)


def _binarized_split(split: str, places: Sequence[Path]) -> np.ndarray:
    """One split, bit-packed (N, 98): from a file, from the cache, or downloaded."""
    source = _find_amat(split, places)
    folder = _cache_folder() / "binarized_mnist"
    # Named by its source's bytes: another file in the same place never meets this one's cache.
    cached = folder / (f"{split}.bits" if source is None else f"{split}-{_file_digest(source)[:16]}.bits")
    packed = _read_packed(cached, split)
    if packed is not None:
        return packed
    packed = _download_split(split, folder) if source is None else _read_local(source, split)
    try:
        _write_whole(cached, packed.tobytes())
    except OSError as error:
        warnings.warn(f"{cached} could not be written ({error}); the next load will be slow again", stacklevel=2)
    return packed


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}", "Make it readable, or name another folder.") from None


def _find_amat(split: str, places: Sequence[Path]) -> Path | None:
    for place in places:
        for folder in (place, place / "binarized_mnist"):
            for ending in (".amat", ".amat.gz"):
                path = folder / f"binarized_mnist_{split}{ending}"
                if path.is_file():
                    return path
    return None


def _read_packed(path: Path, split: str) -> np.ndarray | None:
    """The cached split, or None where the cache cannot be read or is not whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if len(content) != BINARIZED_ROWS[split] * PACKED:
        return None
    packed = np.frombuffer(content, np.uint8).reshape(-1, PACKED)
    return packed if content_digest(packed) == BINARIZED_DIGESTS[split] else None


def _read_local(path: Path, split: str) -> np.ndarray:
    try:
        return _read_split(path, split)
    except ValueError as error:
        raise DataError(
            f"{path} is truncated or not the right file: {error}",
            "Delete it to have it downloaded, or put a whole copy in its place.",
        ) from None


def _read_split(path: Path, split: str) -> np.ndarray:
    """Read a file of the binarized set in any form it is found in, check it, and pack its bits.

    Raises:
        ValueError: saying what is wrong with the file.
    """
    pixels = _read_pixels(path, split)
    if len(pixels) != BINARIZED_ROWS[split]:
        raise ValueError(f"it has {len(pixels):,} images instead of {BINARIZED_ROWS[split]:,}")
    packed = np.packbits(pixels, axis=1)
    digest = content_digest(packed)
    if digest != BINARIZED_DIGESTS[split]:
        raise ValueError(
            f"its images are not those of the {split} split "
            f"(SHA-256 of the sorted rows {digest[:12]}..., expected {BINARIZED_DIGESTS[split][:12]}...)"
        )
    return packed


def _read_pixels(path: Path, split: str) -> np.ndarray:
    """The pixels (N, 784) uint8 of a text, gzip, MATLAB or NumPy file, told apart by their first bytes."""
    with path.open("rb") as file:
        start = file.read(10)
    try:
        if start == b"MATLAB 5.0":
            return _check_matrix(_read_matlab(path))
        if start.startswith(b"PK"):
            with np.load(path, allow_pickle=False) as arrays:
                return _check_matrix(arrays[f"{split}_data"])
        content = path.read_bytes()
        return parse_amat(gzip.decompress(content) if start.startswith(b"\x1f\x8b") else content)
    except (EOFError, KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(str(error)) from None


def _read_matlab(path: Path) -> np.ndarray:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return loadmat(path, appendmat=False, variable_names=["X"])["X"]
    except (MatReadError, TypeError, NotImplementedError) as error:
        raise ValueError(str(error)) from None


def _check_matrix(matrix: np.ndarray) -> np.ndarray:
    if matrix.ndim != 2 or matrix.shape[1] != PIXELS:
        raise ValueError(f"it holds a matrix of shape {matrix.shape} instead of (images, {PIXELS})")
    if not np.isin(matrix, (0, 1)).all():
        raise ValueError("it holds values other than 0 and 1")
    return np.ascontiguousarray(matrix, dtype=np.uint8)


def parse_amat(text: bytes) -> np.ndarray:
    """Parse one image a line, 784 values 0 or 1 with a blank between: (N, 784) uint8.

    Raises:
        ValueError: naming the first line that is not that.
    """
    lines = [line.rstrip() for line in text.rstrip().splitlines()]
    if not lines:
        raise ValueError("it is empty")
    for number, line in enumerate(lines, start=1):
        if len(line) != 2 * PIXELS - 1:
            raise ValueError(f"line {number:,} has {len(line.split())} values instead of {PIXELS}")
    # With a blank after the last value too, every value is a pair of bytes: "0 " or "1 ", read as one number.
    pairs = np.frombuffer(b" ".join([*lines, b""]), "<u2").reshape(-1, PIXELS)
    pixels = pairs - np.frombuffer(b"0 ", "<u2")  # what is below "0 " wraps around to a large value
    wrong = (pixels > 1).any(axis=1)
    if wrong.any():
        raise ValueError(f"line {wrong.argmax() + 1:,} holds something other than 0 and 1 with blanks between")
    return pixels.astype(np.uint8)


def _download_split(split: str, folder: Path) -> np.ndarray:
    urls = [source.format(split=split) for source in BINARIZED_SOURCES]
    named = os.environ.get("VNCA_DATA")
    there = f"the folder that VNCA_DATA names, now {named}" if named else "a folder that VNCA_DATA names"
    advice = f"Or put binarized_mnist_{split}.amat into {folder} or {there}."
    return _download(f"binarized-mnist ({split})", urls, folder, lambda path: _read_split(path, split), advice)


# ----------------------------------------------------------------------------------------- torchvision


def _torchvision(name: str, split: str, places: Sequence[Path]) -> tuple[Tensor, Tensor]:
    from torchvision import datasets

    dataset = getattr(datasets, TORCHVISION_CLASSES[name])
    files = [resource.removesuffix(".gz") for resource, _ in dataset.resources]
    held = [place for place in places if all((place / dataset.__name__ / "raw" / f).is_file() for f in files)]
    place = held[0] if held else places[-1]
    raw = place / dataset.__name__ / "raw"
    if not held:
        _download_idx(name, dataset, raw)
    expected = 10_000 if split == "test" else 60_000
    try:
        whole = dataset(place, train=split != "test", download=False)
        if whole.data.shape != (expected, SIDE, SIDE) or len(whole.targets) != expected:
            raise ValueError(f"its images have the shape {tuple(whole.data.shape)}")
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"the files of {name} in {raw} are truncated or wrong: {error}",
            "Delete them to have them downloaded, or put whole copies in their place.",
        ) from None
    part = {"train": slice(0, 50_000), "valid": slice(50_000, None)}.get(split, slice(None))
    return whole.data[part, None].float() / 255, whole.targets[part].long()


def _download_idx(name: str, dataset: type, raw: Path) -> None:
    """Download what ``dataset`` names, from its mirrors, and unpack it.

    Torchvision's own download waits without limit for a host that is silent, so only its list is used.
    """
    for filename, md5 in dataset.resources:
        target = raw / filename.removesuffix(".gz")
        if target.is_file():
            continue

        def unpack(path: Path, md5: str = md5) -> bytes:
            content = path.read_bytes()
            if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
                raise ValueError("the file came truncated or wrong")
            return gzip.decompress(content)

        urls = [mirror + filename for mirror in dataset.mirrors]
        advice = f"Or put the files of torchvision's {dataset.__name__} into {raw}."
        _write_whole(target, _download(f"{name} ({filename})", urls, raw, unpack, advice))


# ------------------------------------------------------------------------------------------- downloads


def _download(what: str, urls: Sequence[str], folder: Path, accept: Callable[[Path], T], advice: str) -> T:
    """Download from the first of ``urls`` whose file ``accept`` takes, and return what it made of the file.

    ``accept`` raises ValueError for a file that is truncated or wrong.

    Raises:
        DataError: one line with what went wrong at each source, and what to do.
    """
    built_in = 'The built-in data set is always there: load("digits", ...).'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise DataError(
            f"{what} could not be downloaded, because the cache folder {folder} cannot be written: {error}",
            f"Point XDG_CACHE_HOME at a folder that can be written. {built_in}",
        ) from None
    answering, problems = _answering(urls)
    for url in answering:
        try:
            with _downloaded(url, folder, what) as path:
                return accept(path)
        except (OSError, http.client.HTTPException, ValueError) as error:
            problems[url] = _brief(error)
    told = "; ".join(f"{urllib.parse.urlsplit(url).hostname}: {problem}" for url, problem in problems.items())
    outcome = "no source gave a usable file" if answering else "no source answered"
    raise DataError(
        f"{what} could not be downloaded: {outcome}",
        f"Check the network and try again. {advice} {built_in} What went wrong: {told}.",
    )


def _answering(urls: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Ask all hosts at once; return the URLs that answered and what was wrong with the others.

    In threads, because the look-up of a host's name knows no time limit.
    """
    answers: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()

    def ask(url: str) -> None:
        try:
            _open(url, "HEAD", ANSWER_SECONDS).close()
        except urllib.error.HTTPError as error:
            error.close()  # an answer all the same: the download itself will tell
        except (OSError, http.client.HTTPException) as error:
            answers.put((url, _brief(error)))
            return
        answers.put((url, None))

    threads = [threading.Thread(target=ask, args=(url,), daemon=True) for url in urls]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + ANSWER_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    outcomes: dict[str, str | None] = dict.fromkeys(urls, f"no answer in {ANSWER_SECONDS:g} s")
    outcomes.update(answers.get() for _ in range(answers.qsize()))
    answering = [url for url, problem in outcomes.items() if problem is None]
    return answering, {url: problem for url, problem in outcomes.items() if problem is not None}


@contextmanager
def _downloaded(url: str, folder: Path, what: str) -> Iterator[Path]:
    """Download to a file with a name of its own in ``folder``, which is gone again afterwards."""
    from tqdm import tqdm

    handle, name = tempfile.mkstemp(prefix="download-", dir=folder)
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as file, _open(url, "GET", READ_SECONDS) as response:
            length = response.length
            # disable=None: no bar where there is no terminal, so none in a log or a built page.
            with tqdm(desc=what, total=length, unit="B", unit_scale=True, leave=False, disable=None) as bar:
                while chunk := response.read(1 << 16):
                    file.write(chunk)
                    bar.update(len(chunk))
            if length is not None and file.tell() != length:
                raise ConnectionError(f"the download stopped after {file.tell():,} of {length:,} bytes")
        yield path
    finally:
        path.unlink(missing_ok=True)


def _open(url: str, method: str, timeout: float) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "vnca"}, method=method)
    return urllib.request.urlopen(request, timeout=timeout)


def _brief(error: Exception) -> str:
    """A few words for an error of the network or of a file."""
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__


def _write_whole(path: Path, content: bytes) -> None:
    """Write the file and its folder: under that name it is always a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as beside:
        beside.write_bytes(content)
