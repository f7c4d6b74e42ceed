"""Image files: find them, decode them once into one cached tensor, or read them batch by batch."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain
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
from minifast.data.images.listing import list_images
from minifast.data.images.quick_resize import has_kernel
from minifast.data.images.resizing import METHODS
from minifast.data.images.unreadable import unreadable_error, with_range
from minifast.errors import DataError
from minifast.utils.checks import check_count, check_folder, check_word, shown
from minifast.utils.folders import cache_file

OTHERS = "minifast.data.verify_images finds all such files, and on_bad_image='skip' leaves them out."
BUDGET = 2 * 2**30  # default limit of decoded images in memory, in bytes
MOST_IN_TASK = 16  # images that a thread decodes as one task
TINY = 16 * 2**10  # bytes; for files smaller than this, threads are slower than none, due to the interpreter's lock
Size = int | tuple[int, int] | None


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
        try:
            image = self._read(self.listing[i][0])
        except ValueRangeError as error:
            raise with_range(error, [name for name, _, _ in self.listing]) from error
        except UnreadableImageError as error:
            raise DataError(f"{error} {OTHERS}") from error  # only its class comes back from a worker
        check_same_size(self.reference_size(), self.listing[i][0], image)
        channels = 1 if self.pixels.mask else self.pixels.channels
        return torch.from_numpy(np.broadcast_to(image, (channels, *image.shape[1:])).copy()), self.labels[i]

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
        way = "upright" if is_full else f"upright, JPEG smaller, pad too{quick}"
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
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(f"{file} is not a readable image, or it is truncated. {REMEDY}") from error


def _opened_again(image: Any) -> Any:
    """Return a JPEG image that is not decoded yet as another one, which may be decoded smaller.

    So a path and ``Image.open(path)`` give the same pixels. The caller's image is decoded in full and closes its file.
    """
    from PIL import Image

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
        files = [name for name, _, _ in list_images(check_folder(Path(files)), recurse=True)]
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
    first = read_listed(names[0], size, resize, pixels)
    images = np.empty((len(names), *first.shape), np.uint8)

    def store(i: int, image: np.ndarray[Any, Any] | Exception) -> None:
        nonlocal images
        if isinstance(image, Exception):
            raise image
        check_same_size((names[0], *images.shape[2:]), names[i], image)
        if len(image) > images.shape[1]:
            images = np.repeat(images, len(image), axis=1)
        images[i] = image
        on_decoded(images, i + 1)

    stopped = threading.Event()

    def read(task: Sequence[str]) -> list[np.ndarray[Any, Any] | Exception]:
        """Return the images of a task, up to its first error, which is raised at its place in the order."""
        decoded: list[np.ndarray[Any, Any] | Exception] = []
        for name in task:
            if stopped.is_set():
                break
            try:
                # In the threads, because channels first takes ten times as long to copy.
                decoded.append(np.ascontiguousarray(read_listed(name, size, resize, pixels)))
            except Exception as error:
                return [*decoded, error]
        return decoded

    store(0, first)
    # Several images each, because the main thread, when it takes a result, stops those that decode.
    share = max(1, min(MOST_IN_TASK, len(names) // (4 * threads)))
    tasks = [names[i : i + share] for i in range(1, len(names), share)]
    with ThreadPoolExecutor(threads) as pool:
        try:
            decoded = pool.map(read, tasks) if threads > 1 else map(read, tasks)
            for i, image in enumerate(chain.from_iterable(decoded), 1):
                store(i, image)
        except BaseException:
            stopped.set()  # each thread finishes its image, not its task
            pool.shutdown(cancel_futures=True)
            raise
    return torch.from_numpy(images)
