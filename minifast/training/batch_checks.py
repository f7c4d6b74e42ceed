"""Checks of a batch against the outputs of the model and the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from minifast.errors import DataError
from minifast.losses import check_broadcast, is_cross_entropy, setting_of, unwrap_loss
from minifast.utils.checks import shortlist

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


def check_outputs(learn: Learner, output: Any, target: Any) -> None:
    """Compare the outputs of the model with the classes, or with the shape of regression targets.

    Raises:
        DataError: they do not fit each other.
    """
    loss_func = unwrap_loss(learn.loss_func)
    check_broadcast(loss_func, output, target)
    if not is_cross_entropy(loss_func) or not isinstance(output, torch.Tensor) or output.ndim < 2:
        return
    n_outputs, n_classes = output.shape[1], learn.data.c
    if n_classes is not None and n_outputs != n_classes:
        raise DataError(
            f"The model gives {n_outputs} outputs, but the data have {n_classes} classes "
            f"({shortlist(learn.data.classes or ())}); make the last layer {n_classes} wide."
        )


def check_targets(loss_func: Any, output: Any, target: Any) -> None:
    """Check that each target is the number of an output, or ignored.

    Raises:
        DataError: a target is not.
    """
    are_tensors = isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor)
    if not are_tensors or not is_cross_entropy(loss_func) or target.is_floating_point():
        return
    n_outputs = output.shape[1]
    counted = target[target != setting_of(loss_func, "ignore_index", -100)]
    if len(counted) and (counted.min() < 0 or counted.max() >= n_outputs):
        raise DataError(
            f"The targets go from {int(counted.min())} to {int(counted.max())}, but the model gives {n_outputs} "
            f"outputs; targets are class numbers from 0 to {n_outputs - 1}."
        )
