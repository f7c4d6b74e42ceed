"""The cache of decoded images: written in parts during decoding, mapped into memory when read."""

from __future__ import annotations

import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from minifast.utils import files

HEADER = 4096  # bytes of fingerprint and shape before the pixels; a multiple of the page size, for memory mapping
PART = 8 * 2**20  # bytes per write and fsync while decoding goes on; only the last one is waited for


def read_cache(file: Path | None, fingerprint: str) -> Tensor | None:
    """Return the cached images, uint8 ``(n, channels, height, width)``; None if the file is damaged or outdated.

    The file is mapped copy-on-write: pixels are read when they are used, and changes stay in memory.
    """
    try:
        if file is None or not file.is_file():
            return None
        with file.open("rb") as stream:
            header = json.loads(stream.read(HEADER))
        n, channels, height, width = shape = tuple(map(int, header["shape"]))
        if header["fingerprint"] != fingerprint or file.stat().st_size != HEADER + n * channels * height * width:
            return None
        return torch.from_numpy(np.memmap(file, np.uint8, "c", HEADER, shape))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a damaged cache is written again


class CacheWriter:
    """Write images into the cache while they are decoded: a context manager, called as images arrive.

    The file appears when it is complete. If it cannot be written, there is no error: the next process decodes the
    images again.
    """

    def __init__(self, file: Path | None, fingerprint: str) -> None:
        self._file = file
        self._fingerprint = fingerprint
        self._images: Any = None
        self._submitted = 0  # images that are written or being written
        self._writes: list[Future[None]] = []

    def __enter__(self) -> CacheWriter:
        self._open = ExitStack()
        self._stream: IO[bytes] | None = None
        if self._file is not None:
            try:
                temporary = self._open.enter_context(files.replacing(self._file))
                self._stream = self._open.enter_context(temporary.open("r+b", buffering=0))
                self._thread = self._open.enter_context(ThreadPoolExecutor(1))
            except OSError:
                self._stream = None
        return self

    def __call__(self, images: np.ndarray[Any, Any], n: int) -> None:
        """Write the first ``n`` images as soon as enough are new or all are decoded; a new array starts over."""
        if self._stream is None:
            return
        if images is not self._images:
            self._images, self._submitted = images, 0
        if n == len(images) or (n - self._submitted) * images[0].nbytes >= PART:
            self._writes.append(self._thread.submit(self._write, self._stream, images, self._submitted, n))
            self._submitted = n

    @staticmethod
    def _write(stream: IO[bytes], images: np.ndarray[Any, Any], begin: int, end: int) -> None:
        stream.seek(HEADER + begin * images[0].nbytes)
        _write_all(stream, images[begin:end].data.cast("B"))
        os.fsync(stream.fileno())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is None or error is not None:
            self._open.__exit__(kind, error, trace)
            return
        try:
            with self._open:
                for write in self._writes:
                    write.result()
                header = json.dumps({"fingerprint": self._fingerprint, "shape": self._images.shape})
                self._stream.truncate(HEADER + self._images.nbytes)
                self._stream.seek(0)
                _write_all(self._stream, memoryview(header.ljust(HEADER).encode()))
        except (OSError, RuntimeError):
            return


def _write_all(stream: IO[bytes], content: memoryview) -> None:
    while content:
        content = content[stream.write(content) :]
