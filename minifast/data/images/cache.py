"""The cache of decoded pictures: written in parts while others are decoded, mapped into memory when it is read."""

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

HEADER = 4096  # bytes for fingerprint and shape before the pixels, so that these begin on a page of memory


PART = 32 * 2**20  # bytes that are written at once, and brought to the disk while others are decoded


def read(file: Path | None, fingerprint: str) -> Tensor | None:
    """Return the pictures, uint8 ``(n, channels, height, width)``, if the file is whole and of this fingerprint.

    They stay in the file until they are used; what is changed in memory is not changed there.
    """
    try:
        if file is None or not file.is_file():
            return None
        with file.open("rb") as stream:
            said = json.loads(stream.read(HEADER))
        n, channels, height, width = shape = tuple(map(int, said["shape"]))
        if said["fingerprint"] != fingerprint or file.stat().st_size != HEADER + n * channels * height * width:
            return None
        return torch.from_numpy(np.memmap(file, np.uint8, "c", HEADER, shape))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a damaged copy is made anew


class CacheWriter:
    """Writes pictures into the cache while they are decoded: entered before, and called as they arrive.

    The file appears when all are written, whole or not at all. Where it cannot be written the run goes on without:
    decoding again costs time, stopping would cost the run.
    """

    def __init__(self, file: Path | None, fingerprint: str) -> None:
        self._file = file
        self._fingerprint = fingerprint
        self._pictures: Any = None
        self._begun = 0  # of the pictures, how many are written or being written
        self._parts: list[Future[None]] = []

    def __enter__(self) -> CacheWriter:
        self._open = ExitStack()
        self._stream: IO[bytes] | None = None
        if self._file is not None:
            try:
                beside = self._open.enter_context(files.replacing(self._file))
                self._stream = self._open.enter_context(beside.open("r+b", buffering=0))
                self._thread = self._open.enter_context(ThreadPoolExecutor(1))
            except OSError:
                self._stream = None
        return self

    def __call__(self, pictures: np.ndarray[Any, Any], n: int) -> None:
        """Write what is new of the first ``n`` pictures, where that is enough or all; another array begins anew."""
        if self._stream is None:
            return
        if pictures is not self._pictures:
            self._pictures, self._begun = pictures, 0
        if n == len(pictures) or (n - self._begun) * pictures[0].nbytes >= PART:
            self._parts.append(self._thread.submit(self._write, self._stream, pictures, self._begun, n))
            self._begun = n

    @staticmethod
    def _write(stream: IO[bytes], pictures: np.ndarray[Any, Any], begin: int, end: int) -> None:
        stream.seek(HEADER + begin * pictures[0].nbytes)
        _write_all(stream, pictures[begin:end].data.cast("B"))
        os.fsync(stream.fileno())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is None or error is not None:
            self._open.__exit__(kind, error, trace)
            return
        try:
            with self._open:
                for part in self._parts:
                    part.result()
                said = json.dumps({"fingerprint": self._fingerprint, "shape": self._pictures.shape})
                self._stream.truncate(HEADER + self._pictures.nbytes)
                self._stream.seek(0)
                _write_all(self._stream, memoryview(said.ljust(HEADER).encode()))
        except (OSError, RuntimeError):
            return


def _write_all(stream: IO[bytes], content: memoryview) -> None:
    while content:
        content = content[stream.write(content) :]
