"""Try metrics on the first batch of a fit, so that one that does not fit the outputs ends it before its first step."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from minifast.errors import DataError
from minifast.metrics.wrappers import UpdatedMetric, name_of
from minifast.training.callback import Callback
from minifast.training.snapshot import eval_mode, preserve_look
from minifast.utils.checks import module_name
from minifast.utils.state import Snapshot, restoring
from minifast.utils.tensors import as_arguments, as_pair, map_tensors

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


def try_metrics(learn: Learner, metrics: Sequence[Callback], output: Any, target: Any, inputs: Any) -> None:
    """Raise a DataError if a metric fails on the first training batch, and on the first validation batch too.

    The model sees the validation batch only where a metric fails on the training batch, because in training its
    outputs and targets may be others, as with Mixup. The state of metrics and generators stays as it was. Callbacks of
    your own are not tried.
    """
    failing = [metric for metric in metrics if _failure(metric, output, target, inputs) is not None]
    if not failing:
        return
    loader = learn.data.valid_dl
    with preserve_look(learn, loader), eval_mode(learn.model), torch.no_grad():
        batch = next(iter(loader), None)
        if batch is None:
            return
        inputs, target = as_pair(batch, "validation")
        output = learn.output_of(inputs)
        for metric in failing:
            error = _failure(metric, output, target, inputs)
            if error is not None:
                name = name_of(metric.metric if isinstance(metric, UpdatedMetric) else metric)
                raise DataError(
                    f"The metric {name} fails on the first validation batch, outputs {_shapes(output)} and targets "
                    f"{_shapes(target)}: {' '.join(str(error).split())}"
                ) from error


def _failure(metric: Callback, output: Any, target: Any, inputs: Any) -> Exception | None:
    """Return the error that a copy of a metric raises for a batch."""
    batch = {"last_output": output, "last_target": target, "last_input": inputs}
    try:
        trial: Any = copy.copy(metric)
        if isinstance(trial, UpdatedMetric):
            if list(getattr(trial.metric, "parameters", list)()):  # such as those of FID, too large to copy
                return None
            trial.metric = copy.deepcopy(trial.metric)
    except Exception:  # what cannot be copied is not tried
        return None
    if not module_name(type(trial)).startswith("minifast.metrics."):
        return None
    with restoring(Snapshot({"metric": metric})), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trial.on_epoch_begin()
            names = inspect.signature(trial.on_batch_end).parameters
            trial.on_batch_end(**{name: map_tensors(_copied, batch[name]) for name in names if name in batch})
        except Exception as error:  # a metric can raise anything
            return error
    return None


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()  # a metric may write into it


def _shapes(values: Any) -> str:
    return " and ".join(str(tuple(getattr(value, "shape", ()))) for value in as_arguments(values))
