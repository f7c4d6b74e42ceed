"""Memory that is used again, because Linux takes longer to clear new memory than a batch takes to fill it."""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

import numpy as np

BLOCK = 2**23  # bytes; glibc then keeps up to 16 MiB
LARGEST_KEPT = 2**25 - 2**16  # bytes; of a block that glibc keeps, with its header 32 MiB

_spare: deque[np.ndarray[Any, Any]] = deque(maxlen=1)


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next step, as it does once a large block was freed.

    At first, glibc returns blocks of more than 128 KiB to Linux at once. Linux has to clear them for the next step,
    which takes a tenth of the time of the first fit of small images. Freeing a large block raises the limit
    (mallopt(3), "Dynamic mmap threshold"). This block is never written to, so it takes no memory. Other C libraries
    ignore it.
    """
    np.empty(BLOCK, np.uint8)


def empty_floats(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return an array of float32 like ``np.empty``; a large one uses the memory of the last one that was freed.

    One such memory is kept. It comes back when the array is freed, so not while a tensor or an array of its memory is
    in use.
    """
    if 4 * np.prod(shape, dtype=np.int64) <= LARGEST_KEPT:
        return np.empty(shape, np.float32)
    try:
        memory = _spare.pop()  # at once, so that two threads never get the same
    except IndexError:
        memory = None
    if memory is None or memory.shape != shape:
        memory = np.empty(shape, np.float32)  # NumPy asks Linux for huge pages, which torch does not
    array = memory.view()
    weakref.finalize(array, _spare.append, memory).atexit = False
    return array
