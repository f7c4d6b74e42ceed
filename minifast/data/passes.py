"""One pass over a loader within another."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

_running: WeakSet[Any] = WeakSet()  # DataLoaders whose persistent workers serve a pass
_running_lock = threading.Lock()


@contextmanager
def own_pass(loader: Any) -> Iterator[Any]:
    """Yield the loader for one pass, which no other pass of it disturbs.

    torch's persistent workers serve one pass at a time: a second ``iter(loader)`` would end the first. So a pass within
    another one, or in another thread, has workers of its own.
    """
    if not getattr(loader, "persistent_workers", False):
        yield loader
        return
    with _running_lock:
        is_free = loader not in _running
        _running.add(loader)
    if not is_free:
        loader = copy.copy(loader)
        loader._iterator = None
        yield loader
        return
    try:
        yield loader
    finally:
        with _running_lock:
            _running.discard(loader)
