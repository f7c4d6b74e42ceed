"""Mixup: training on mixtures of two samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minifast.errors import DataError
from minifast.losses import MixUpLoss
from minifast.training.callback import LearnerCallback
from minifast.utils.checks import check_number

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


STACK = {"inputs": "stack_x", "targets": "stack_y"}


class MixUpCallback(LearnerCallback):
    """Train on ``share`` of a sample plus ``1 - share`` of another one of its batch, with both targets in these shares.

    The shares, one per sample, are sampled from Beta(``alpha``, ``alpha``) with torch's global generator; the larger
    part comes first. Validation uses unmixed samples. During the fit ``learn.loss_func`` is wrapped to take both
    targets, and callbacks see (target, other target, shares) as ``last_target`` in training. ``Learner.mixup`` adds
    this callback.

    Args:
        learn: the learner.
        alpha: how evenly samples are mixed, above 0; near 0 they are hardly mixed.
        stack_x: pass the inputs, the other inputs and the shares to the model as three arguments, without mixing them.
        stack_y: mix the losses; False mixes the targets, which must be floats such as probabilities.

    Raises:
        DataError: the inputs, or with ``stack_y=False`` the targets, are not float tensors.

    Source: H. Zhang et al., "mixup: Beyond empirical risk minimization" (2018).
    """

    must_match = ("alpha", "stack_x", "stack_y")

    def __init__(
        self, learn: Learner | None = None, alpha: float = 0.4, stack_x: bool = False, stack_y: bool = True
    ) -> None:
        super().__init__(learn)
        self.alpha = check_number("alpha", alpha, above=0)
        self.stack_x = stack_x
        self.stack_y = stack_y
        self._shares = torch.distributions.Beta(self.alpha, self.alpha)
        self._loss_func: Any = None  # of the learner, while it is wrapped

    def on_batch_begin(self, last_input: Any, last_target: Any, train: bool) -> dict[str, Any] | None:
        """Mix a training batch with a shuffled copy of itself."""
        if not train:
            return None
        if self.stack_y and not isinstance(self.learn.loss_func, MixUpLoss):
            self._loss_func = self.learn.loss_func
            self.learn.loss_func = MixUpLoss(self._loss_func)
        n = len(last_input)
        share = self._shares.sample((n,))
        share = torch.maximum(share, 1 - share)
        order = torch.randperm(n)
        if isinstance(last_input, Tensor):
            share, order = (values.to(last_input.device, non_blocking=True) for values in (share, order))
        x, y = _taken(last_input, order, "inputs"), _taken(last_target, order, "targets")
        return {
            "last_input": (last_input, x, share) if self.stack_x else _mixed(last_input, x, share, "inputs"),
            "last_target": (last_target, y, share) if self.stack_y else _mixed(last_target, y, share, "targets"),
        }

    def on_train_end(self) -> None:
        """Restore the loss of the learner."""
        if self._loss_func is not None:
            self.learn.loss_func, self._loss_func = self._loss_func, None


def _taken(values: Any, order: Tensor, what: str) -> Tensor:
    if not isinstance(values, Tensor):
        raise DataError(f"The {what} of a batch are a {type(values).__name__}; MixUpCallback needs one tensor.")
    return values[order]


def _mixed(values: Tensor, others: Tensor, share: Tensor, what: str) -> Tensor:
    if not values.is_floating_point():
        raise DataError(f"The {what} are {values.dtype}, which MixUpCallback cannot mix; pass {STACK[what]}=True.")
    return torch.lerp(others, values, share.view(-1, *[1] * (values.ndim - 1)).to(values.dtype))
