"""Image files: find them, decode them once into one cached tensor, or read them batch by batch."""

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

from minifast.data.images import cache
from minifast.errors import DataError
from minifast.utils.checks import check_count, check_folder, shown
from minifast.utils.folders import cache_file

SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in "avif bmp gif ico jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tif tiff webp".split()  # noqa: SIM905
)


BUDGET = 2 * 2**30  # default limit of decoded images in memory, in bytes


TINY = 16 * 2**10  # bytes; for files smaller than this, threads are slower than none, due to the interpreter's lock


UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation to the PIL transpose that undoes it


Size = int | tuple[int, int] | None


def get_image_files(c: str | Path, check_ext: bool = True, recurse: bool = False) -> list[Path]:
    """Return the image files in a folder, sorted by name.

    Args:
        c: the folder.
        check_ext: only files with the extension of an image format.
        recurse: also search the folders inside.

    Raises:
        DataError: if there is no such folder.
    """
    return [Path(name) for name, _, _ in list_images(check_folder(Path(c)), recurse, check_ext)]


def list_images(folder: str | Path, recurse: bool, check_ext: bool = True) -> list[tuple[str, int, int]]:
    """Return path, size in bytes and modification time in ns of each image file in a folder, sorted by name."""
    return _list_images(os.fspath(folder), recurse, check_ext, ())


def _list_images(folder: str, recurse: bool, check_ext: bool, above: tuple[str, ...]) -> list[tuple[str, int, int]]:
    listing = []
    real = (*above, os.path.realpath(folder)) if recurse else above
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():  # noqa: PTH112 - many files
                loops = recurse and entry.is_symlink() and os.path.realpath(entry.path) in real
                if recurse and not loops:
                    listing += _list_images(entry.path, recurse, check_ext, real)
            elif not check_ext or os.path.splitext(entry.name)[1].lower() in SUFFIXES:  # noqa: PTH122 - many files
                try:
                    status = entry.stat()
                except OSError as error:
                    if not entry.is_symlink():
                        continue  # removed since the folder was read
                    raise DataError(f"{entry.path} is a broken link. Repair or remove it.") from error
                listing.append((entry.path, status.st_size, status.st_mtime_ns))
    return listing


class ImageFiles:
    """Data set of labeled image files; sizes and modification times tell whether the cached pixels are up to date.

    Args:
        name: name of the set in the cache.
        size: height and width to crop and resize to, or one number for both; None if all files have the same size.
    """

    def __init__(self, name: str, size: Size = None) -> None:
        self.name = name
        self.size = check_size(size)
        self.reference: tuple[str, int, int] | None = None
        self.listing: list[tuple[str, int, int]] = []
        self.labels: Any = []  # class indices, or a tensor with one target per row

    def add(self, listing: Iterable[tuple[str, int, int]], label: int) -> None:
        """Add files with the same label."""
        before = len(self.listing)
        self.listing += listing
        self.labels += [label] * (len(self.listing) - before)

    def subset(self, indices: Iterable[int]) -> ImageFiles:
        """Return the files at ``indices`` as a data set of their own."""
        subset = ImageFiles(self.name, self.size)
        rows = list(indices)
        subset.listing = [self.listing[i] for i in rows]
        subset.labels = self.labels[rows] if isinstance(self.labels, Tensor) else [self.labels[i] for i in rows]
        return subset

    @property
    def items(self) -> list[Path]:
        """The paths of the files, in the order of the samples."""
        return [Path(name) for name, _, _ in self.listing]

    def __getstate__(self) -> dict[str, Any]:
        # A worker process reads files, so do not send it the decoded images.
        return {name: value for name, value in self.__dict__.items() if name != "_pixels"}

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, i: int) -> tuple[Tensor, Any]:
        """Return an image, uint8 ``(3, height, width)``, and its label."""
        image = read_listed(self.listing[i][0], self.size)
        check_same_size(self.reference_size(), self.listing[i][0], image)
        return torch.from_numpy(np.broadcast_to(image, (3, *image.shape[1:])).copy()), self.labels[i]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return all images, uint8 ``(n, channels, height, width)``, and labels; from the cache if it is up to date.

        Raises:
            DataError: if a file is not an image or is truncated, or the sizes differ and there is no ``size``.
        """
        if self._pixels is None:
            with cache.CacheWriter(self._file, self._fingerprint) as writer:
                self._pixels = decode([name for name, _, _ in self.listing], self.size, self._threads(), writer)
        check_same_size(self.reference_size(), self.listing[0][0], self._pixels[0])
        return self._pixels, torch.as_tensor(self.labels, dtype=None if len(self.labels) else torch.int64)

    @cached_property
    def _file(self) -> Path | None:
        return _cache_file(f"{self.name} {self.size}")

    @cached_property
    def _fingerprint(self) -> str:
        return _digest(repr((self.listing, self.size, "upright")))  # change the word when decoding changes

    @cached_property
    def _pixels(self) -> Tensor | None:
        return cache.read_cache(self._file, self._fingerprint)

    def reference_size(self) -> tuple[str, int, int]:
        """Return name, height and width of the image whose size all must have; by default the first."""
        if self.reference is None:
            name = self.listing[0][0]
            height, width = (read_listed(name, self.size) if self._pixels is None else self._pixels[0]).shape[1:]
            self.reference = name, height, width
        return self.reference

    def decoded_bytes(self) -> int:
        """Return the bytes that the decoded images need if at least one of them has color."""
        if not len(self):
            return 0
        _, height, width = self.reference_size()
        return len(self) * 3 * height * width

    def _threads(self) -> int:
        mean = sum(size for _, size, _ in self.listing) / max(1, len(self))
        return 1 if mean < TINY else (os.cpu_count() or 1)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]  # file names need not be UTF-8


def check_size(size: Any) -> tuple[int, int] | None:
    """Return ``size`` as (height, width), or None.

    Raises:
        TypeError: if it is neither an integer nor a pair of integers.
        ValueError: if it is less than 1.
    """
    if size is None or isinstance(size, int):
        return None if size is None else (check_count("size", size), size)
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise TypeError(f"`size` must be an integer or a pair (height, width), got {shown(size)}.")
    height, width = (check_count("each of size", side) for side in size)
    return height, width


def check_same_size(reference: tuple[str, int, int], name: str, image: Any) -> None:
    """Raise a DataError if an image ``(channels, height, width)`` differs in size from the reference."""
    reference_name, height, width = reference
    if tuple(image.shape[1:]) != (height, width):
        h, w = image.shape[1:]
        raise DataError(
            f"Images must have the same size, but {reference_name} is {width}×{height} pixels and {name} is {w}×{h}.",
            hint="Give a size to resize all to, such as size=224.",
            cli_hint="Give a size to resize all to, such as --size 224.",
        )


def _cache_file(name: str) -> Path | None:
    try:
        return cache_file(_digest(name))
    except RuntimeError:  # the user has no home folder
        return None


def read_image(file: Any, size: tuple[int, int] | None = None) -> np.ndarray[Any, Any]:
    """Decode an image to uint8 ``(channels, height, width)``, with 1 channel for grayscale and else 3.

    Args:
        file: a path, an open file, or a PIL image.
        size: (height, width); the center is cropped to this aspect ratio and resized.

    Raises:
        DataError: if the file is not an image, is truncated, or has more than 8 bits per channel.
        FileNotFoundError: if there is no such file.
    """
    from PIL import Image

    try:
        if isinstance(file, Image.Image):
            return _to_array(file, size, "The image")
        with Image.open(file if hasattr(file, "read") else _content(file)) as image:
            return _to_array(image, size, str(file))
    except DataError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file {file}. Check the path.") from error
    except PermissionError as error:
        raise DataError(f"{file} cannot be opened ({error.strerror}). Change its permissions, or remove it.") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} is not a readable image, or it is truncated. Replace or remove it.") from error


def read_listed(file: str, size: tuple[int, int] | None = None) -> np.ndarray[Any, Any]:
    """Decode a file of a data set as ``read_image`` does.

    Raises:
        DataError: also if the file was removed since the folder was read.
    """
    try:
        return read_image(file, size)
    except FileNotFoundError as error:
        raise DataError(f"{file} was removed after the data set was made. Make the data set again.") from error


def _content(file: Any) -> io.BytesIO:
    # One read without buffer or Path: for tiny files, opening takes a third of the time.
    with open(file, "rb", buffering=0) as stream:  # noqa: PTH123
        return io.BytesIO(stream.readall())


def _to_array(image: Any, size: tuple[int, int] | None, name: str) -> np.ndarray[Any, Any]:
    image.load()  # first, because some formats store the orientation after the pixels
    orientation = _orientation(image)
    if image.mode not in ("L", "RGB"):
        if image.mode.startswith(("I", "F")):
            raise DataError(f"{name} has more than 8 bits per channel (mode {image.mode}). Convert it to 8 bits.")
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        image = image.convert("L" if image.mode == "1" else "RGB")  # transparent pixels keep their color
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    if size is not None:
        from PIL import Image, ImageOps

        image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _orientation(image: Any) -> Any:
    # Most files have no EXIF data, and then nothing is parsed.
    if "exif" not in image.info:
        return None
    try:
        return image.getexif().get(274)
    except Exception:  # the EXIF data may be damaged and the pixels intact
        return None


def decode(
    names: Sequence[str],
    size: tuple[int, int] | None = None,
    threads: int = 1,
    on_decoded: Callable[[np.ndarray[Any, Any], int], None] = lambda images, n: None,
) -> Tensor:
    """Decode images into one tensor, uint8 ``(n, channels, height, width)``, with 1 channel if all are grayscale.

    Args:
        names: paths of the files.
        size: (height, width) to crop and resize to.
        threads: number of threads.
        on_decoded: called after each image with the array and the number of images decoded so far.

    Raises:
        DataError: if a file is not an image or is truncated, or the sizes differ and there is no ``size``.
    """
    first = read_listed(names[0], size)
    images = np.empty((len(names), *first.shape), np.uint8)

    def store(i: int, image: np.ndarray[Any, Any]) -> None:
        nonlocal images
        check_same_size((names[0], *images.shape[2:]), names[i], image)
        if len(image) > images.shape[1]:
            images = np.repeat(images, len(image), axis=1)
        images[i] = image
        on_decoded(images, i + 1)

    if threads == 1:
        for i, name in enumerate(names):
            store(i, read_listed(name, size))
    else:
        with ThreadPoolExecutor(threads) as pool:
            try:
                # The threads also reorder the pixels: channels first takes ten times as long as a plain copy.
                decoded = pool.map(lambda name: np.ascontiguousarray(read_listed(name, size)), names)
                for i, image in enumerate(decoded):
                    store(i, image)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return torch.from_numpy(images)
