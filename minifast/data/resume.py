"""Save and restore the state of a loader, and continue an epoch in the middle."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from minifast.utils.checks import module_name
from minifast.utils.saved_state import load_saved_state, saved_state
from minifast.utils.state import Snapshot, restoring
from minifast.utils.tensors import is_plain


class RemainingBatches:
    """The batches of a loader that are left in an epoch after the first ``done``.

    ``on_start`` is called before the first of them, when the loader has read the others again; or at once if ``state``
    is what ``own_state`` returned there.
    """

    def __init__(
        self,
        loader: Any,
        done: int = 0,
        on_start: Callable[[], None] | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.loader = loader
        self.done = done
        self.on_start = on_start
        self.state = state
        self._iterator: Any = None  # a reference to that of a StatefulDataLoader

    def __len__(self) -> int:
        return max(0, len(self.loader) - self.done)

    def __iter__(self) -> Iterator[Any]:
        if self.state is not None:
            self.loader.dl.load_state_dict(self.state)
        batches = self.loader.batches(self.done, self.on_start)
        if not saves_own_state(self.loader):
            yield from batches
            return
        for batch in batches:
            if self._iterator is None:
                self._iterator = weakref.ref(self.loader.dl._iterator)
            yield batch

    def own_state(self, done: int) -> dict[str, Any] | None:
        """Return the loader's own state after ``done`` batches of the epoch; None if it saves none."""
        # A callback may have begun another iteration, whose state the loader would give.
        if self._iterator is None or self._iterator() is not self.loader.dl._iterator:
            return None
        state = self.loader.dl.state_dict()
        return state if is_plain(state) and batches_done(state) == done else None  # unless it skipped an empty batch


def saves_own_state(loader: Any) -> bool:
    """Return whether a loader is torchdata's ``StatefulDataLoader`` and its state is all that it needs to go on.

    With worker processes it is not: their random generators are in no state, and would give other numbers than in a run
    that was not interrupted.
    """
    dl: Any = getattr(loader, "dl", None)
    is_stateful = any(module_name(cls).startswith("torchdata.stateful_dataloader") for cls in type(dl).__mro__)
    return is_stateful and not dl.num_workers


def batches_before(dl: Any) -> int:
    """Return the batches of an epoch before the next one of a loader; of a ``StatefulDataLoader`` that was set back."""
    return batches_done(getattr(dl, "next_iter_state", None) or {})


def batches_done(state: dict[str, Any]) -> int:
    """Return the batches of an epoch that a ``StatefulDataLoader`` with this state has read."""
    of_workers = state.get("_snapshot", {}).get("_snapshot_step", 0) + state.get("_steps_since_snapshot", 0)
    return int(state.get("_num_yielded", of_workers))


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
