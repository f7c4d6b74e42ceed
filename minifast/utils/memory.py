"""The memory of the process."""

from __future__ import annotations

import numpy as np

BLOCK = 2**25 - 2**16  # bytes; glibc learns from blocks of at most 32 MiB, with their headers


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next step, as it does once a block of 32 MiB was freed.

    At first, glibc returns blocks of more than 128 KiB to Linux at once. Linux has to clear them for the next step,
    which takes a tenth of the time of the first fit of small images. Freeing a large block raises the limit
    (mallopt(3), "Dynamic mmap threshold"). This block is never written to, so it takes no memory. Other C libraries
    ignore it.
    """
    np.empty(BLOCK, np.uint8)
