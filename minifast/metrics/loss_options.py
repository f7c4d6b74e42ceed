"""What the loss of a learner says about its outputs and targets, as arguments of metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from minifast.errors import DataError
from minifast.losses import (
    LabelSmoothingCrossEntropy,
    activation_name,
    activation_of,
    setting_of,
    unwrap_loss,
)
from minifast.model_loss import ModelLoss

HALF_BETWEEN = (nn.BCELoss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
HALF_BETWEEN_FUNCTIONS = (
    functional.binary_cross_entropy,
    functional.mse_loss,
    functional.l1_loss,
    functional.smooth_l1_loss,
    functional.huber_loss,
)


def loss_options(loss_func: Any) -> dict[str, Any]:
    """Return the arguments of metrics that follow from a loss.

    Raises:
        DataError: if the loss is that of a model for the next token.

    >>> loss_options(nn.CrossEntropyLoss(ignore_index=0)), loss_options(nn.BCELoss())
    ({'ignore_index': 0, 'axis': 1}, {'thresh': 0.5})
    """
    if isinstance(loss_func, ModelLoss) and loss_func.next_token:
        raise DataError(
            "The model compares its outputs with the labels of the next position, which this metric does not; pass "
            "`batch_fn` that shifts the labels by one and `loss_func`, or leave the metric out: exp(valid_loss) is the "
            "perplexity."
        )
    options: dict[str, Any] = {}
    ignore_index = setting_of(loss_func, "ignore_index", None)
    # That of a model's own loss is the default of the metrics, and does not hold for its regression targets.
    if isinstance(ignore_index, int) and not isinstance(loss_func, ModelLoss):
        options["ignore_index"] = ignore_index
    # A class derived from these may permute the outputs first, so only they tell where the classes are.
    classes_second = (nn.CrossEntropyLoss, nn.NLLLoss, LabelSmoothingCrossEntropy)
    kind = unwrap_loss(loss_func)
    if type(kind) in classes_second or kind in (functional.cross_entropy, functional.nll_loss):
        options["axis"] = 1
    # Probabilities, or numbers fitted to the targets 0 and 1.
    if isinstance(kind, HALF_BETWEEN) or kind in HALF_BETWEEN_FUNCTIONS:
        options["thresh"] = 0.5
    return options


def threshold_of(loss_func: Any, activ: Callable[[Tensor], Tensor] | None = None) -> float:
    """Return the prediction above which a single output per target means class 1.

    Args:
        loss_func: the loss; 0 is the boundary of its outputs, or 0.5 for ``BCELoss`` and regression losses.
        activ: what turns outputs into predictions; by default the activation of the loss.

    Raises:
        DataError: if the loss needs one output per class.

    >>> threshold_of(nn.BCEWithLogitsLoss()), threshold_of(nn.BCEWithLogitsLoss(), lambda output: output)
    (0.5, 0.0)
    """
    if activation_name(loss_func) in ("softmax", "exp"):
        raise DataError(
            f"{type(unwrap_loss(loss_func)).__name__} needs one output per class, got a single output; give "
            f"the last layer 2 outputs, or use BCEWithLogitsLoss."
        )
    boundary = torch.tensor([[loss_options(loss_func).get("thresh", 0.0)]])
    return float((activation_of(loss_func) if activ is None else activ)(boundary))
