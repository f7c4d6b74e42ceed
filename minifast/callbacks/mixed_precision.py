"""Training in float16: losses are scaled so that small gradients do not vanish."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minifast.errors import MinifastError, NonFiniteLossError
from minifast.training.callback import LearnerCallback
from minifast.utils.checks import check_count, check_number
from minifast.utils.tensors import read_floats

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


LOWEST = 2.0**-14  # a scale at which any finite gradient fits: what overflows still is no number of its own


class MixedPrecision(LearnerCallback):
    """Runs the forward pass in float16, and backward from a scaled loss, by torch's autocast and GradScaler.

    Weights, gradients, the loss and what callbacks see of outputs are float32 (fastai v1 held the weights twice);
    gradients come unscaled to callbacks with an ``_order`` over -30, such as ``GradientClipping``. A step whose
    gradients overflow is not made: schedules stand still in it, and the scale is halved. The scale is kept from fit to
    fit and in checkpoints. ``Learner.to_fp16`` is the short way. To know whether to step, the device is waited for once
    a step; ``Learner.to_bf16`` needs none of this.

    Args:
        learn: the learner.
        loss_scale: the scale to begin with; by default 2**16.
        max_noskip: after so many steps without an overflow the scale is doubled.

    Raises:
        MinifastError: the model's weights are float16 themselves.
        NonFiniteLossError: the gradients are not finite at any scale.

    Source: P. Micikevicius et al., "Mixed precision training" (2018).
    """

    _order = -30  # after accumulation, before those that look at gradients

    def __init__(self, learn: Learner | None = None, loss_scale: float | None = None, max_noskip: int = 1000) -> None:
        super().__init__(learn)
        self.loss_scale = 2.0**16 if loss_scale is None else check_number("loss_scale", loss_scale, above=0)
        self.max_noskip = check_count("max_noskip", max_noskip)
        self._first = self.loss_scale
        self._kept: dict[str, Any] = {}  # the scaler's state, from fit to fit
        self._scaler: Any = None

    def on_train_begin(self) -> None:
        """Go on with the scale that the fit before ended with."""
        learn = self.learn
        if any(parameter.dtype == torch.float16 for parameter in learn.model.parameters()):
            raise MinifastError(
                "The model's weights are float16 and would not train well; call model.float(): the weights stay "
                "float32, and the forward pass is run in float16."
            )
        device = learn.data.device
        self._one = torch.ones((), device=device)
        self._scaler = torch.amp.GradScaler(device.type, init_scale=self.loss_scale, growth_interval=self.max_noskip)
        if self._kept:
            self._scaler.load_state_dict(self._kept)
        self._before = learn.precision
        learn.precision = torch.float16

    def on_backward_begin(self, last_loss: Tensor) -> None:
        """Let the backward pass begin with the scale instead of with 1; the loss itself stays what it is."""
        if last_loss.requires_grad:
            last_loss.register_hook(self._scaler.scale)  # type: ignore[no-untyped-call]

    def on_backward_end(self, skip_step: bool) -> dict[str, bool] | None:
        """Take the scale out of the gradients; where they overflowed, halve it and make no step."""
        learn = self.learn
        if skip_step or all(parameter.grad is None for parameter in learn.model.parameters()):
            return None
        self._scaler.unscale_(learn.opt.opt)
        self._scaler.update()
        before = self.loss_scale
        (self.loss_scale,) = read_floats(self._scaler.scale(self._one))
        if self.loss_scale >= before:
            return None
        if self.loss_scale < LOWEST:
            raise NonFiniteLossError(
                f"The gradients are NaN or infinite, though each loss was finite, and scaling the loss by "
                f"{before:.2g} does not help any more, so float16 is not the cause; try a lower learning rate, and "
                f"look for a root or a division of 0 in model and loss."
            )
        return {"skip_step": True}

    def on_train_end(self) -> None:
        """Keep the scale, and leave the learner in the precision that it had."""
        if self._scaler is not None:
            self._kept, self._scaler = self._scaler.state_dict(), None
            self.learn.precision = self._before
            if self.loss_scale < LOWEST:
                self._kept, self.loss_scale = {}, self._first

    def state_dict(self) -> dict[str, Any]:
        """Return the scaler's state."""
        return self._kept if self._scaler is None else self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a scaler's state."""
        self._scaler.load_state_dict(state)
        self.loss_scale = state["scale"]
