"""What every metric needs: averages over the validation set, names and columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from minifast.metrics.functions import accuracy, accuracy_thresh, dice, error_rate, fbeta, top_k_accuracy
from minifast.training.averages import WeightedMean
from minifast.training.callback import Callback, snake_case
from minifast.utils.checks import did_you_mean
from minifast.utils.tensors import as_arguments, count_samples, to_cpu

Function = TypeVar("Function", bound=Callable[..., Any])


def add_metrics(last_metrics: Sequence[Any], mets: Any) -> dict[str, list[Any]]:
    """Return what a metric's ``on_epoch_end`` hands back: ``last_metrics`` with its value, or values, at the end.

    >>> add_metrics([0.5], 0.9)
    {'last_metrics': [0.5, 0.9]}
    """
    return {"last_metrics": [*last_metrics, *as_arguments(mets)]}


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
        self.mean.add(self.func(last_output, *as_arguments(last_target)), count_samples(last_target))

    def on_epoch_end(self, last_metrics: list[Any]) -> dict[str, list[Any]]:
        """Hand back the mean."""
        return add_metrics(last_metrics, self.mean.read())


class UpdatedMetric(Callback):
    """An object with ``reset``, ``update(output, *targets)`` and ``compute`` as a metric, such as any of torchmetrics.

    It is moved to the device of the outputs at the first batch of a validation and is empty again after the last. A
    collection of torchmetrics gives a column each.
    """

    def __init__(self, metric: Any) -> None:
        self.metric = metric
        self._begun = False

    @property
    def columns(self) -> list[str]:
        """The names of the values that it adds."""
        if not isinstance(self.metric, nn.ModuleDict):
            return [name_of(self.metric)]
        return [snake_case(name) if name == type(one).__name__ else name for name, one in self.metric.items()]

    def on_epoch_begin(self) -> None:
        """Expect a first batch; a run that validates nothing leaves the object alone."""
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
        """Hand back the values, plain numbers or lists of such, and forget the batches."""
        several = isinstance(self.metric, nn.ModuleDict)
        members = list(self.metric.values()) if several else [self.metric]
        if not self._begun:
            return add_metrics(last_metrics, [None] * len(members))
        values = [as_plain(one.compute()) for one in members]
        self.metric.reset()
        return add_metrics(last_metrics, values)


def as_plain(value: Any) -> Any:
    """Return a metric's value without tensors: a number, or a list where there are several.

    >>> import torch
    >>> as_plain(torch.tensor(0.5)), as_plain(torch.tensor([0.5, 1.0])), as_plain({"cat": torch.tensor(1)})
    (0.5, [0.5, 1.0], [1])
    """
    if isinstance(value, dict):
        return [as_plain(one) for one in value.values()]
    if isinstance(value, (list, tuple)):
        return [as_plain(one) for one in value]
    if isinstance(value, Tensor):
        return to_cpu(value).tolist()
    return value


def over_all(measure: Callable[[], Callback]) -> Callable[[Function], Function]:
    """Mark a function that is no mean over items: as a metric it is ``measure()``, over all predictions at once."""

    def mark(function: Function) -> Function:
        vars(function)["over_all"] = measure
        return function

    return mark


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


def columns_of(metrics: Sequence[Any]) -> list[str]:
    """Return the names of all values that metrics add to a row of the table, mostly one each.

    >>> columns_of([accuracy, error_rate])
    ['accuracy', 'error_rate']
    """
    names: list[str] = []
    for metric in map(as_metric, metrics):
        own = hasattr(type(metric), "columns")
        names += metric.columns if own else [name_of(metric)]  # type: ignore[attr-defined]
    return names


def as_metric(metric: Any) -> Callback:
    """Return a metric as a callback.

    A function is averaged over the batches, or measured over all predictions if it is one of those of minifast's that
    are no mean; an object with ``reset``, ``update`` and ``compute`` does its own sums; a callback is taken as it is.

    Raises:
        TypeError: it is none of these, or a class where an instance is wanted.
    """
    if isinstance(metric, type):
        raise TypeError(f"metrics holds the class {metric.__name__}; give an instance of it: {metric.__name__}().")
    if isinstance(metric, Callback):
        return metric
    if all(hasattr(metric, name) for name in ("reset", "update", "compute")):
        return UpdatedMetric(metric)
    if not callable(metric):
        known = [one.__name__ for one in (accuracy, error_rate, top_k_accuracy, accuracy_thresh, fbeta, dice)]
        hint = did_you_mean(metric, known) if isinstance(metric, str) else ""
        raise TypeError(f"metrics holds {metric!r}, which is not callable; give a function of (output, target).{hint}")
    measure = getattr(metric.func if isinstance(metric, partial) else metric, "over_all", None)
    if measure is None:
        return AverageMetric(metric)
    made: Any = measure()
    made.name = name_of(metric)
    return made  # type: ignore[no-any-return]
