"""Epochs of a data set without a length, such as torch's IterableDataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils.data import DataLoader

from minifast.data.order import set_epoch
from minifast.data.resume import preserve_loader
from minifast.errors import DataError


class EpochStream:
    """Yield ``length`` batches per epoch of a DataLoader whose data set has no length.

    Each epoch continues where the last one ended. When the data set ends, it begins anew, also within an epoch. A
    stream that is set back, as after ``lr_find`` or by a resumed run, reads the earlier batches of its pass again.

    Args:
        loader: a torch DataLoader.
        length: batches per epoch.
        restart: begin each epoch with the first batch, and end where the data set ends: for validation.
        seed: the seed of the workers.
    """

    def __init__(self, loader: DataLoader[Any], length: int, restart: bool = False, seed: int = 0) -> None:
        self.loader = loader
        self.length = length
        self.restart = restart
        self.seed = seed
        self.passes = 0  # how often the data set has ended
        self.done = 0  # batches of this pass that were read

    @property
    def batch_size(self) -> int | None:
        """The samples in a batch."""
        return self.loader.batch_size

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        if self.restart:
            self.done = 0
            _open.pop(self, None)
        for n in range(self.length):
            batch = next(self._batches(), None)
            if batch is None and (self.restart or not self.done):
                if not n and not self.restart:
                    raise DataError(f"{type(self.loader.dataset).__name__} yields no batch; give it samples.")
                return
            if batch is None:
                self.passes, self.done = self.passes + 1, 0
                batch = next(self._batches(), None)
                if batch is None:
                    raise DataError(
                        f"{type(self.loader.dataset).__name__} can be iterated only once, and ended after "
                        f"{n} batches of an epoch; let it begin anew, or lower `epoch_length`."
                    )
            self.done += 1
            _open[self] = (_open[self][0], (self.passes, self.done))
            yield batch

    def _batches(self) -> Iterator[Any]:
        """Return an iterator at the present position, which reads earlier batches again if it has to be made."""
        iterator: Any
        iterator, position = _open.get(self, (None, None))
        if iterator is None or position != (self.passes, self.done):
            generator = self.loader.generator
            if isinstance(generator, torch.Generator):  # so that the workers of a pass have the same seeds again
                generator.manual_seed((self.seed * 1_000_003 + self.passes) % 2**63)
            set_epoch(self.loader, self.passes)
            if self.done:
                with preserve_loader(self.loader):
                    iterator = iter(self.loader)
                    for _ in range(self.done):
                        next(iterator)
            else:
                iterator = iter(self.loader)
            _open[self] = (iterator, (self.passes, self.done))
        return iter(iterator)


# Iterators cannot be copied or saved, so they are not attributes.
_open: WeakKeyDictionary[EpochStream, tuple[Any, Any]] = WeakKeyDictionary()
