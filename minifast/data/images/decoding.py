"""Image files: find them, decode them once into one cached tensor, or read them batch by batch."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minifast.data.images import cache
from minifast.data.images.conversion import (
    COLOR,
    DRAFTED,
    REMEDY,
    Pixels,
    UnreadableImageError,
    ValueRangeError,
    to_array,
)
from minifast.data.images.listing import get_image_files
from minifast.data.images.quick_jpeg import has_kernel
from minifast.data.images.resizing import METHODS, Size, check_same_size, check_size
from minifast.data.images.unreadable import unreadable_error, with_range
from minifast.errors import DataError
from minifast.utils.checks import check_word
from minifast.utils.folders import cache_file
from minifast.utils.memory import keep_freed_memory

OTHERS = "minifast.data.verify_images finds all such files, and on_bad_image='skip' leaves them out."
BUDGET = 2 * 2**30  # default limit of decoded images in memory, in bytes
MOST_IN_TASK = 16  # images that a thread decodes as one task
TINY = 16 * 2**10  # bytes; for files smaller than this, threads are slower than none, due to the interpreter's lock


class ImageFiles:
    """Data set of labeled image files; sizes and modification times tell whether the cached pixels are up to date.

    Args:
        name: name of the set in the cache.
        size: height and width to resize to, or one number for both; None if all files have the same size.
        resize: ``"crop"``, ``"squish"`` or ``"pad"``, see ``resize_image``.
        pixels: what the pixels become.
    """

    def __init__(self, name: str, size: Size = None, resize: str = "crop", pixels: Pixels = COLOR) -> None:
        self.name, self.pixels = name, pixels
        self.size = check_size(size)
        self.resize = check_word("resize", resize, METHODS)
        if size is None and resize != "crop":
            raise ValueError(
                f"`resize` is {resize!r}, but there is no `size` to resize to; give one, such as size=224."
            )
        self.reference: tuple[str, int, int] | None = None
        self.others: list[ImageFiles] = []  # the other parts of the data
        self.listing: list[tuple[str, int, int]] = []
        self.labels: Any = []  # class indices, or a tensor with one target per row

    def add(self, listing: Iterable[tuple[str, int, int]], label: int) -> None:
        """Add files with the same label."""
        self.listing += listing
        self.labels += [label] * (len(self.listing) - len(self.labels))

    def subset(self, indices: Iterable[int]) -> ImageFiles:
        """Return the files at ``indices`` as a data set of their own."""
        subset = ImageFiles(self.name, self.size, self.resize, self.pixels)
        rows = list(indices)
        subset.listing = [self.listing[i] for i in rows]
        subset.labels = self.labels[rows] if isinstance(self.labels, Tensor) else [self.labels[i] for i in rows]
        return subset

    @property
    def items(self) -> list[Path]:
        """The paths of the files, in the order of the samples."""
        return [Path(name) for name, _, _ in self.listing]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images)"

    def __getstate__(self) -> dict[str, Any]:
        # A worker process reads the files of this part, so do not send it the decoded images and other parts.
        return {name: value for name, value in self.__dict__.items() if name not in ("_pixels", "others")}

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, i: int) -> tuple[Tensor, Any]:
        """Return an image, uint8 ``(channels, height, width)``, and its label."""
        image, label = self._sample(i)
        return image.contiguous(), label

    def __getitems__(self, rows: Iterable[int]) -> list[tuple[Tensor, Any]]:
        """Return several samples for torch's DataLoader, which copies them into a batch."""
        return [self._sample(i) for i in rows]

    def _sample(self, i: int) -> tuple[Tensor, Any]:
        try:
            image = self._read(self.listing[i][0])
        except ValueRangeError as error:
            raise with_range(error, [name for name, _, _ in self.listing]) from error
        except UnreadableImageError as error:
            raise DataError(f"{error} {OTHERS}") from error  # only its class comes back from a worker
        check_same_size(self.reference_size(), self.listing[i][0], image)
        channels = 1 if self.pixels.mask else self.pixels.channels
        image = image if len(image) == channels else np.repeat(image, channels, axis=0)
        return torch.from_numpy(np.require(image, requirements=["W"])), self.labels[i]

    def _read(self, name: str) -> np.ndarray[Any, Any]:
        return read_listed(name, self.size, self.resize, self.pixels)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return all images, uint8 ``(n, channels, height, width)``, and labels; from the cache if it is up to date.

        Raises:
            DataError: if a file is not an image or is truncated, or the sizes differ and there is no ``size``.
        """
        if self._pixels is None:
            with cache.CacheWriter(self._file, self._fingerprint) as writer:
                names = [name for name, _, _ in self.listing]
                try:
                    self._pixels = decode(names, self.size, self._threads(), writer, self.resize, self.pixels)
                except UnreadableImageError as error:
                    raise all_unreadable(self.all_names(), error, self.pixels) from error
        check_same_size(self.reference_size(), self.listing[0][0], self._pixels[0])
        return self._pixels, torch.as_tensor(self.labels, dtype=None if len(self.labels) else torch.int64)

    @cached_property
    def _file(self) -> Path | None:
        return cache_file_of(f"{self.name} {self.size}{'' if self.resize == 'crop' else self.resize}{self.pixels}")

    @cached_property
    def _fingerprint(self) -> str:
        is_full = self.size is None or self.pixels.exact or self.pixels.mask
        quick = " and quick" if has_kernel() else ""  # pixels depend on the processor
        # Change the words when decoding changes.
        way = "upright by EXIF or XMP" + ("" if is_full else f", smaller JPEG, crops from whole pixels{quick}")
        return digest(repr((self.listing, self.size, way)))

    @cached_property
    def _pixels(self) -> Tensor | None:
        return cache.read_cache(self._file, self._fingerprint)

    def reference_size(self) -> tuple[str, int, int]:
        """Return name, height and width of the image whose size all must have; by default the first."""
        if self.reference is None:
            name = self.listing[0][0]
            try:
                height, width = (self._read(name) if self._pixels is None else self._pixels[0]).shape[1:]
            except UnreadableImageError as error:
                raise all_unreadable(self.all_names(), error, self.pixels) from error
            self.reference = name, height, width
        return self.reference

    def sets(self) -> list[ImageFiles]:
        """Return the sets of files that this one reads: itself."""
        return [self]

    def all_names(self) -> list[str]:
        """Return the files of all parts of the data."""
        return [name for files in (self, *self.others) for name, _, _ in files.listing]

    def decoded_bytes(self) -> int:
        """Return the bytes that the decoded images need if at least one of them has color."""
        if not len(self):
            return 0
        _, height, width = self.reference_size()
        return len(self) * (1 if self.pixels.mask else self.pixels.channels) * height * width

    def _threads(self) -> int:
        mean = sum(size for _, size, _ in self.listing) / max(1, len(self))
        return 1 if mean < TINY else (os.cpu_count() or 1)


def digest(text: str) -> str:
    """Return 32 hexadecimal digits for a text."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]  # file names need not be UTF-8


def cache_file_of(name: str) -> Path | None:
    """Return the cache file of the set called ``name``, None for a user without a home folder."""
    try:
        return cache_file(digest(name))
    except RuntimeError:  # the user has no home folder
        return None


def read_image(
    file: Any, size: tuple[int, int] | None = None, resize: str = "crop", pixels: Pixels = COLOR
) -> np.ndarray[Any, Any]:
    """Decode an image to uint8 ``(channels, height, width)``, with 1 channel for grayscale and else 3.

    Args:
        file: a path, an open file, or a PIL image.
        size: (height, width) to resize to.
        resize: ``"crop"``, ``"squish"`` or ``"pad"``, see ``resize_image``.
        pixels: what the pixels become.

    Raises:
        DataError: if the file is not an image, is truncated, or its values are outside of the expected range.
        FileNotFoundError: if there is no such file.
    """
    from PIL import Image

    try:
        if isinstance(file, Image.Image):
            return to_array(_opened_again(file), size, resize, pixels, "The image")
        image = Image.open(file if hasattr(file, "read") else _content(file))  # which has no descriptor to close
        return to_array(image, size, resize, pixels, file)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file {file}. Check the path.") from error
    except (IsADirectoryError, PermissionError) as error:
        if Path(file).is_dir():  # Windows has no permission to open one
            raise DataError(
                f"{file} is a folder, and an image is needed. Pass the path of one file. For all images in the folder, "
                f"call load_learner(export, test=get_image_files({str(file)!r})) and get_preds(DatasetType.Test)."
            ) from error
        raise UnreadableImageError(
            f"{file} cannot be opened ({error.strerror}). Change its permissions, or remove it."
        ) from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(
            f"{file} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, which Pillow refuses, because a small "
            f"file could fill the memory. Make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UnreadableImageError(f"{file} is not a readable image, or it is truncated. {REMEDY}") from error


def _opened_again(image: Any) -> Any:
    """Return a JPEG image that is not decoded yet as another one, which may be decoded smaller.

    So a path and ``Image.open(path)`` give the same pixels. The caller's image is decoded in full and closes its file.
    """
    from PIL import Image

    if getattr(image, "tile", ()) and image.fp is None:
        raise DataError("The image is closed and was never decoded. Pass it while it is open, or pass its path.")
    if image.format not in DRAFTED or not image.tile or image.decoderconfig or image.tell():
        return image
    image.fp.seek(0)
    again = Image.open(io.BytesIO(image.fp.read()))
    image.load()
    return again


def read_listed(
    file: str, size: tuple[int, int] | None = None, resize: str = "crop", pixels: Pixels = COLOR
) -> np.ndarray[Any, Any]:
    """Decode a file of a data set as ``read_image`` does.

    Raises:
        DataError: also if the file was removed since the folder was read.
    """
    try:
        return read_image(file, size, resize, pixels)
    except FileNotFoundError as error:
        raise DataError(f"{file} was removed after the data set was made. Make the data set again.") from error


def verify_images(files: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return the image files that cannot be decoded: broken, truncated, or with values outside of their range.

    Args:
        files: a folder, which is searched recursively, or the files.

    Raises:
        DataError: if there is no such folder.

    >>> verify_images([])
    []
    """
    if isinstance(files, (str, Path)):
        files = get_image_files(files, recurse=True)
    names = [os.fspath(file) for file in files]
    return [Path(names[i]) for i in decoding_errors(names)]


def decoding_errors(names: Sequence[str], pixels: Pixels = COLOR) -> dict[int, Exception]:
    """Return the errors of the files that cannot be decoded, by their positions."""

    def error_of(file: str) -> Exception | None:
        try:
            read_image(file, pixels=pixels)
        except (UnreadableImageError, FileNotFoundError) as error:
            return error.with_traceback(None)
        return None

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return {i: error for i, error in enumerate(pool.map(error_of, names)) if error is not None}


def all_unreadable(names: Sequence[str], first: UnreadableImageError, pixels: Pixels) -> DataError:
    """Return the error for all files that cannot be read, one of which raised ``first``."""
    if isinstance(first, ValueRangeError):
        return with_range(first, names)
    return unreadable_error(names, decoding_errors(names, pixels), first)


def _content(file: Any) -> io.BytesIO:
    # One read without buffer or Path: for tiny files, opening takes a third of the time.
    with open(file, "rb", buffering=0) as stream:  # noqa: PTH123
        return io.BytesIO(stream.readall())


def decode(
    names: Sequence[str],
    size: tuple[int, int] | None = None,
    threads: int = 1,
    on_decoded: Callable[[np.ndarray[Any, Any], int], None] = lambda images, n: None,
    resize: str = "crop",
    pixels: Pixels = COLOR,
) -> Tensor:
    """Decode images into one tensor, uint8 ``(n, channels, height, width)``, with 1 channel if all are grayscale.

    Args:
        names: paths of the files.
        size: (height, width) to resize to.
        threads: number of threads.
        on_decoded: called after each image with the array and the number of images decoded so far.
        resize: ``"crop"``, ``"squish"`` or ``"pad"``, see ``resize_image``.
        pixels: what the pixels become.

    Raises:
        DataError: if a file is not an image or is truncated, or the sizes differ and there is no ``size``.
    """
    keep_freed_memory()
    first = read_listed(names[0], size, resize, pixels)
    images = np.empty((len(names), *first.shape), np.uint8)
    # Several images each, because the main thread, when it takes a result, stops those that decode.
    share = max(1, min(MOST_IN_TASK, len(names) // (4 * threads)))
    tasks = [range(i, min(i + share, len(names))) for i in range(0, len(names), share)]
    stopped = threading.Event()

    def read(task: range) -> tuple[np.ndarray[Any, Any], dict[int, np.ndarray[Any, Any] | Exception]]:
        """Store the images of a task up to its first error; return the array, and what does not fit into it."""
        into = images
        others: dict[int, np.ndarray[Any, Any] | Exception] = {}
        for i in task:
            if stopped.is_set():
                break
            try:
                image = read_listed(names[i], size, resize, pixels) if i else first
            except Exception as error:  # raised at its place in the order
                others[i] = error
                break
            if image.shape[1:] == into.shape[2:] and len(image) <= into.shape[1]:
                into[i] = image
            else:
                others[i] = image
        return into, others

    def store(i: int, image: np.ndarray[Any, Any] | Exception) -> None:
        nonlocal images
        if isinstance(image, Exception):
            raise image
        check_same_size((names[0], *images.shape[2:]), names[i], image)
        if len(image) > images.shape[1]:
            images = np.repeat(images, len(image), axis=1)
        images[i] = image

    with ThreadPoolExecutor(threads) as pool:
        try:
            results = pool.map(read, tasks) if threads > 1 else map(read, tasks)
            for task, (into, others) in zip(tasks, results, strict=True):
                if into is not images:  # one of fewer channels
                    images[task.start : task.stop] = into[task.start : task.stop]
                for i in task:
                    if i in others:
                        store(i, others[i])
                    on_decoded(images, i + 1)
        except BaseException:
            stopped.set()  # each thread finishes its image, not its task
            pool.shutdown(cancel_futures=True)
            raise
    return torch.from_numpy(images)
