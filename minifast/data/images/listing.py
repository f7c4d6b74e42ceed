"""Find image files in folders."""

from __future__ import annotations

import os
from pathlib import Path

from minifast.errors import DataError
from minifast.utils.checks import check_folder

SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in "avif bmp gif ico jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tif tiff webp".split()  # noqa: SIM905
)
# Photographs that Pillow does not read by itself: of phones, and raw files of cameras.
UNREAD_SUFFIXES = frozenset(f".{suffix}" for suffix in "arw cr2 cr3 dng heic heif nef orf raf rw2".split())  # noqa: SIM905


def get_image_files(c: str | Path, check_ext: bool = True, recurse: bool = False) -> list[Path]:
    """Return the image files in a folder, sorted by name.

    Args:
        c: the folder.
        check_ext: only files with the extension of an image format.
        recurse: also search the folders inside.

    Raises:
        DataError: if there is no such folder.
    """
    folder = os.fspath(check_folder(Path(c)))
    return [Path(name) for name, _, _ in _list_images(folder, recurse, check_ext, (), [])]


def list_images(folder: str | Path, recurse: bool, unread: list[str] | None = None) -> list[tuple[str, int, int]]:
    """Return path, size in bytes and modification time in ns of each image file in a folder, sorted by name.

    The paths are absolute, so that the data are found from another working directory too, and have one cache.

    Args:
        folder: the folder.
        recurse: also search the folders inside.
        unread: a list to add photographs to that Pillow cannot read, by their suffix.
    """
    return _list_images(os.fspath(Path(folder).absolute()), recurse, True, (), [] if unread is None else unread)


def _list_images(
    folder: str, recurse: bool, check_ext: bool, above: tuple[str, ...], unread: list[str]
) -> list[tuple[str, int, int]]:
    listing = []
    real = (*above, os.path.realpath(folder)) if recurse else above
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():  # noqa: PTH112 - many files
                loops = recurse and entry.is_symlink() and os.path.realpath(entry.path) in real
                if recurse and not loops:
                    listing += _list_images(entry.path, recurse, check_ext, real, unread)
                continue
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - many files
            if not check_ext or suffix in SUFFIXES:
                try:
                    status = entry.stat()
                except OSError as error:
                    if not entry.is_symlink():
                        continue  # removed since the folder was read
                    raise DataError(f"{entry.path} is a broken link. Repair or remove it.") from error
                listing.append((entry.path, status.st_size, status.st_mtime_ns))
            elif suffix in UNREAD_SUFFIXES:
                unread.append(entry.path)
    return listing
