"""The state of the loop: its only holder, the events, which fields are known at each, and what may be changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor


@dataclass(frozen=True)
class Event:
    """One event of the loop: the fields first known there, and the fields that a callback may return."""

    first_known: tuple[str, ...]
    may_return: tuple[str, ...]


# In the order in which a run meets them. The README's table is made from this one.
EVENTS: dict[str, Event] = {
    "on_train_begin": Event(
        (
            "n_epochs",
            "epoch",
            "iteration",
            "num_batch",
            "pbar",
            "metrics",
            "metrics_names",
            "raw_losses",
            "skip_validate",
        ),
        ("epoch", "skip_validate"),
    ),
    "on_epoch_begin": Event(("stop_training",), ("skip_validate", "stop_training")),
    "on_batch_begin": Event(
        ("last_input", "last_target", "train", "stop_epoch", "skip_bwd", "skip_step", "skip_zero"),
        (
            "last_input",
            "last_target",
            "skip_bwd",
            "skip_step",
            "skip_zero",
            "stop_epoch",
            "stop_training",
            "skip_validate",
        ),
    ),
    "on_loss_begin": Event(
        ("last_output",),
        ("last_output", "skip_bwd", "skip_step", "skip_zero", "stop_epoch", "stop_training", "skip_validate"),
    ),
    "on_backward_begin": Event(
        ("last_loss", "smooth_loss"),
        ("last_loss", "skip_bwd", "skip_step", "skip_zero", "stop_epoch", "stop_training", "skip_validate"),
    ),
    "on_backward_end": Event((), ("skip_step", "skip_zero", "stop_epoch", "stop_training", "skip_validate")),
    "on_step_end": Event((), ("skip_zero", "stop_epoch", "stop_training", "skip_validate")),
    "on_batch_end": Event((), ("stop_epoch", "stop_training", "skip_validate")),
    "on_epoch_end": Event(("last_metrics",), ("last_metrics", "n_epochs", "stop_training", "skip_validate")),
    "on_train_end": Event(("exception",), ()),
}

FIRST_KNOWN: dict[str, str] = {field: name for name, event in EVENTS.items() for field in event.first_known}


def n_items(target: Any) -> int:
    """Return how many items a batch has, by its target: a tensor, or a tuple or list of them."""
    return len(target[0]) if isinstance(target, (list, tuple)) else len(target)


def as_inputs(values: Any) -> Sequence[Any]:
    """Spread a tuple or list over arguments; one tensor is one argument."""
    return values if isinstance(values, (list, tuple)) else (values,)


def listed(values: Any) -> list[Any]:
    """Return None as an empty list, one value as a list of it, and a collection as a list."""
    if values is None:
        return []
    return list(values) if isinstance(values, (list, tuple, set, frozenset)) else [values]


def mapped(function: Callable[[Tensor], Any], values: Any) -> Any:
    """Return ``function`` of a tensor, or of each in tuples, lists and dicts; all else stays as it is.

    >>> mapped(torch.numel, (torch.zeros(2), {"text": "a", "more": [torch.zeros(3)]}))
    (2, {'text': 'a', 'more': [3]})
    """
    if isinstance(values, Tensor):
        return function(values)
    if isinstance(values, tuple) and hasattr(values, "_fields"):
        return type(values)(*(mapped(function, value) for value in values))
    if isinstance(values, (list, tuple)):
        return type(values)([mapped(function, value) for value in values])
    if isinstance(values, dict):
        twin = copy.copy(values)  # of its own kind, such as what models of others return
        for name, value in values.items():
            twin[name] = mapped(function, value)
        return twin
    return values


def joined(batches: Sequence[Any]) -> Any:
    """Return the batches of a data set as one: tensors are put one after another, also those in tuples and dicts.

    >>> joined([(torch.zeros(2), torch.ones(2)), (torch.zeros(1), torch.ones(1))])
    (tensor([0., 0., 0.]), tensor([1., 1., 1.]))
    """
    first = batches[0]
    if isinstance(first, (list, tuple)):
        return type(first)([joined(each) for each in zip(*batches, strict=True)])
    if isinstance(first, dict):
        return {name: joined([batch[name] for batch in batches]) for name in first}
    return torch.cat(list(batches))


def on_cpu(values: Tensor) -> Tensor:
    """Return a tensor on the CPU: the one place where a fit waits for its device, at an epoch's end or to redraw a bar.

    Here waiting is meant, so it is no error under ``torch.cuda.set_sync_debug_mode("error")``.
    """
    if not values.is_cuda:
        return values.cpu()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        return values.cpu()
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def read_floats(values: Tensor) -> list[float]:
    """Return a tensor's numbers, see ``on_cpu``."""
    return on_cpu(values).flatten().tolist()


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


class State:
    """All that the loop knows, under the names that callbacks ask for; nobody else holds a copy.

    A field that nobody has set yet is None. ``raw_losses`` holds a loss a batch; ``smooth_loss`` is their moving
    average, a tensor on the CPU, computed when somebody asks.
    """

    def __init__(
        self, n_epochs: int, pbar: Any, metrics: Sequence[Any] = (), metrics_names: Sequence[str] = ()
    ) -> None:
        self.n_epochs = n_epochs
        self.pbar = pbar
        self.metrics = list(metrics)
        self.metrics_names = list(metrics_names)
        self.epoch = 0
        self.iteration = 0
        self.num_batch = 0
        self.raw_losses = Losses()
        self.skip_validate = False
        self.stop_training = False
        self.last_input: Any = None
        self.last_target: Any = None
        self.train = False
        self.stop_epoch = self.skip_bwd = self.skip_step = self.skip_zero = False
        self.last_output: Any = None
        self.last_loss: Any = None
        self.last_metrics: list[Any] = []
        self.exception: BaseException | bool = False
        self.rest: Callable[[Any], Any] | None = None

    @property
    def smooth_loss(self) -> Tensor | None:
        """The moving average of the training losses so far, before callbacks changed them."""
        smoothed = self.raw_losses.smoothed()
        return torch.tensor(smoothed[-1]) if smoothed else None

    def batches(self, loader: Any) -> Any:
        """Return the batches of this epoch that are still to do: all, or after a resume the rest."""
        rest, self.rest = self.rest, None
        return loader if rest is None else rest(loader)

    def begin_epoch(self) -> None:
        """Start counting an epoch's batches."""
        self.num_batch = 0
        self.stop_training = False

    def end_epoch(self) -> None:
        """Count an epoch as done."""
        self.epoch += 1
        self.pbar.epochs_done(self.epoch, self.n_epochs)

    def end_batch(self) -> None:
        """Count a training batch as done."""
        self.iteration += 1
        self.num_batch += 1

    def begin_batch(self, xb: Any, yb: Any, train: bool) -> None:
        """Take a batch in and lower the flags that last for one batch."""
        self.last_input = xb
        self.last_target = yb
        self.train = train
        self.stop_epoch = self.skip_bwd = self.skip_step = self.skip_zero = False
