"""Averages over batches: weighted means and the smoothed training loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from minifast.utils.tensors import read_floats


class WeightedMean:
    """A mean over batches, each weighted by its items; the sum stays on its device until it is read.

    >>> mean = WeightedMean()
    >>> mean.add(1.0, 1); mean.add(4.0, 2)
    >>> mean.read()
    3.0
    """

    def __init__(self) -> None:
        self._total: Any = 0.0
        self._count = 0

    def add(self, value: Any, n: int) -> None:
        """Add the value of a batch of ``n`` items."""
        self._total += n * (value.detach() if isinstance(value, Tensor) else value)
        self._count += n

    def read(self) -> float | None:
        """Return the mean, or None of nothing."""
        if not self._count:
            return None
        mean = self._total / self._count
        return read_floats(mean)[0] if isinstance(mean, Tensor) else float(mean)


class SmoothenValue:
    """An exponential moving average, corrected for its start at 0 (Kingma & Ba 2015, section 3).

    >>> smooth = SmoothenValue(0.5)
    >>> smooth.add_value(1.0); smooth.add_value(2.0)
    >>> round(smooth.smooth, 4)
    1.6667
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self.n = 0
        self.mov_avg = 0.0
        self.smooth = 0.0

    def add_value(self, val: float) -> None:
        """Take one more value in; ``smooth`` is the average after it."""
        self.n += 1
        self.mov_avg = self.beta * self.mov_avg + (1 - self.beta) * val
        self.smooth = self.mov_avg / (1 - self.beta**self.n)


class Losses(Sequence[float]):
    """The training losses of a fit, a float a batch, and their smoothed twin.

    On a device the losses stay there until somebody reads: ``append`` never waits for the device, reading does.
    """

    def __init__(self, beta: float = 0.98) -> None:
        self._values: list[float] = []
        self._waiting: list[Tensor] = []
        self._average = SmoothenValue(beta)
        self._smoothed: list[float] = []

    def append(self, loss: Tensor) -> None:
        """Add the loss of one more batch, a tensor without dimensions."""
        if not isinstance(loss, Tensor):
            raise TypeError(f"loss_func returned {loss!r}; it must return a tensor of one number.")
        if loss.numel() != 1:
            raise ValueError(
                f"loss_func returned a tensor of shape {tuple(loss.shape)}; a loss is one number a batch, "
                f"such as the mean: give torch's losses reduction='mean'."
            )
        if loss.is_cpu:
            self._values.append(loss.item())
        else:
            self._waiting.append(loss.detach().view(()))

    def restore(self, values: Sequence[float]) -> None:
        """Hold ``values`` and nothing else, as if they had been appended one by one."""
        self._waiting.clear()
        self._values[:] = values
        self._smoothed.clear()
        self._average = SmoothenValue(self._average.beta)

    def truncate(self, n: int) -> None:
        """Forget all but the first ``n`` losses."""
        del self.read()[n:]
        del self._smoothed[n:]

    @property
    def arrived(self) -> list[float]:
        """The losses that reading costs nothing: all but those that wait on a device."""
        return self._values

    def read(self) -> list[float]:
        """Return the losses as they came; the list grows with the fit."""
        if self._waiting:
            self._values += read_floats(torch.stack(self._waiting))
            self._waiting.clear()
        return self._values

    def smoothed(self) -> list[float]:
        """Return the smoothed losses, as many as there are losses."""
        for value in self.read()[len(self._smoothed) :]:
            self._average.add_value(value)
            self._smoothed.append(self._average.smooth)
        return self._smoothed

    def __len__(self) -> int:
        return len(self._values) + len(self._waiting)

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> list[float]: ...
    def __getitem__(self, index: int | slice) -> float | list[float]:
        return (self.read() if self._waiting else self._values)[index]

    def __iter__(self) -> Iterator[float]:
        return iter(self.read())

    def __repr__(self) -> str:
        return repr(self.read())
