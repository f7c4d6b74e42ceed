"""Files of tensors: written so that nothing half-written stays, read so that no code runs."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from minifast.errors import FileFormatError


@contextmanager
def replacing(file: Path, before_move: Callable[[], None] | None = None) -> Iterator[Path]:
    """Yield a new file beside ``file`` to write into.

    It is flushed to the disk, ``before_move`` is called, and it takes the place of ``file`` in one step; on failure it
    goes.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    os.close(descriptor)
    beside = Path(name)
    try:
        yield beside
        with beside.open("r+b") as stream:
            os.fsync(stream.fileno())
        if before_move is not None:
            before_move()
        beside.chmod(0o666 & ~_umask())
        beside.replace(file)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write(values: Any, file: Path | IO[bytes]) -> None:
    """Save ``values`` with torch into an open file, or into a path, whole or not at all."""
    if isinstance(file, Path):
        with replacing(file) as beside:
            torch.save(values, beside)
    else:
        torch.save(values, file)


def write_rows(rows: Iterable[Sequence[Any]], file: Path) -> None:
    """Write rows of values as CSV, whole or not at all: numbers in full, None as an empty cell."""
    with replacing(file) as beside, beside.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows(rows)


def read_rows(file: Path) -> list[list[str]]:
    """Return the rows of a CSV file as texts."""
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read(
    file: Path | IO[bytes],
    device: torch.device | str | None = None,
    mmap: bool = False,
    trust: bool = False,
) -> Any:
    """Load what ``write`` saved: tensors and plain values only, so that a file from a stranger runs no code.

    ``mmap`` leaves the tensors in the file until they are used. ``trust`` reads whatever it holds, code included.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is cut off, is no file of torch's, or holds anything else, such as code.
    """
    if isinstance(file, Path) and not file.is_file():
        found = sorted(path.stem for path in file.parent.glob(f"*{file.suffix}")) if file.parent.is_dir() else []
        there = f"it has {', '.join(found)}" if found else "it has no saved models"
        raise FileNotFoundError(f"There is no file {file}; look in {file.parent}: {there}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wonders aloud at files that are then refused
            return torch.load(file, map_location=device or "cpu", weights_only=not trust, mmap=mmap)
    except (PermissionError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        if trust:
            raise FileFormatError(f"{file} is no file saved by torch, or it is damaged.") from error
        raise FileFormatError(
            f"{file} holds more than tensors and plain values, or is no file saved by torch; it was not loaded, "
            f"because reading such a file can run code. Write it again with learn.save or learn.export; or, if you "
            f"know who made it, load it with trust=True, which runs the code in it."
        ) from error
    except (AttributeError, ImportError) as error:
        raise FileFormatError(f"{file} needs a class that is not here: {error}; import or define it first.") from error
    except Exception as error:  # torch's reader meets damaged bytes with errors of every kind
        raise FileFormatError(f"{file} cannot be read: it is cut off or damaged; take another copy of it.") from error


MARK = b"minifast checkpoint 1\n"


def write_checked(values: Any, file: Path, anew: bool = False) -> None:
    """Save ``values`` with a checksum; the file before stays beside it, as ``previous(file)``, but not ``anew``."""
    buffer = io.BytesIO()
    torch.save(values, buffer)
    content = buffer.getvalue()
    for left in file.parent.glob(f".{file.name}.*"):  # by a process that was killed while it wrote
        left.unlink(missing_ok=True)

    def keep_the_one_before() -> None:
        if not anew and _is_whole(file):
            file.replace(previous(file))

    with replacing(file, keep_the_one_before) as beside:
        beside.write_bytes(MARK + hashlib.sha256(content).digest() + content)
    if anew:
        previous(file).unlink(missing_ok=True)


def _is_whole(file: Path) -> bool:
    content = file.read_bytes() if file.is_file() else b""
    return content.startswith(MARK) and hashlib.sha256(content[len(MARK) + 32 :]).digest() == content[len(MARK) :][:32]


def previous(file: Path) -> Path:
    """Return where the file before ``file`` is."""
    return file.with_name(f"{file.stem}.previous{file.suffix}")


def read_checked(file: Path, device: torch.device | str | None = None) -> tuple[Any, bool]:
    """Load what ``write_checked`` saved, and say whether it is the newest; else it is the one before.

    Raises:
        FileNotFoundError: there is none.
        FileFormatError: neither of both is whole.
    """
    found = [candidate for candidate in (file, previous(file)) if candidate.is_file()]
    if not found:
        there = sorted(path.stem for path in file.parent.glob(f"*{file.suffix}") if ".previous" not in path.name)
        others = f" has {', '.join(there)}" if there else " has none"
        raise FileNotFoundError(f"There is no checkpoint {file}; its folder{others}.")
    for candidate in found:
        if _is_whole(candidate):
            try:
                return read(io.BytesIO(candidate.read_bytes()[len(MARK) + 32 :]), device), candidate == file
            except FileFormatError as error:
                raise FileFormatError(
                    f"{candidate} holds more than tensors and plain values, so it is no checkpoint that a run left; "
                    f"remove it to begin anew."
                ) from error
    raise FileFormatError(f"{file} is cut off or damaged, and so is the one before it; remove both to begin anew.")
