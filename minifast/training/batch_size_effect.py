"""Whether a loss depends on how the samples are split into batches, so that gradients of parts do not add up."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from minifast.distributed.exchange import gather
from minifast.distributed.sharding import is_sharded
from minifast.losses import batch_size_effect, differ, loss_weight, unwrap_loss
from minifast.model_loss import ModelLoss
from minifast.training.snapshot import eval_mode, preserve_buffers
from minifast.utils.public import warn_caller
from minifast.utils.tensors import as_arguments, count_samples, take_rows

if TYPE_CHECKING:
    from minifast.learner.learner import Learner

REMEDY = (
    "Return the mean over the samples, or use torch's loss as an object with weight, ignore_index or reduction='sum' "
    "set, such as nn.CrossEntropyLoss(weight=...)"
)


def loss_effect(learn: Learner, output: Any, x: Any, y: Any) -> tuple[float, float] | None:
    """Return the loss of a batch and the loss that its parts add up to, where the two differ; else None.

    Random generators, buffers and attributes of model and loss stay as they were. The losses of a model that returns
    its own need other forward passes, in evaluation mode.
    """
    loss_func = learn.loss_func
    with torch.no_grad(), preserve_buffers(learn.model, loss_func, stop=[learn, learn.data]):
        if isinstance(loss_func, ModelLoss):
            return _model_loss_effect(learn, x, y)
        return batch_size_effect(loss_func, output, y, x)


def _model_loss_effect(learn: Learner, x: Any, y: Any) -> tuple[float, float] | None:
    """Return what ``batch_size_effect`` does for the loss that a model returns, without dropout."""
    n = count_samples(y, x)
    if n < 2:
        return None

    def loss_of(rows: slice) -> tuple[Any, float]:
        inputs, targets = take_rows(x, rows, n), take_rows(y, rows, n)
        loss = learn.loss_func(learn.output_of(inputs, targets), *as_arguments(targets))
        return loss, float(loss_weight(learn.loss_func, targets, inputs))

    third = max(1, n // 3)
    precision, learn.precision = learn.precision, None
    try:
        with eval_mode(learn.model):
            (whole, _), (again, _), *parts = map(loss_of, [*2 * [slice(None)], slice(third), slice(third, None)])
    finally:
        learn.precision = precision
    weights = sum(weight for _, weight in parts)
    combined = sum(weight * float(loss) for loss, weight in parts if weight) / weights if weights else whole
    return (float(whole), float(combined)) if differ(whole, combined) and not differ(whole, again) else None


def warn_of_parts(learn: Learner, output: Any, x: Any, y: Any) -> None:
    """Warn of a loss whose gradients do not add up over processes or accumulated batches; all processes must call it.

    Each process tries its share of the batch. A share of one sample shows nothing.
    """
    parallel, effect = learn.parallel, None
    if not (isinstance(learn.loss_func, ModelLoss) and is_sharded(learn.model)):  # all would have to run the model
        with suppress(Exception):  # a model or a loss may need the batch as it is
            effect = loss_effect(learn, output, x, y)
    if parallel is not None:
        effect = next((effect for effect in gather(effect) if effect), None)
    if effect is None:
        return
    parts, alone = "the accumulated batches", ""
    if parallel is not None:
        parts, alone = f"the {parallel.group.size} processes", "; or train in one process, with distributed=False"
    whole, combined = effect
    warn_caller(
        f"The loss {loss_name(learn.loss_func)} is not the mean over the samples: it is {whole:.4g} for some samples, "
        f"but their parts, weighted by the number of samples, give {combined:.4g}. So the gradients of {parts} do not "
        f"add up to that of the whole batch. {REMEDY}{alone}."
    )


def loss_name(loss_func: Any) -> str:
    """Return the name of a loss; of a lambda where it is.

    >>> loss_name(torch.nn.MSELoss()), loss_name(torch.nn.functional.l1_loss), loss_name(ModelLoss())
    ('MSELoss', 'l1_loss', 'that the model returns')
    """
    if isinstance(loss_func, ModelLoss):
        return str(loss_func).removeprefix("the loss ")
    function = unwrap_loss(loss_func)
    name = getattr(function, "__name__", type(function).__name__)
    code = getattr(function, "__code__", None)
    return f"in line {code.co_firstlineno} of {code.co_filename}" if name == "<lambda>" and code else str(name)
