"""Where a loader is in its orders, so that it can be put back there, or go on from the middle of an epoch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class RemainingBatches:
    """The batches of a loader that an epoch has left, when ``done`` of them are done already."""

    def __init__(self, loader: Any, done: int, then: Callable[[], None]) -> None:
        self.loader = loader
        self.done = done
        self.then = then

    def __len__(self) -> int:
        return max(0, len(self.loader) - self.done)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader.batches(self.done, self.then))


def loader_state(loader: Any) -> list[dict[str, Any]]:
    """Return where a loader is in its orders: the states of all generators in it, and the epochs it has begun.

    A torch DataLoader draws its order from a generator of its own, its sampler's or its batch sampler's sampler's;
    data set and transforms may have some too, of torch, NumPy or Python.
    """
    states = []
    for part in components(loader):
        state: dict[str, Any] = {}
        for name, value in part.__dict__.items():
            if isinstance(value, torch.Generator):
                state[name] = value.get_state()
            elif isinstance(value, np.random.Generator) and isinstance(value.bit_generator, np.random.PCG64):
                state[name] = dict(value.bit_generator.state)
            elif isinstance(value, random.Random):
                state[name] = value.getstate()
            elif name in ("epoch", "seed") and isinstance(value, int):
                state[name] = value
        states.append(state)
    return states


def load_loader_state(loader: Any, position: list[dict[str, Any]]) -> None:
    """Put a loader where ``loader_state`` found it."""
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


@contextmanager
def preserve_loader(loader: Any) -> Iterator[None]:
    """Put a loader back where it was in its orders, and torch's generator with it."""
    position = loader_state(loader)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        load_loader_state(loader, position)


def components(loader: Any) -> list[Any]:
    """Return a loader with what it works with: the loader inside, samplers, data set and transforms."""
    found: list[Any] = []
    waiting = [loader]
    while waiting:
        part = waiting.pop()
        if hasattr(part, "__dict__") and not any(part is other for other in found):
            found.append(part)
            waiting += [part.__dict__.get(name) for name in ("dl", "sampler", "batch_sampler", "dataset")]
            waiting += part.__dict__.get("tfms") or []
    return found
