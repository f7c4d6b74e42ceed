"""Files of tensors: written so that nothing half-written stays, read so that no code runs."""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path
from typing import IO, Any

import torch

from minifast.errors import FileFormatError


def write(values: Any, file: Path | IO[bytes]) -> None:
    """Save ``values`` with torch, beside ``file`` first and then in its place in one step, flushed to the disk."""
    if not isinstance(file, Path):
        torch.save(values, file)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            torch.save(values, stream)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read(file: Path | IO[bytes], device: torch.device | str | None = None, mmap: bool = False) -> Any:
    """Load what ``write`` saved: tensors and plain values only, so that a file from a stranger runs no code.

    ``mmap`` leaves the tensors in the file until they are used.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is cut off, is no file of torch's, or holds anything else, such as code.
    """
    if isinstance(file, Path) and not file.is_file():
        found = sorted(path.stem for path in file.parent.glob(f"*{file.suffix}")) if file.parent.is_dir() else []
        there = f"it has {', '.join(found)}" if found else "it has no saved models"
        raise FileNotFoundError(f"There is no file {file}; look in {file.parent}: {there}.")
    try:
        return torch.load(file, map_location=device or "cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise FileFormatError(
            f"{file} holds more than tensors and plain values, or is no file saved by torch; it was not loaded, "
            f"because reading such a file can run code. Save it again with learn.save."
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise FileFormatError(f"{file} cannot be read: it is cut off or damaged; take another copy of it.") from error
