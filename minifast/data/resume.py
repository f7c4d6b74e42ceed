"""Save and restore the state of a loader, and continue an epoch in the middle."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from minifast.utils.saved_state import load_saved_state, saved_state
from minifast.utils.state import Snapshot, restoring


class RemainingBatches:
    """The batches of a loader that are left in an epoch after the first ``done``.

    ``on_start`` is called before the first of them, when the loader has read the others again.
    """

    def __init__(self, loader: Any, done: int, on_start: Callable[[], None]) -> None:
        self.loader = loader
        self.done = done
        self.on_start = on_start

    def __len__(self) -> int:
        return max(0, len(self.loader) - self.done)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader.batches(self.done, self.on_start))


def loader_state(loader: Any) -> dict[str, Any]:
    """Return the state of a loader and what it uses, as tensors and plain values.

    That is every random generator in samplers, data sets, transforms and collate functions, and the attributes that
    they change, such as the number of epochs.
    """
    return saved_state({"loader": loader}, data=("loader",))


def load_loader_state(loader: Any, state: Any) -> None:
    """Restore what ``loader_state`` returned, in this version or in 0.1."""
    if isinstance(state, list):
        _load_version_0_1(loader, state)
    else:
        load_saved_state(state, {"loader": loader}, data=("loader",))


@contextmanager
def preserve_loader(*loaders: Any) -> Iterator[None]:
    """Restore loaders, what they use, and the global generators on leaving."""
    roots = {str(i): loader for i, loader in enumerate(loaders)}
    with restoring(Snapshot(roots, data=roots)):
        yield


def _load_version_0_1(loader: Any, position: list[dict[str, Any]]) -> None:
    """Restore a state in the form of version 0.1: one dict per component."""
    for part, state in zip(components(loader), position, strict=True):
        for name, value in state.items():
            generator = part.__dict__.get(name)
            if isinstance(generator, torch.Generator):
                generator.set_state(value)
            elif isinstance(generator, np.random.Generator):
                generator.bit_generator.state = value
            elif isinstance(generator, random.Random):
                generator.setstate(value)
            else:
                part.__dict__[name] = value


def components(loader: Any) -> list[Any]:
    """Return a loader, the loader inside, its samplers, data set and transforms, in the order of version 0.1."""
    parts: list[Any] = []
    waiting = [loader]
    while waiting:
        part = waiting.pop()
        if hasattr(part, "__dict__") and not any(part is other for other in parts):
            parts.append(part)
            waiting += [part.__dict__.get(name) for name in ("dl", "sampler", "batch_sampler", "dataset")]
            waiting += part.__dict__.get("tfms") or []
    return parts
