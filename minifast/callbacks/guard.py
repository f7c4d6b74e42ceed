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


REAL_LOSSES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


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

    def on_backward_begin(
        self, last_output: Any, last_target: Any, raw_losses: Losses, epoch: int, num_batch: int
    ) -> None:
        """Compare the first outputs with the classes; stop at a loss that is NaN or infinite."""
        if not self._checked:
            self._checked = True
            check_outputs(self.learn, last_output, last_target)
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
        way_out = "try a lower learning rate (lr_find shows which), and look for NaN or huge values in the data"
        if not epoch and not batch:
            way_out = (
                "no step was made yet, so look for NaN or huge values in the data, and in weights that an earlier fit "
                "may have spoilt: load a saved model, or make a new one"
            )
        where = f"epoch {epoch}, batch {batch}, learning rate {self.learn.opt.lr:.3g}"
        raise NonFiniteLossError(f"The training loss is {loss} at {where}; {way_out}.")


def _few(names: Any) -> str:
    shown = ", ".join(map(str, list(names)[:5]))
    return shown if len(names) <= 5 else f"{shown}, …"


def check_outputs(learn: Learner, output: Any, target: Any) -> None:
    """Refuse outputs of another width than there are classes, or of another shape than real targets."""
    if type(learn.loss_func) in REAL_LOSSES and getattr(output, "shape", None) != getattr(target, "shape", None):
        raise DataError(
            f"The model's outputs have the shape {tuple(output.shape)} and the targets {tuple(target.shape)}, which "
            f"{type(learn.loss_func).__name__} would broadcast; give both the same shape."
        )
    if not _is_cross_entropy(learn.loss_func) or not isinstance(output, torch.Tensor) or output.ndim < 2:
        return
    n_outputs, n_classes = output.shape[1], learn.data.c
    if n_classes is not None and n_outputs != n_classes:
        raise DataError(
            f"The model gives {n_outputs} outputs, but the data have {n_classes} classes "
            f"({_few(learn.data.classes)}); make the last layer {n_classes} wide."
        )


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
