"""Gradient clipping by norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.utils import clip_grad_norm_

from minifast.training.callback import LearnerCallback
from minifast.training.groups import trained_parameters
from minifast.utils.checks import check_number

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


class GradientClipping(LearnerCallback):
    """Scale the gradients down to a norm of ``clip`` before each step, where their norm is higher.

    The norm is taken over all parameters, those of the loss function included. With gradient accumulation it is the
    norm of the whole step's gradient; in float16 it is the norm of the unscaled gradient. ``Learner.clip_grad`` adds
    this callback.

    Args:
        learn: the learner.
        clip: the maximum norm; 0 turns clipping off.

    Source: R. Pascanu et al., "On the difficulty of training recurrent neural networks" (2013), section 3.2.
    """

    must_match = ("clip",)

    def __init__(self, learn: Learner | None = None, clip: float = 0.0) -> None:
        super().__init__(learn)
        self.clip = check_number("clip", clip, low=0)

    def on_backward_end(self, skip_step: bool) -> None:
        """Clip the gradients of the next step."""
        if self.clip and not skip_step:
            clip_grad_norm_(trained_parameters(self.learn), self.clip)
