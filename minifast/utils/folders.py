"""Where minifast keeps files on this machine: downloaded data, and the cache of decoded images."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path


def home() -> Path:
    """Return minifast's folder, ``MINIFAST_HOME`` or else ``~/.minifast``, without creating it."""
    return Path(os.environ.get("MINIFAST_HOME") or "~/.minifast").expanduser().absolute()


def cache_file(name: str) -> Path:
    """Return the file of decoded images whose name in the cache is ``name``, 32 hexadecimal digits."""
    return home() / "cache" / f"{name}.pictures"


def cache_files() -> list[Path]:
    """Return the files of decoded images, with those that a killed process left incomplete; no others."""
    name = re.compile(r"[0-9a-f]{32}\.pictures|\.[0-9a-f]{32}\.pictures\.[0-9a-f]{8}")  # as files.replacing names them
    folder = home() / "cache"
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if name.fullmatch(path.name) and path.is_file())


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; 0 if there is none."""
    files = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)  # noqa: PTH118
    total = 0
    for file in files if path.is_dir() else [path]:
        with contextlib.suppress(OSError):  # another process removed it
            total += os.lstat(file).st_size
    return total


def size_text(size: int) -> str:
    """Return a number of bytes as text.

    >>> size_text(900), size_text(25_300_000), size_text(4_100_000_000)
    ('900 bytes', '25.3 MB', '4.1 GB')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"
