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
