"""Choose the loss of a learner that was given none."""

from __future__ import annotations

from typing import Any

from torch import nn

from minifast.data.bunch import DataBunch
from minifast.data.shards import unsplit_stream
from minifast.data.targets import has_named_inputs, no_loss_reason
from minifast.distributed.group import current_group
from minifast.errors import DataError
from minifast.model_loss import own_loss


def choose_loss(data: DataBunch, model: nn.Module, loss_func: Any, distributed: bool = True) -> Any:
    """Return the loss that was given to the learner or the data, the model's own, or the default of the data.

    Raises:
        DataError: there is none of these.
    """
    if loss_func is not None:
        return loss_func
    if not data.loss_is_default:
        return data.loss_func
    own = own_loss(model, data.train_dl.target)
    if own is not None and has_named_inputs(data):
        return own
    if data.loss_func is None:
        unsplit = unsplit_stream(data.train_dl, current_group() if distributed else None)
        raise DataError(f"{unsplit} No loss can be chosen from the data{no_loss_reason(data.train_dl)}.".lstrip())
    return data.loss_func
