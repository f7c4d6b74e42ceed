"""Checks that need the first batch of a fit, and end it before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minifast.data.targets import are_two_classes, two_classes_cure
from minifast.losses import MSELossFlat
from minifast.metrics.first_batch import try_metrics
from minifast.training.batch_checks import check_outputs
from minifast.training.batch_size_effect import warn_of_parts
from minifast.training.broadcast_loss import warn_of_broadcast
from minifast.training.callback import Callback, LearnerCallback
from minifast.training.first_validation import try_validation
from minifast.training.untrained import untrained_message, untrained_parameters
from minifast.utils.public import warn_caller

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


class FirstBatchCheck(LearnerCallback):
    """Check the outputs, the graph of the loss and the metrics on the first batch.

    Args:
        learn: the learner.
        tries_metrics: whether to try the validation set and the metrics.
        tries_loss: whether a step takes several batches or processes, whose gradients the loss must let add up.
    """

    _order = -5
    _once = True

    def __init__(self, learn: Learner, tries_metrics: bool = False, tries_loss: bool = False) -> None:
        super().__init__(learn)
        self.callbacks: Sequence[Callback] = ()  # those of the run, whose optimizers train parameters too
        self.tries_metrics = tries_metrics
        self.tries_loss = tries_loss

    def on_backward_begin(self, last_output: Any, last_target: Any, last_loss: Any) -> None:
        """Check the outputs, and warn of class numbers as floats and of parameters that nothing trains."""
        check_outputs(self.learn, last_output, last_target)
        loss_func = self.learn.loss_func  # the default of the data
        if type(loss_func) is MSELossFlat and loss_func is self.learn.data.loss_func and are_two_classes(last_target):
            warn_caller(
                f"The targets are 0 and 1 as floats, so the default loss is the mean squared error. "
                f"{two_classes_cure(last_output, last_target)}. For regression pass "
                f"loss_func=minifast.losses.MSELossFlat()."
            )
        if names := untrained_parameters(self.learn, last_loss, self.callbacks):
            warn_caller(untrained_message(names))
        self.callbacks = ()  # they hold this one

    def on_train_end(self) -> None:
        """Forget the callbacks, also of a fit without a batch."""
        self.callbacks = ()

    def on_backward_end(
        self, last_input: Any, last_output: Any, last_target: Any, metrics: list[Any], skip_validate: bool
    ) -> None:
        """Try the loss on other shapes and parts of the batch, a sample of the validation set, and the metrics."""
        # After the backward pass, because restoring state in place would change what the graph of the loss holds.
        warn_of_broadcast(self.learn, last_output, last_target)
        if self.tries_loss:
            warn_of_parts(self.learn, last_output, last_input, last_target)
        if self.tries_metrics and not skip_validate:
            try_validation(self.learn)
            try_metrics(self.learn, metrics, last_output, last_target, last_input)
