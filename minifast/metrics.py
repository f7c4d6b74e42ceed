"""Metrics: functions of (output, target), and their mean over a validation set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from minifast.callback import Callback, snake_case
from minifast.errors import did_you_mean
from minifast.state import WeightedMean, as_inputs, n_items


def accuracy(input: Tensor, targs: Tensor) -> Tensor:
    """Return the share of items whose highest output is the target.

    Args:
        input: outputs ``(n, ..., classes)``.
        targs: class numbers ``(n, ...)``.

    >>> import torch
    >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    tensor(0.5000)
    """
    return (input.argmax(dim=-1) == targs.view(input.shape[:-1])).float().mean()


def error_rate(input: Tensor, targs: Tensor) -> Tensor:
    """Return 1 - accuracy.

    >>> import torch
    >>> error_rate(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    tensor(0.5000)
    """
    return 1 - accuracy(input, targs)


def add_metrics(last_metrics: Sequence[Any], mets: Any) -> dict[str, list[Any]]:
    """Return what a metric's ``on_epoch_end`` hands back: ``last_metrics`` with its value, or values, at the end.

    >>> add_metrics([0.5], 0.9)
    {'last_metrics': [0.5, 0.9]}
    """
    return {"last_metrics": [*last_metrics, *as_inputs(mets)]}


class AverageMetric(Callback):
    """The mean of ``func(output, *targets)`` over the validation set, each batch weighted by its number of items.

    The sum stays on the device and is read once an epoch.
    """

    def __init__(self, func: Callable[..., Any]) -> None:
        self.func = func
        self.name = name_of(func)

    def on_epoch_begin(self) -> None:
        """Start the sum."""
        self.mean = WeightedMean()

    def on_batch_end(self, last_output: Any, last_target: Any) -> None:
        """Add a batch."""
        self.mean.add(self.func(last_output, *as_inputs(last_target)), n_items(last_target))

    def on_epoch_end(self, last_metrics: list[Any]) -> dict[str, list[Any]]:
        """Hand back the mean."""
        return add_metrics(last_metrics, self.mean.read())


def name_of(metric: Any) -> str:
    """Return the name of a metric's column: its ``name``, its function's name, or its class's in snake case.

    >>> name_of(accuracy), name_of(partial(accuracy))
    ('accuracy', 'accuracy')
    """
    if isinstance(getattr(metric, "name", None), str):
        return str(metric.name)
    if isinstance(metric, partial):
        return name_of(metric.func)
    return str(getattr(metric, "__name__", snake_case(type(metric).__name__)))


def as_metric(metric: Any) -> Callback:
    """Return a metric as a callback: a function is averaged over the batches, a callback is taken as it is.

    Raises:
        TypeError: it is neither, or a class where an instance is wanted.
    """
    if isinstance(metric, type) and issubclass(metric, Callback):
        raise TypeError(f"metrics holds the class {metric.__name__}; give an instance of it: {metric.__name__}().")
    if isinstance(metric, Callback):
        return metric
    if not callable(metric):
        hint = did_you_mean(metric, [accuracy.__name__, error_rate.__name__]) if isinstance(metric, str) else ""
        raise TypeError(f"metrics holds {metric!r}, which is not callable; give a function of (output, target).{hint}")
    return AverageMetric(metric)
