"""Let the processes of a machine write one after another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Let one process at a time run the code inside, or all of them on a file system that has no locks.

    The lock is the hidden file ``.NAME_lock`` beside ``path``, which is removed at the end, and by the next process
    where one was killed.

    Args:
        path: the file or folder that the code inside writes.
        timeout: seconds to wait for other processes; without limit if it is -1.

    Raises:
        TimeoutError: another process has the lock.
    """
    from filelock import FileLock, Timeout  # torch needs it too

    file = path.with_name(f".{path.name}_lock")
    lock = FileLock(file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=timeout)
    except Timeout:
        raise
    except (OSError, NotImplementedError):  # no locks here, or nothing can be written
        pass
    try:
        yield
    finally:
        if lock.is_locked:
            # Before the release: a process that waits for the removed file notices it, and makes a new one.
            with suppress(OSError):
                file.unlink()
            lock.release()
