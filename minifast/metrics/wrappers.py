"""Callbacks that make metrics of functions and of objects with ``reset``, ``update`` and ``compute``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from minifast.errors import DataError
from minifast.losses import check_broadcast, is_summed, loss_weight
from minifast.metrics.loss_options import loss_options
from minifast.training.averages import WeightedMean
from minifast.training.callback import Callback, snake_case
from minifast.utils.checks import bound_arguments
from minifast.utils.shapes import counted_only
from minifast.utils.tensors import as_arguments, to_cpu


def add_metrics(last_metrics: Sequence[Any], mets: Any) -> dict[str, list[Any]]:
    """Return what a metric's ``on_epoch_end`` returns: ``last_metrics`` with its value, or values, at the end.

    Args:
        last_metrics: the validation loss and the values of the metrics before this one.
        mets: the value of this metric, or a tuple or list with one value for each of its columns.

    >>> add_metrics([0.5], 0.9)
    {'last_metrics': [0.5, 0.9]}
    """
    return {"last_metrics": [*last_metrics, *as_arguments(mets)]}


class AverageMetric(Callback):
    """Average ``func(output, *targets)`` over the batches of the validation set, weighted by their samples.

    The function returns a number, or several: a vector, tuple, list or dict of numbers. Several values have one column
    each, named after the metric and the key or position. The sums stay on the device and are read once an epoch.
    minifast's own means and torch's losses weight a batch by the number of targets that count.

    Args:
        func: a function of (output, target), or of (output, target 1, target 2, ...) for several targets.

    >>> from minifast import accuracy
    >>> AverageMetric(accuracy).name
    'accuracy'
    """

    def __init__(self, func: Any) -> None:
        self.func = func
        self.name = name_of(func)
        self._options: dict[str, Any] = {}
        self._ignored: int | None = None

    def follow_loss(self, loss_func: Any) -> None:
        """Take the arguments that follow the loss, such as ``ignore_index``, unless they are given."""
        given = bound_arguments(self.func)
        function = without_arguments(self.func)
        accepted, elementwise = getattr(function, "loss_options", ()), getattr(function, "elementwise", False)
        options = loss_options(loss_func) if accepted or elementwise else {}
        self._ignored = options.get("ignore_index") if elementwise else None
        self._options = {name: options[name] for name in accepted if name in options and name not in given}

    def on_epoch_begin(self) -> None:
        """Start the sums."""
        self._means: list[WeightedMean] = []
        self._keys: list[Any] | None = None

    def on_batch_end(self, last_output: Any, last_target: Any, last_input: Any = None) -> None:
        """Add the values of a batch."""
        check_broadcast(self.func, last_output, last_target)
        if self._ignored is not None:
            last_output, last_target = counted_only(last_output, last_target, self._ignored)
        value = self.func(last_output, *as_arguments(last_target), **self._options)
        keys, values = self._split(value)
        if not self._means:
            self._keys, self._means = keys, [WeightedMean() for _ in values]
        elif len(values) != len(self._means):
            raise DataError(
                f"The metric {self.name} returned {len(values)} values for this batch and {len(self._means)} before; "
                f"return the same number of values for each batch, not one per sample."
            )
        elif keys != self._keys:
            raise DataError(
                f"The metric {self.name} returned the keys {keys} for this batch and {self._keys} before; return the "
                f"same keys for each batch, in the same order."
            )
        n = self._weight(last_output, last_target, last_input)
        for mean, element in zip(self._means, values, strict=True):
            mean.add(element, n)

    def _split(self, value: Any) -> tuple[list[Any] | None, Sequence[Any]]:
        """Return the keys (None for a single value) and the numbers of what the function returned."""
        if isinstance(value, Tensor) and value.numel() == 1:
            return None, [value.reshape(())]
        if isinstance(value, dict):
            keys, values = list(value), list(value.values())
        elif isinstance(value, (list, tuple)) or (getattr(value, "ndim", 0) == 1 and len(value)):
            keys, values = list(range(len(value))), list(value)
        else:
            keys, values = None, [value]
        for element in values:
            shape = tuple(getattr(element, "shape", ()))
            if math.prod(shape) != 1 or not (isinstance(element, Tensor) or hasattr(element, "__float__")):
                what = f"a value of shape {shape}" if shape else repr(element)
                raise DataError(
                    f"The metric {self.name} returned {what}; return a number, or a vector, tuple, list or dict of "
                    f"numbers."
                )
        return keys, [element.reshape(()) if isinstance(element, Tensor) else float(element) for element in values]

    def _weight(self, output: Any, target: Any, inputs: Any) -> Any:
        count = getattr(without_arguments(self.func), "count", None)
        if count is None:
            return loss_weight(self.func, target, inputs)  # of a loss what it counts, otherwise the samples
        return count(output, *as_arguments(target), **{**bound_arguments(self.func), **self._options})

    def on_epoch_end(self, last_metrics: list[Any]) -> dict[str, list[Any]]:
        """Return the means."""
        summed = is_summed(self.func)  # sums of batches add up
        values = [mean.read_sum() if summed else mean.read() for mean in self._means]
        if not values:
            return add_metrics(last_metrics, None)
        if self._keys is None:
            return add_metrics(last_metrics, values[0])
        return add_metrics(last_metrics, [dict(zip(self._keys, values, strict=True))])


class UpdatedMetric(Callback):
    """Use an object with ``reset``, ``update(output, *targets)`` and ``compute`` as a metric, such as torchmetrics'.

    It moves to the device of the outputs at the first batch of a validation and is reset after the last. Each member of
    a ``MetricCollection`` has a column, and each value of a member that returns several has its own.

    Args:
        metric: the object.
    """

    def __init__(self, metric: Any) -> None:
        self.metric = metric
        self._begun = False

    @property
    def columns(self) -> list[str]:
        """The names of the members' columns."""
        if not isinstance(self.metric, nn.ModuleDict):
            return [name_of(self.metric)]
        return [snake_case(name) if name == type(member).__name__ else name for name, member in self.metric.items()]

    @property
    def members(self) -> list[Any]:
        """The metric objects, one for each of ``columns``."""
        return list(self.metric.values()) if isinstance(self.metric, nn.ModuleDict) else [self.metric]

    def on_epoch_begin(self) -> None:
        """Expect the first batch; without validation the object does not change."""
        self._begun = False

    def on_batch_end(self, last_output: Any, last_target: Any) -> None:
        """Add a batch."""
        if not self._begun:
            self._begun = True
            self.metric.reset()
            if isinstance(last_output, Tensor) and hasattr(self.metric, "to"):
                self.metric.to(last_output.device)
        self.metric.update(last_output, *as_arguments(last_target))

    def on_epoch_end(self, last_metrics: list[Any]) -> dict[str, list[Any]]:
        """Return the values as plain numbers, lists and dicts, and reset the object."""
        members = self.members
        if not self._begun:
            return add_metrics(last_metrics, [None] * len(members))
        values = [without_tensors(member.compute()) for member in members]
        self.metric.reset()
        return add_metrics(last_metrics, values)


def without_tensors(value: Any) -> Any:
    """Return the value of a metric without tensors: a number, or a list or dict of numbers.

    >>> import torch
    >>> without_tensors([torch.tensor(0.5), {"cat": torch.tensor([1, 2])}])
    [0.5, {'cat': [1, 2]}]
    """
    if isinstance(value, dict):
        return {name: without_tensors(element) for name, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_tensors(element) for element in value]
    if isinstance(value, Tensor):
        return to_cpu(value).tolist()
    return value


def name_of(metric: Any) -> str:
    """Return the name of a metric: its ``name``, its function's name, or its class name in snake case.

    >>> from minifast import accuracy
    >>> name_of(accuracy), name_of(partial(accuracy))
    ('accuracy', 'accuracy')
    """
    if isinstance(getattr(metric, "name", None), str):
        return str(metric.name)
    if isinstance(metric, partial):
        return name_of(metric.func)
    return str(getattr(metric, "__name__", snake_case(type(metric).__name__)))


def without_arguments(function: Any) -> Any:
    """Return the function of a ``partial``, any other value unchanged."""
    return function.func if isinstance(function, partial) else function
