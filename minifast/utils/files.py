"""Write files atomically, and read files of tensors without running code."""

from __future__ import annotations

import csv
import errno
import glob
import hashlib
import io
import os
import pickle
import secrets
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

from minifast.errors import FileFormatError
from minifast.utils import safetensors_files

CHUNK = 2**20  # bytes that are read at once to compute a checksum


def make_folder(folder: Path) -> bool:
    """Make a folder if there is none, and return whether it is new."""
    is_new = not folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    return is_new


def remove_empty(folder: Path, is_new: bool) -> None:
    """Remove a folder that ``make_folder`` made, if it is still empty."""
    if is_new:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def replacing(file: Path, before_move: Callable[[], None] | None = None) -> Iterator[Path]:
    """Yield a new file beside ``file`` to write into; it replaces ``file`` in one step.

    The content is flushed to the disk and ``before_move`` is called before the move. On failure the new file is
    removed. The new file has the permissions of the file that it replaces, or those that the umask gives.
    """
    is_new = make_folder(file.parent)
    mode = stat.S_IMODE(file.stat().st_mode) if file.is_file() else None
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    # The process's umask must not be changed to read it: other threads create files at the same time.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if mode is None else mode & 0o666))
    try:
        yield temporary
        with temporary.open("r+b") as stream:
            os.fsync(stream.fileno())
        if before_move is not None:
            before_move()
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        remove_empty(file.parent, is_new)
        raise


def check_writable(file: Path) -> None:
    """Raise OSError if ``file`` cannot be written, ImportError without its package; nothing stays behind."""
    if safetensors_files.is_safetensors(file):
        safetensors_files.package(file)
    try:
        is_new = make_folder(file.parent)
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
        temporary.touch(exist_ok=False)
        temporary.unlink()
        remove_empty(file.parent, is_new)
    except OSError as error:
        reason = f"{file} cannot be written: {error.strerror}; use another folder or name"
        raise OSError(error.errno, reason) from error


def write(values: Any, file: Path | IO[bytes]) -> None:
    """Save ``values`` with torch into an open file, or atomically into a path; a state dict to ``.safetensors`` too."""
    if safetensors_files.is_safetensors(file):
        safetensors_files.check_storable(values, file)
        with replacing(file) as temporary:
            safetensors_files.save(values, temporary)
    elif isinstance(file, Path):
        with replacing(file) as temporary:
            torch.save(values, temporary)
    else:
        torch.save(values, file)


def write_rows(rows: Iterable[Sequence[Any]], file: Path) -> None:
    """Write rows of values as CSV atomically: numbers with all digits, None as an empty cell.

    File names that are not UTF-8 keep their bytes.
    """
    with replacing(file) as temporary, temporary.open("w", -1, "utf-8", "surrogateescape", "") as stream:
        csv.writer(stream, lineterminator="\n").writerows(rows)


def read_rows(file: Path) -> list[list[str]]:
    """Return the rows of a CSV file as texts."""
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))


def read(
    file: Path | IO[bytes],
    device: torch.device | str | None = None,
    mmap: bool = False,
    trust: bool = False,
) -> Any:
    """Load what ``write`` saved: tensors and plain values only, so that an untrusted file runs no code.

    A path with the suffix ``.safetensors`` is read as such a file.

    Args:
        file: a path or an open file.
        device: the device of the tensors; by default the CPU.
        mmap: leave the tensors in the file until they are used.
        trust: load any object, which can run code.

    Raises:
        FileNotFoundError: the file does not exist.
        FileFormatError: the file is truncated, was not saved by torch, or holds other objects, such as code.
    """
    if isinstance(file, Path) and not file.is_file():
        names = sorted(path.stem for path in file.parent.glob(f"*{file.suffix}")) if file.parent.is_dir() else []
        content = f"its folder has {', '.join(names)}" if names else "its folder has no saved models"
        raise FileNotFoundError(f"There is no file {file}; {content}.")
    if safetensors_files.is_safetensors(file):
        return safetensors_files.load(file, device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about files for which an error is raised below
            return torch.load(file, map_location=device or "cpu", weights_only=not trust, mmap=mmap)
    except (PermissionError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        if trust:
            raise FileFormatError(f"{file} was not saved by torch, or is damaged.") from error
        raise FileFormatError(
            f"{file} holds more than tensors and plain values, or was not saved by torch; it was not loaded, because "
            f"reading such a file can run code.",
            hint="Write it again with learn.save or learn.export; or, if you know who made it, load it with "
            "trust=True, which runs the code in it.",
            cli_hint="Give a file that minifast wrote, or a state dict that torch.save wrote.",
        ) from error
    except (AttributeError, ImportError) as error:
        if "minifast." in str(error):
            raise FileFormatError(
                f"{file} was pickled by another version of minifast ({error}); load it with that version, and write it "
                f"again with learn.save or learn.export, whose files do not depend on the version."
            ) from error
        raise FileFormatError(f"{file} needs a class that is not here: {error}; import or define it first.") from error
    except Exception as error:  # torch raises errors of many types for damaged files
        raise FileFormatError(f"{file} cannot be read: it is truncated or damaged; use another copy of it.") from error


MARK = b"minifast checkpoint 1\n"
HEADER = len(MARK) + hashlib.sha256().digest_size


class _HashingWriter(io.RawIOBase):
    """Write into a stream and compute the checksum of what is written."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        self.stream.write(data)
        return memoryview(data).nbytes

    def flush(self) -> None:
        if not self.stream.closed:
            self.stream.flush()


class _Content(io.RawIOBase):
    """Read a stream as if it began after its header."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.stream.seek(offset + (HEADER if whence == os.SEEK_SET else 0), whence) - HEADER

    def tell(self) -> int:
        return self.stream.tell() - HEADER

    def readinto(self, buffer: Any) -> int:
        return self.stream.readinto(buffer)  # type: ignore[attr-defined, no-any-return]


class CheckedFile:
    """A file with a checksum, and the file before it, which stays beside it as ``previous(file)``."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._written: tuple[int, ...] | None = None  # identity of the file that this object wrote last

    def write(self, values: Any, keep_previous: bool = True) -> None:
        """Save ``values`` atomically, without a copy of them in memory."""
        for path in self.file.parent.glob(f".{glob.escape(self.file.name)}.*"):  # left by a process that was killed
            path.unlink(missing_ok=True)

        def keep() -> None:
            # A damaged file must not replace a complete previous one. What this object wrote needs no reading.
            if keep_previous and (self.is_last_written() or is_complete(self.file)):
                self.file.replace(previous(self.file))

        with replacing(self.file, keep) as temporary, temporary.open("r+b") as stream:
            stream.write(bytes(HEADER))
            writer = _HashingWriter(stream)
            torch.save(values, writer)  # type: ignore[arg-type]
            stream.seek(0)
            stream.write(MARK + writer.hash.digest())
            stream.flush()
        self._written = _identity(self.file)
        if not keep_previous:
            previous(self.file).unlink(missing_ok=True)

    @property
    def has_written(self) -> bool:
        """Whether this object has written the file."""
        return self._written is not None

    def is_last_written(self) -> bool:
        """Return whether the file is the one that this object wrote last."""
        return self._written is not None and self._written == _identity(self.file)


def _identity(file: Path) -> tuple[int, ...] | None:
    if not file.is_file():
        return None
    status = file.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def is_complete(file: Path) -> bool:
    """Return whether a file exists and has the checksum that stands in it."""
    if not file.is_file():
        return False
    content = hashlib.sha256()
    with file.open("rb") as stream:
        header = stream.read(HEADER)
        while chunk := stream.read(CHUNK):
            content.update(chunk)
    return header == MARK + content.digest()


def previous(file: Path) -> Path:
    """Return the path of the file before ``file``."""
    return file.with_name(f"{file.stem}.previous{file.suffix}")


def read_checked(file: Path, device: torch.device | str | None = None) -> tuple[Any, bool]:
    """Load the newest complete file that ``CheckedFile`` wrote.

    Returns:
        The values, and whether they are from ``file``; otherwise they are from the file before it.

    Raises:
        FileNotFoundError: neither file exists.
        FileFormatError: neither file is complete.
    """
    candidates = [candidate for candidate in (file, previous(file)) if candidate.is_file()]
    if not candidates:
        names = sorted(path.stem for path in file.parent.glob(f"*{file.suffix}") if ".previous" not in path.name)
        others = f" has {', '.join(names)}" if names else " has none"
        raise FileNotFoundError(f"There is no checkpoint {file}; its folder{others}.")
    for candidate in candidates:
        if is_complete(candidate):
            try:
                with candidate.open("rb") as stream:
                    return read(_Content(stream), device), candidate == file  # type: ignore[arg-type]
            except FileFormatError as error:
                raise FileFormatError(
                    f"{candidate} holds more than tensors and plain values, so it is no checkpoint of a run; remove it "
                    f"to start again."
                ) from error
    raise FileFormatError(f"{file} is truncated or damaged, and so is the file before it; remove both to start again.")
