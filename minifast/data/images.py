"""Pictures in folders: found, decoded once into one tensor, kept for the next process, or read as they are needed."""

from __future__ import annotations

import hashlib
import mimetypes
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minifast import files
from minifast.data.urls import home
from minifast.errors import DataError, MinifastError

SUFFIXES = {suffix for suffix, kind in mimetypes.types_map.items() if kind.startswith("image/")}
BUDGET = 2 * 2**30  # bytes of decoded pictures that are held in memory unless told otherwise
TINY = 16 * 2**10  # bytes of a file below which the interpreter's lock makes threads slower than none

Size = int | tuple[int, int] | None


def get_image_files(c: str | Path, check_ext: bool = True, recurse: bool = False) -> list[Path]:
    """Return the pictures in the folder ``c``, sorted by name; with ``recurse``, those in its folders too.

    Raises:
        DataError: there is no such folder.
    """
    folder = Path(c)
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}; check the path.")
    return [Path(name) for name, _, _ in list_pictures(folder, recurse, check_ext)]


def list_pictures(folder: str | Path, recurse: bool, check_ext: bool = True) -> list[tuple[str, int, int]]:
    """Return name, size in bytes and time of change of each picture in a folder, sorted by name."""
    found = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                found += list_pictures(entry.path, recurse, check_ext) if recurse else []
            elif not check_ext or os.path.splitext(entry.name)[1].lower() in SUFFIXES:  # noqa: PTH122 - many files
                status = entry.stat()
                found.append((entry.path, status.st_size, status.st_mtime_ns))
    return found


class Pictures:
    """Picture files with a label each, and what tells whether they changed: each file's name, size and time.

    Args:
        name: what the set is called in the cache.
        size: height and width to crop and scale to, or one number for both; None where all files have one size.
    """

    def __init__(self, name: str, size: Size = None) -> None:
        self.name = name
        self.size = (size, size) if isinstance(size, int) else size
        self.listing: list[tuple[str, int, int]] = []
        self.labels: list[int] = []

    def add(self, listing: Iterable[tuple[str, int, int]], label: int) -> None:
        """Add files of one label."""
        before = len(self.listing)
        self.listing += listing
        self.labels += [label] * (len(self.listing) - before)

    def chosen(self, indices: Iterable[int]) -> Pictures:
        """Return some of the files as a set of their own, to be read as they are needed."""
        part = Pictures(self.name, self.size)
        for i in indices:
            part.listing.append(self.listing[i])
            part.labels.append(self.labels[i])
        return part

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """Return a picture, uint8 ``(channels, height, width)``, and its label; for torch's DataLoader."""
        picture = read_picture(self.listing[i][0], self.size)
        return torch.from_numpy(np.broadcast_to(picture, (3, *picture.shape[1:])).copy()), self.labels[i]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return all pictures, uint8 ``(n, channels, height, width)``, and labels, from the cache where they lie there.

        Raises:
            DataError: a file is no picture or is cut off, or the sizes differ and no ``size`` was given.
        """
        file = home() / "cache" / f"{_digest(f'{self.name} {self.size}')}.pt"
        fingerprint = _digest(repr((self.listing, self.size)))
        pictures = _cached(file, fingerprint)
        if pictures is None:
            pictures = decode([name for name, _, _ in self.listing], self.size, self._threads())
            _keep(file, fingerprint, pictures)
        return pictures, torch.tensor(self.labels, dtype=torch.int64)

    def bytes_decoded(self) -> int:
        """Estimate how many bytes the decoded pictures take, from the first one."""
        return len(self) * read_picture(self.listing[0][0], self.size).size if len(self) else 0

    def _threads(self) -> int:
        mean = sum(size for _, size, _ in self.listing) / max(1, len(self))
        return 1 if mean < TINY else (os.cpu_count() or 1)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _cached(file: Path, fingerprint: str) -> Tensor | None:
    if not file.is_file():
        return None
    try:
        kept = files.read(file, mmap=True)
        return kept["pictures"] if kept["fingerprint"] == fingerprint else None
    except (MinifastError, KeyError, TypeError, OSError):
        return None  # a damaged copy is made anew


def _keep(file: Path, fingerprint: str, pictures: Tensor) -> None:
    try:
        files.write({"fingerprint": fingerprint, "pictures": pictures}, file)
    except (OSError, RuntimeError):
        return  # no room or no permission: decoding again costs time, stopping here would cost the run


def read_picture(file: Any, size: tuple[int, int] | None = None) -> np.ndarray[Any, Any]:
    """Decode one picture to uint8 ``(channels, height, width)``, 1 channel for grey and 3 for all else.

    ``size`` crops the middle in the wanted proportions and scales it.

    Raises:
        DataError: the file is no picture, is cut off, or has more than 8 bits a channel.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(
                    f"{file} has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits first."
                )
            picture: Image.Image = (
                image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")
            )
            if size is not None:
                picture = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.BILINEAR)
            array = np.asarray(picture)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, (DataError, FileNotFoundError)):
            raise
        raise DataError(f"{file} is not a picture that can be read, or it is cut off; replace or remove it.") from error
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def decode(names: Sequence[str], size: tuple[int, int] | None = None, threads: int = 1) -> Tensor:
    """Decode pictures into one tensor, uint8 ``(n, channels, height, width)``; 1 channel where all are grey.

    Raises:
        DataError: a file is no picture or is cut off, or the sizes differ and no ``size`` is given.
    """
    first = read_picture(names[0], size)
    pictures = np.empty((len(names), *first.shape), np.uint8)

    def place(i: int, picture: np.ndarray[Any, Any]) -> None:
        nonlocal pictures
        if picture.shape[1:] != pictures.shape[2:]:
            (height, width), (h, w) = pictures.shape[2:], picture.shape[1:]
            raise DataError(
                f"{names[0]} is {width}×{height} pixels and {names[i]} is {w}×{h}; "
                f"give a size for all, such as size=224."
            )
        if len(picture) > pictures.shape[1]:
            pictures = np.repeat(pictures, len(picture), axis=1)
        pictures[i] = picture

    if threads == 1:
        for i, name in enumerate(names):
            place(i, read_picture(name, size))
    else:
        with ThreadPoolExecutor(threads) as pool:
            try:
                for i, picture in enumerate(pool.map(lambda name: read_picture(name, size), names)):
                    place(i, picture)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return torch.from_numpy(pictures)
