"""Averages over batches: weighted means and the smoothed training loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from minifast.utils.checks import shown
from minifast.utils.tensors import read_floats


class WeightedMean:
    """Mean of values over batches, each with a weight; sums stay on their device until you read the mean.

    A batch of weight 0 adds nothing, whatever its value is: the loss of a batch that counts no target is NaN.

    >>> mean = WeightedMean()
    >>> mean.add(1.0, 1); mean.add(4.0, 2); mean.add(float("nan"), 0)
    >>> mean.read()
    3.0
    """

    def __init__(self) -> None:
        self._total: Any = 0.0
        self._weight: Any = 0
        self._empty = True

    def add(self, value: Any, n: Any) -> None:
        """Add the value of a batch with the weight ``n``, a number or a tensor of one number."""
        value = value.detach() if isinstance(value, Tensor) else value
        self._empty = False
        if isinstance(n, Tensor):  # on a device, which a comparison would wait for
            self._total += torch.where(n == 0, 0, n * value)
        elif n:
            self._total += n * value
        self._weight += n

    def read(self) -> float | None:
        """Return the mean: None without a batch, NaN where all weights are 0."""
        if self._empty:
            return None
        if not isinstance(self._weight, Tensor) and not self._weight:
            return math.nan
        return _as_float(self._total / self._weight)

    def read_sum(self) -> float | None:
        """Return the weighted sum, or None without a batch."""
        return None if self._empty else _as_float(self._total)


def _as_float(value: Any) -> float:
    return read_floats(value)[0] if isinstance(value, Tensor) else float(value)


class SmoothenValue:
    """Exponential moving average with bias correction (Kingma & Ba 2015, section 3).

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
        """Add a value and update ``smooth``."""
        self.n += 1
        self.mov_avg = self.beta * self.mov_avg + (1 - self.beta) * val
        self.smooth = self.mov_avg / (1 - self.beta**self.n)


def check_loss(loss: Any) -> None:
    """Raise a TypeError or ValueError unless a loss is a tensor of one number."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"`loss_func` must return a tensor of one number, got {shown(loss)}.")
    if loss.numel() != 1:
        raise ValueError(
            f"`loss_func` must return one number per batch, got a tensor of shape {tuple(loss.shape)}; "
            f"take the mean, which torch's losses do with reduction='mean'."
        )


UNCOUNTED = -0.0  # the recorded loss of a batch that counts nothing; it equals 0 and survives files and devices


def is_uncounted(loss: float) -> bool:
    """Return whether a recorded loss is ``UNCOUNTED``, which averages leave out."""
    return loss == 0 and math.copysign(1, loss) < 0


class Losses(Sequence[float]):
    """Training losses of a fit, one float per batch, and their moving average.

    Losses on a device stay there until they are read: ``append`` never waits for the device, reading does. Batches of
    one accumulated step are one value of the average: the loss of one big batch of all their samples.
    """

    def __init__(self, beta: float = 0.98) -> None:
        self._values: list[float] = []
        self._waiting: list[Tensor] = []
        self._average = SmoothenValue(beta)
        self._smoothed: list[float] = []
        self._parts: dict[int, tuple[int, Any, bool]] = {}  # of accumulated steps: first batch, weight, whether summed
        self._step = WeightedMean()
        self._before = (0, 0.0, 0.0)  # the average before the step

    def append(self, loss: Tensor) -> None:
        """Add the loss of a batch, a tensor of one number."""
        if loss.is_cpu:
            self._values.append(loss.item())
        else:
            self._waiting.append(loss.detach().view(()))

    def replace_last(self, loss: Tensor) -> None:
        """Replace the loss that was added last."""
        del (self._waiting or self._values)[-1]
        self.append(loss)

    def join_step(self, weight: Any, is_first: bool, is_summed: bool) -> None:
        """Make the loss that was added last a part of an accumulated step.

        Args:
            weight: the weight of the batch in the loss of the step.
            is_first: whether the step begins with it.
            is_summed: whether losses are sums, which add up.
        """
        i = len(self) - 1
        begin = i if is_first else self._parts.get(i - 1, (i,))[0]
        self._parts[i] = begin, weight, is_summed

    @property
    def parts(self) -> list[list[Any]]:
        """The losses that are parts of accumulated steps: number, first of the step, weight, whether summed."""
        self.smoothed()  # reads the weights, each once
        return [[i, *part] for i, part in self._parts.items()]

    def step_loss(self, begin: int) -> float | None:
        """Return the loss of the last step, of the batches from ``begin`` at most; None if none of them counts."""
        mean, is_summed = WeightedMean(), False
        begin = max(begin, self._parts.get(len(self) - 1, (begin,))[0])
        for i, value in enumerate(self[begin:], begin):
            _, weight, is_summed = self._parts.get(i, (i, 1, False))
            if not is_uncounted(value):
                mean.add(value, float(weight))
        return mean.read_sum() if is_summed else mean.read()

    def restore(self, values: Sequence[float], parts: Sequence[Sequence[Any]] = ()) -> None:
        """Replace all losses by ``values``, with their ``parts``."""
        self._waiting.clear()
        self._values[:] = values
        self._parts = {i: (begin, weight, is_summed) for i, begin, weight, is_summed in parts}
        self._smoothed.clear()
        self._average = SmoothenValue(self._average.beta)

    def truncate(self, n: int) -> None:
        """Keep the first ``n`` losses only."""
        del self.read()[n:]
        del self._smoothed[n:]
        self._parts = {i: part for i, part in self._parts.items() if i < n}

    @property
    def arrived(self) -> list[float]:
        """The losses that are on the CPU already; reading them waits for no device."""
        return self._values

    def read(self) -> list[float]:
        """Return all losses in order; the list grows with the fit."""
        if self._waiting:
            self._values += read_floats(torch.stack(self._waiting))
            self._waiting.clear()
        return self._values

    def smoothed(self) -> list[float]:
        """Return the moving average after each loss."""
        average = self._average
        for i, value in enumerate(self.read()[len(self._smoothed) :], len(self._smoothed)):
            part = self._parts.get(i)
            if part is not None:
                self._add_part(i, value, *part)
            elif not is_uncounted(value):
                average.add_value(value)
            self._smoothed.append(average.smooth)
        return self._smoothed

    def _add_part(self, i: int, value: float, begin: int, weight: Any, is_summed: bool) -> None:
        """Put the loss of a step, with this batch, in the place of its loss without."""
        average, weight = self._average, float(weight)
        self._parts[i] = begin, weight, is_summed
        if i == begin:
            self._step, self._before = WeightedMean(), (average.n, average.mov_avg, average.smooth)
        if not is_uncounted(value):
            self._step.add(value, weight)
            average.n, average.mov_avg, average.smooth = self._before
            average.add_value(float((self._step.read_sum() if is_summed else self._step.read()) or 0.0))

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
