"""Mixed precision training in float16 with a scaled loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minifast.errors import MinifastError, NonFiniteLossError
from minifast.training.callback import LearnerCallback
from minifast.training.groups import trained_parameters
from minifast.utils.checks import check_count, check_number
from minifast.utils.tensors import read_floats

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


MIN_SCALE = 2.0**-14  # any finite gradient fits at this scale, so a gradient that overflows here is not finite


class MixedPrecision(LearnerCallback):
    """Run the forward pass in float16 and the backward pass from a scaled loss, with torch's autocast and GradScaler.

    Weights, gradients, the loss and the outputs that callbacks see are float32; fastai v1 held the weights twice.
    Callbacks with an ``_order`` above -30, such as ``GradientClipping``, see unscaled gradients. A step whose gradients
    overflow is skipped: schedules do not move and the scale is halved. Later fits and checkpoints keep the scale.
    Each step waits for the device once, to see whether gradients overflowed; ``Learner.to_bf16`` does not.
    ``Learner.to_fp16`` adds this callback.

    Args:
        learn: the learner.
        loss_scale: the initial scale; by default 2**16.
        max_noskip: the number of steps without an overflow after which the scale is doubled.

    Raises:
        MinifastError: the weights of the model are float16.
        NonFiniteLossError: the gradients are not finite at any scale.

    Source: P. Micikevicius et al., "Mixed precision training" (2018).
    """

    _order = -30  # after accumulation, before those that look at gradients

    def __init__(self, learn: Learner | None = None, loss_scale: float | None = None, max_noskip: int = 1000) -> None:
        super().__init__(learn)
        self.loss_scale = 2.0**16 if loss_scale is None else check_number("loss_scale", loss_scale, above=0)
        self.max_noskip = check_count("max_noskip", max_noskip)
        self._first = self.loss_scale
        self._saved: dict[str, Any] = {}  # the state of the scaler between fits
        self._scaler: Any = None

    def on_train_begin(self) -> None:
        """Start with the scale at the end of the previous fit."""
        learn = self.learn
        if any(parameter.dtype == torch.float16 for parameter in learn.model.parameters()):
            raise MinifastError(
                "The model's weights are float16 and would not train well; call model.float(): the weights stay "
                "float32, and the forward pass is run in float16."
            )
        device = learn.data.device
        self._ones = torch.ones((), device=device)
        self._scaler = torch.amp.GradScaler(device.type, init_scale=self.loss_scale, growth_interval=self.max_noskip)
        if self._saved:
            self._scaler.load_state_dict(self._saved)
        self._before = learn.precision
        learn.precision = torch.float16

    def on_backward_begin(self, last_loss: Tensor) -> None:
        """Start the backward pass with the scale instead of 1; the loss keeps its value."""
        if last_loss.requires_grad:
            last_loss.register_hook(self._scaler.scale)  # type: ignore[no-untyped-call]

    def on_backward_end(self, skip_step: bool) -> dict[str, bool] | None:
        """Unscale the gradients; where they overflowed, halve the scale and skip the step."""
        learn = self.learn
        if skip_step or all(parameter.grad is None for parameter in trained_parameters(learn)):
            return None
        self._scaler.unscale_(learn.opt.opt)
        self._scaler.update()
        before = self.loss_scale
        (self.loss_scale,) = read_floats(self._scaler.scale(self._ones))
        if self.loss_scale >= before:
            return None
        if self.loss_scale < MIN_SCALE:
            raise NonFiniteLossError(
                f"The gradients are NaN or infinite, though each loss was finite, and scaling the loss by "
                f"{before:.2g} does not help any more, so float16 is not the cause; try a lower learning rate, and "
                f"look for a root or a division of 0 in model and loss."
            )
        return {"skip_step": True}

    def on_train_end(self) -> None:
        """Save the scale and restore the precision of the learner."""
        if self._scaler is not None:
            self._saved, self._scaler = self._scaler.state_dict(), None
            self.learn.precision = self._before
            if self.loss_scale < MIN_SCALE:
                self._saved, self.loss_scale = {}, self._first

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scaler."""
        return self._saved if self._scaler is None else self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of a scaler."""
        self._scaler.load_state_dict(state)
        self.loss_scale = state["scale"]
