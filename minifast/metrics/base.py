"""Metrics as callbacks, the names of their columns, and the direction of better."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from torch import nn

from minifast.errors import CallbackError
from minifast.metrics.functions import accuracy, accuracy_thresh, dice, error_rate, fbeta, top_k_accuracy
from minifast.metrics.wrappers import AverageMetric, UpdatedMetric, name_of, without_arguments
from minifast.training.callback import Callback
from minifast.utils.checks import did_you_mean, shown

RESERVED = ("epoch", "train_loss", "valid_loss", "time")  # other columns of the table


def columns_of(metrics: Sequence[Any]) -> list[str]:
    """Return the columns of metrics, mostly one each, all with different names.

    Of several metrics with one name, a ``partial`` gets its arguments in its name, any other a number.

    >>> columns_of([accuracy, error_rate])
    ['accuracy', 'error_rate']
    >>> columns_of([partial(top_k_accuracy, k=2), partial(top_k_accuracy, k=3), accuracy, accuracy])
    ['top_k_accuracy_k_2', 'top_k_accuracy_k_3', 'accuracy', 'accuracy_2']
    """
    return [name for name, _ in named_metrics(metrics)]


def named_metrics(metrics: Sequence[Any]) -> list[tuple[str, Any]]:
    """Return the name of each column and the function or object that its value comes from."""
    columns: list[tuple[str, Any]] = []
    _check_distinct(metrics)
    for metric in map(as_metric, metrics):
        if isinstance(metric, UpdatedMetric):
            columns += zip(metric.columns, metric.members, strict=True)
        elif hasattr(type(metric), "columns"):
            columns += [(name, metric) for name in metric.columns]  # type: ignore[attr-defined]
        else:
            columns.append((name_of(metric), metric.func if isinstance(metric, AverageMetric) else metric))
    names = [name for name, _ in columns]
    for i, (name, source) in enumerate(columns):
        if names.count(name) > 1 and isinstance(source, partial):
            columns[i] = ("_".join([name, *_describe_arguments(source)]), source)
    return list(zip(distinct([name for name, _ in columns], RESERVED), (source for _, source in columns), strict=True))


def _check_distinct(metrics: Sequence[Any]) -> None:
    """Raise a ValueError if an object that accumulates values is in ``metrics`` twice, also inside of others."""
    seen: set[int] = set()
    for given in metrics:
        metric = given.metric if isinstance(given, UpdatedMetric) else given
        if isinstance(metric, AverageMetric) or not (isinstance(metric, Callback) or hasattr(metric, "reset")):
            continue  # functions have no state
        parts = {id(part) for part in (metric.modules() if isinstance(metric, nn.Module) else [metric])}
        if parts & seen:
            raise ValueError(
                f"The metric {name_of(metric)} is in `metrics` twice as one object, which would count each batch "
                f"twice; give a second object, such as copy.deepcopy(metric)."
            )
        seen |= parts


def distinct(names: Sequence[str], reserved: Sequence[str] = ()) -> list[str]:
    """Return names with a number behind each that is reserved or occurs before.

    >>> distinct(["loss", "loss", "time"], reserved=["time"])
    ['loss', 'loss_2', 'time_2']
    """
    used, result = set(reserved), list[str]()
    taken = used | set(names)
    for name in names:
        choice, number = name, 2
        while choice in used or (choice != name and choice in taken):
            choice, number = f"{name}_{number}", number + 1
        used.add(choice)
        result.append(choice)
    return result


def expand(column: str, value: Any) -> tuple[list[str], list[Any]]:
    """Return a column and its value; a list or dict of numbers has one column for each.

    A list of lists, such as a confusion matrix, stays the value of one column.

    >>> expand("recall", {"cat": 0.5, "dog": 1.0}), expand("recall", [0.5, 1.0]), expand("recall", 0.5)
    ((['recall_cat', 'recall_dog'], [0.5, 1.0]), (['recall_0', 'recall_1'], [0.5, 1.0]), (['recall'], [0.5]))
    """
    if isinstance(value, dict) and value:
        names, values = [f"{column}_{key}" for key in value], list(value.values())
    elif isinstance(value, list) and value and not any(isinstance(element, (list, dict)) for element in value):
        names, values = [f"{column}_{i}" if len(value) > 1 else column for i in range(len(value))], value
    else:
        return [column], [value]
    return names, values


def expand_all(columns: Sequence[str], values: Sequence[Any]) -> tuple[list[str], list[Any]]:
    """Return the columns and values of metrics after ``expand``, with distinct names.

    Raises:
        CallbackError: if there are not as many values as columns.
    """
    if len(values) != len(columns):
        raise CallbackError(
            f"The metrics returned {len(values)} values for the columns {', '.join(columns) or '(none)'}; a "
            f"metric callback that returns several values needs an attribute `columns` with a name for each."
        )
    names: list[str] = []
    numbers: list[Any] = []
    for column, value in zip(columns, values, strict=True):
        more_names, more_numbers = expand(column, value)
        names += more_names
        numbers += more_numbers
    return distinct(names, RESERVED), numbers


def may_become(name: str, columns: Sequence[str]) -> bool:
    """Return whether ``name`` is one of ``columns``, or may be one of several values of it."""
    return any(name == column or name.startswith(f"{column}_") for column in columns)


def may_be_header(header: Sequence[str], columns: Sequence[str]) -> bool:
    """Return whether a table with ``columns`` may have this header after ``expand_all``."""
    rest = list(header)
    for column in columns:
        if rest[:1] == [column]:
            del rest[0]
        elif rest and rest[0].startswith(f"{column}_"):
            while rest and rest[0].startswith(f"{column}_"):
                del rest[0]
        else:
            return False
    return not rest


def direction_of(name: str, metrics: Sequence[Any]) -> str | None:
    """Return ``"max"`` if the metric of column ``name`` is better when higher, ``"min"`` when lower, None if unknown.

    A metric states it in an attribute ``higher_is_better``, as those of torchmetrics and minifast do. torch's losses
    are better when lower.

    Args:
        name: a column of ``columns_of(metrics)``, or one of several values of it.
        metrics: the learner's metrics.

    >>> direction_of("accuracy", [accuracy]), direction_of("f", [lambda output, target: 0.0])
    ('max', None)
    """
    columns = dict(named_metrics(metrics))
    column = max((column for column in columns if may_become(name, [column])), key=len, default=None)
    if column is None:
        return None
    for source in _sources(columns[column]):
        higher = getattr(source, "higher_is_better", None)
        if isinstance(higher, bool):
            return "max" if higher else "min"
        if isinstance(source, nn.modules.loss._Loss):
            return "min"
    return None


def _sources(metric: Any) -> Iterator[Any]:
    """Yield a metric, the function without bound arguments, and the metric inside of a wrapper."""
    yield metric
    for name in ("func", "metric", "_base_metric", "base_metric"):
        inner = getattr(metric, name, None)
        if inner is not None:
            yield from _sources(inner)


def _describe_arguments(function: partial[Any]) -> list[str]:
    return [*map(str, function.args), *(f"{name}_{value}" for name, value in function.keywords.items())]


def as_metric(metric: Any, loss_func: Any = None) -> Callback:
    """Return a metric as a callback.

    A function is averaged over the batches, or computed over all predictions if it is one of minifast's that is not a
    mean; an object with ``reset``, ``update`` and ``compute`` accumulates by itself; a callback is returned unchanged.

    Args:
        metric: the metric.
        loss_func: the loss of the learner; minifast's accuracies ignore the targets that it ignores.

    Raises:
        TypeError: if it is none of these, or a class instead of an instance.
    """
    wrapped: Any = _wrap(metric)
    if loss_func is not None and hasattr(type(wrapped), "follow_loss"):
        wrapped.follow_loss(loss_func)
    return wrapped  # type: ignore[no-any-return]


def _wrap(metric: Any) -> Any:
    if isinstance(metric, type):
        raise TypeError(
            f"`metrics` must hold instances, got the class {metric.__name__}; give an instance of it: "
            f"{metric.__name__}()."
        )
    if isinstance(metric, Callback):
        return metric
    if all(hasattr(metric, name) for name in ("reset", "update", "compute")):
        return UpdatedMetric(metric)
    if not callable(metric):
        known = [function.__name__ for function in (accuracy, error_rate, top_k_accuracy, accuracy_thresh, fbeta, dice)]
        hint = did_you_mean(metric, known) if isinstance(metric, str) else ""
        raise TypeError(
            f"`metrics` must hold functions of (output, target), got {shown(metric)}, which is not callable.{hint}"
        )
    over_all = getattr(without_arguments(metric), "over_all", None)
    if over_all is None:
        return AverageMetric(metric)
    made = over_all()
    made.name = name_of(metric)
    return made
