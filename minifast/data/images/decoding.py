"""Pictures in folders: found, decoded once into one tensor, kept for the next process, or read as they are needed."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minifast.data.download import home
from minifast.data.images import cache
from minifast.errors import DataError
from minifast.utils.checks import check_count, check_folder

SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in "avif bmp gif ico jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tif tiff webp".split()  # noqa: SIM905
)


BUDGET = 2 * 2**30  # bytes of decoded pictures that are held in memory unless told otherwise


TINY = 16 * 2**10  # bytes of a file below which the interpreter's lock makes threads slower than none


UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # an EXIF orientation, and the PIL Transpose that undoes it


Size = int | tuple[int, int] | None


def get_image_files(c: str | Path, check_ext: bool = True, recurse: bool = False) -> list[Path]:
    """Return the pictures in the folder ``c``, sorted by name; with ``recurse``, those in its folders too.

    Raises:
        DataError: there is no such folder.
    """
    return [Path(name) for name, _, _ in list_images(check_folder(Path(c)), recurse, check_ext)]


def list_images(folder: str | Path, recurse: bool, check_ext: bool = True) -> list[tuple[str, int, int]]:
    """Return name, size in bytes and time of change of each picture in a folder, sorted by name."""
    found = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                found += list_images(entry.path, recurse, check_ext) if recurse else []
            elif not check_ext or os.path.splitext(entry.name)[1].lower() in SUFFIXES:  # noqa: PTH122 - many files
                try:
                    status = entry.stat()
                except FileNotFoundError as error:
                    raise DataError(f"{entry.path} is a link that leads nowhere; mend or remove it.") from error
                found.append((entry.path, status.st_size, status.st_mtime_ns))
    return found


class ImageFiles:
    """Picture files with a label each, and what tells whether they changed: each file's name, size and time.

    Args:
        name: what the set is called in the cache.
        size: height and width to crop and scale to, or one number for both; None where all files have one size.
    """

    def __init__(self, name: str, size: Size = None) -> None:
        self.name = name
        self.size = check_size(size)
        self.reference: tuple[str, int, int] | None = None
        self.listing: list[tuple[str, int, int]] = []
        self.labels: Any = []  # a list of class numbers, or a tensor with a target a row

    def add(self, listing: Iterable[tuple[str, int, int]], label: int) -> None:
        """Add files of one label."""
        before = len(self.listing)
        self.listing += listing
        self.labels += [label] * (len(self.listing) - before)

    def chosen(self, indices: Iterable[int]) -> ImageFiles:
        """Return some of the files as a set of their own, to be read as they are needed."""
        part = ImageFiles(self.name, self.size)
        chosen = list(indices)
        part.listing = [self.listing[i] for i in chosen]
        part.labels = self.labels[chosen] if isinstance(self.labels, Tensor) else [self.labels[i] for i in chosen]
        return part

    def __getstate__(self) -> dict[str, Any]:
        # A worker process reads files; it is not to be sent the decoded pictures.
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, i: int) -> tuple[Tensor, Any]:
        """Return a picture, uint8 ``(channels, height, width)``, and its label; for torch's DataLoader."""
        picture = read_image(self.listing[i][0], self.size)
        check_same_size(self.first(), self.listing[i][0], picture)
        return torch.from_numpy(np.broadcast_to(picture, (3, *picture.shape[1:])).copy()), self.labels[i]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return all pictures, uint8 ``(n, channels, height, width)``, and labels, from the cache where they lie there.

        Raises:
            DataError: a file is no picture or is cut off, or the sizes differ and no ``size`` was given.
        """
        if self._kept is None:
            with cache.CacheWriter(self._file, self._fingerprint) as copy:
                self._kept = decode([name for name, _, _ in self.listing], self.size, self._threads(), copy)
        check_same_size(self.first(), self.listing[0][0], self._kept[0])
        return self._kept, torch.as_tensor(self.labels, dtype=None if len(self.labels) else torch.int64)

    @cached_property
    def _file(self) -> Path | None:
        return _cache_file(f"{self.name} {self.size}")

    @cached_property
    def _fingerprint(self) -> str:
        return _digest(repr((self.listing, self.size, "upright")))  # changed whenever pixels are read otherwise

    @cached_property
    def _kept(self) -> Tensor | None:
        return cache.read(self._file, self._fingerprint)

    def first(self) -> tuple[str, int, int]:
        """Return the name, height and width of the picture whose size all must have, by default the first."""
        if self.reference is None:
            name = self.listing[0][0]
            height, width = (read_image(name, self.size) if self._kept is None else self._kept[0]).shape[1:]
            self.reference = name, height, width
        return self.reference

    def bytes_decoded(self) -> int:
        """Return how many bytes the decoded pictures take at the most, which is when one of them has colours."""
        if not len(self):
            return 0
        _, height, width = self.first()
        return len(self) * 3 * height * width

    def _threads(self) -> int:
        mean = sum(size for _, size, _ in self.listing) / max(1, len(self))
        return 1 if mean < TINY else (os.cpu_count() or 1)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def check_size(size: Any) -> tuple[int, int] | None:
    """Return ``size`` as (height, width), or None.

    Raises:
        TypeError, ValueError: it is neither a whole number of 1 or more nor a pair of them.
    """
    if size is None or isinstance(size, int):
        return None if size is None else (check_count("size", size), size)
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise TypeError(f"size is {size!r}; it must be a whole number or a pair (height, width).")
    height, width = (check_count("each of size", side) for side in size)
    return height, width


def check_same_size(first: tuple[str, int, int], name: str, picture: Any) -> None:
    """Refuse a picture ``(channels, height, width)`` that has not the first one's size."""
    reference, height, width = first
    if tuple(picture.shape[1:]) != (height, width):
        h, w = picture.shape[1:]
        raise DataError(
            f"{reference} is {width}×{height} pixels and {name} is {w}×{h}; give a size for all, such as size=224."
        )


def _cache_file(name: str) -> Path | None:
    try:
        return home() / "cache" / f"{_digest(name)}.pictures"
    except RuntimeError:  # a machine where the user has no home
        return None


def read_image(file: Any, size: tuple[int, int] | None = None) -> np.ndarray[Any, Any]:
    """Decode one picture, a file or a PIL image, to uint8 ``(channels, height, width)``; 1 channel for grey, else 3.

    ``size`` crops the middle in the wanted proportions and scales it.

    Raises:
        DataError: the file is no picture, is cut off, or has more than 8 bits a channel.
    """
    from PIL import Image

    try:
        if isinstance(file, Image.Image):
            return _pixels(file, size, "The picture")
        with Image.open(file if hasattr(file, "read") else _content(file)) as image:
            return _pixels(image, size, str(file))
    except DataError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file {file}; check the path.") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} is not a picture that can be read, or it is cut off; replace or remove it.") from error


def _content(file: Any) -> io.BytesIO:
    # In one piece and without a buffer or a Path on the way: of a tiny file, opening is a third of the work.
    with open(file, "rb", buffering=0) as stream:  # noqa: PTH123
        return io.BytesIO(stream.readall())


def _pixels(image: Any, size: tuple[int, int] | None, name: str) -> np.ndarray[Any, Any]:
    image.load()  # first, for some files have the note on how they are held behind the pixels
    orientation = _orientation(image)
    if image.mode not in ("L", "RGB"):
        if image.mode.startswith(("I", "F")):
            raise DataError(f"{name} has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits first.")
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        image = image.convert("L" if image.mode == "1" else "RGB")  # what is transparent keeps its colour
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    if size is not None:
        from PIL import Image, ImageOps

        image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _orientation(image: Any) -> Any:
    # How a camera was held; where nothing was noted, which is most often, nothing is parsed.
    if "exif" not in image.info:
        return None
    try:
        return image.getexif().get(274)
    except Exception:  # whatever a damaged note raises, the pixels may be whole
        return None


def decode(
    names: Sequence[str],
    size: tuple[int, int] | None = None,
    threads: int = 1,
    arrived: Callable[[np.ndarray[Any, Any], int], None] = lambda pictures, n: None,
) -> Tensor:
    """Decode pictures into one tensor, uint8 ``(n, channels, height, width)``; 1 channel where all are grey.

    ``arrived`` is called with the array, and how many pictures at its beginning are decoded.

    Raises:
        DataError: a file is no picture or is cut off, or the sizes differ and no ``size`` is given.
    """
    first = read_image(names[0], size)
    pictures = np.empty((len(names), *first.shape), np.uint8)

    def place(i: int, picture: np.ndarray[Any, Any]) -> None:
        nonlocal pictures
        check_same_size((names[0], *pictures.shape[2:]), names[i], picture)
        if len(picture) > pictures.shape[1]:
            pictures = np.repeat(pictures, len(picture), axis=1)
        pictures[i] = picture
        arrived(pictures, i + 1)

    if threads == 1:
        for i, name in enumerate(names):
            place(i, read_image(name, size))
    else:
        with ThreadPoolExecutor(threads) as pool:
            try:
                # The threads put the pixels into order too: channel by channel is ten times the work of a plain copy.
                found = pool.map(lambda name: np.ascontiguousarray(read_image(name, size)), names)
                for i, picture in enumerate(found):
                    place(i, picture)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return torch.from_numpy(pictures)
