"""What goes wrong in training, said at the batch where it happens, before the weights are spoilt."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from minifast.callback import LearnerCallback
from minifast.errors import DataError, NonFiniteLossError
from minifast.state import Losses

if TYPE_CHECKING:
    from minifast.learner import Learner


class Guard(LearnerCallback):
    """Checks outputs against classes on the first batch, and each training loss for NaN and infinity.

    On the CPU a loss is checked before its backward pass, so the weights stay as the batch before left them.
    ``losses=False`` leaves the losses to somebody else.
    """

    _order = -5

    def __init__(self, learn: Learner, losses: bool = True) -> None:
        super().__init__(learn)
        self.losses = losses
        self._checked = False

    def on_loss_begin(self, last_output: Any, last_target: Any) -> None:
        """Compare the first outputs and targets with the number of classes."""
        if self._checked:
            return
        self._checked = True
        loss_func = self.learn.loss_func
        if not _is_cross_entropy(loss_func) or not isinstance(last_output, torch.Tensor) or last_output.ndim < 2:
            return
        n_outputs, n_classes = last_output.shape[1], self.learn.data.c
        if n_classes is not None and n_outputs != n_classes:
            raise DataError(
                f"The model gives {n_outputs} outputs, but the data have {n_classes} classes "
                f"({_few(self.learn.data.classes)}); make the last layer {n_classes} wide."
            )
        if last_target.device.type == "cpu":  # a device would have to be waited for
            check_targets(loss_func, last_output, last_target)

    def on_backward_begin(self, raw_losses: Losses, epoch: int, num_batch: int) -> None:
        """Stop at a loss that is NaN or infinite."""
        if self.losses and raw_losses.on_cpu and not math.isfinite(raw_losses[-1]):
            self._stop(raw_losses[-1], epoch, num_batch)

    def on_epoch_end(self, raw_losses: Losses, epoch: int, num_batch: int) -> None:
        """Look at the losses that stayed on a device until now."""
        if not self.losses:
            return
        first = len(raw_losses) - num_batch
        for batch, loss in enumerate(raw_losses[first:]):
            if not math.isfinite(loss):
                self._stop(loss, epoch, batch)

    def _stop(self, loss: float, epoch: int, batch: int) -> None:
        raise NonFiniteLossError(
            f"The training loss is {loss} at epoch {epoch}, batch {batch}, learning rate {self.learn.opt.lr:.3g}; "
            f"try a lower learning rate (lr_find shows which), and look for NaN or huge values in the data."
        )


def _few(names: Any) -> str:
    shown = ", ".join(map(str, list(names)[:5]))
    return shown if len(names) <= 5 else f"{shown}, …"


def _is_cross_entropy(loss_func: Any) -> bool:
    return isinstance(loss_func, nn.CrossEntropyLoss) or loss_func is functional.cross_entropy


def check_targets(loss_func: Any, output: Any, target: Any) -> None:
    """Refuse class numbers that the outputs have no place for."""
    both = isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor)
    if not both or not _is_cross_entropy(loss_func) or target.is_floating_point():
        return
    n_outputs = output.shape[1]
    wanted = target[target != getattr(loss_func, "ignore_index", -100)]
    if len(wanted) and (wanted.min() < 0 or wanted.max() >= n_outputs):
        raise DataError(
            f"The targets go from {int(wanted.min())} to {int(wanted.max())}, but the model gives {n_outputs} outputs; "
            f"targets are class numbers from 0 to {n_outputs - 1}."
        )
