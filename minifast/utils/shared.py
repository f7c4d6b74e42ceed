"""Read and write numbers that processes share: ``multiprocessing.Value``, ``Array`` and their raw forms."""

from __future__ import annotations

import ctypes
from typing import Any


def is_shared(value: Any) -> bool:
    """Return whether a value is a number or an array of numbers in memory that processes share.

    >>> import multiprocessing
    >>> is_shared(multiprocessing.Value("i", 3)), is_shared(multiprocessing.Lock())
    (True, False)
    """
    raw = _raw(value)
    if isinstance(raw, ctypes.Array):
        return isinstance(raw[0] if len(raw) else 0, (int, float))
    return isinstance(raw, ctypes._SimpleCData) and isinstance(raw.value, (int, float))


def read_shared(value: Any) -> Any:
    """Return a number, or the list of the numbers of an array.

    >>> import multiprocessing
    >>> read_shared(multiprocessing.Array("i", [1, 2]))
    [1, 2]
    """
    raw = _raw(value)
    return list(raw) if isinstance(raw, ctypes.Array) else raw.value


def write_shared(value: Any, content: Any) -> None:
    """Set what ``read_shared`` returned."""
    raw = _raw(value)
    if isinstance(raw, ctypes.Array):
        raw[:] = content
    else:
        raw.value = content


def _raw(value: Any) -> Any:
    """Return the number or array inside of one with a lock."""
    is_locked = type(value).__module__ == "multiprocessing.sharedctypes" and hasattr(value, "get_obj")
    return value.get_obj() if is_locked else value
