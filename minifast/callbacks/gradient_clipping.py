"""Gradients whose norm has a limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.utils import clip_grad_norm_

from minifast.training.callback import LearnerCallback
from minifast.utils.checks import check_number

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


class GradientClipping(LearnerCallback):
    """Scales the gradients down to a norm of ``clip`` before each step, where their norm is higher.

    It is one norm over all parameters. Under accumulation it is that of the whole step's gradient, and in float16 that
    of the gradient itself, not of the scaled one. ``Learner.clip_grad`` is the short way.

    Args:
        learn: the learner.
        clip: the highest norm; 0 leaves the gradients alone.

    Source: R. Pascanu et al., "On the difficulty of training recurrent neural networks" (2013), section 3.2.
    """

    must_match = ("clip",)

    def __init__(self, learn: Learner | None = None, clip: float = 0.0) -> None:
        super().__init__(learn)
        self.clip = check_number("clip", clip, low=0)

    def on_backward_end(self, skip_step: bool) -> None:
        """Clip what the optimizer is about to step with."""
        if self.clip and not skip_step:
            clip_grad_norm_(self.learn.model.parameters(), self.clip)
