"""Training on mixtures of two items."""

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
    """Trains on ``share`` of an item plus ``1 - share`` of another of its batch, and on their targets in the same way.

    The shares, one an item, are drawn from Beta(``alpha``, ``alpha``), the larger part first, by torch's global
    generator. Validation sees the items as they are. While the fit runs, ``learn.loss_func`` is wrapped to take both
    targets: what callbacks see as ``last_target`` in training is (target, other target, shares). ``Learner.mixup`` is
    the short way.

    Args:
        learn: the learner.
        alpha: how evenly items are mixed, above 0: near 0 they are hardly mixed at all.
        stack_x: hand the model the inputs, the other inputs and the shares as three arguments, to mix by itself.
        stack_y: mix the losses; False mixes the targets, which must then be real numbers or probabilities.

    Raises:
        DataError: inputs, or with ``stack_y=False`` targets, are not tensors of real numbers.

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
        self._loss_func: Any = None  # the learner's own, while it is wrapped

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
            share, order = (one.to(last_input.device, non_blocking=True) for one in (share, order))
        x, y = _taken(last_input, order, "inputs"), _taken(last_target, order, "targets")
        return {
            "last_input": (last_input, x, share) if self.stack_x else _mixed(last_input, x, share, "inputs"),
            "last_target": (last_target, y, share) if self.stack_y else _mixed(last_target, y, share, "targets"),
        }

    def on_train_end(self) -> None:
        """Put the loss back."""
        if self._loss_func is not None:
            self.learn.loss_func, self._loss_func = self._loss_func, None


def _taken(values: Any, order: Tensor, what: str) -> Tensor:
    if not isinstance(values, Tensor):
        raise DataError(f"The {what} of a batch are a {type(values).__name__}; MixUpCallback mixes what is one tensor.")
    return values[order]


def _mixed(values: Tensor, others: Tensor, share: Tensor, what: str) -> Tensor:
    if not values.is_floating_point():
        raise DataError(f"The {what} are {values.dtype}, which MixUpCallback cannot mix; take {STACK[what]}=True.")
    return torch.lerp(others, values, share.view(-1, *[1] * (values.ndim - 1)).to(values.dtype))
