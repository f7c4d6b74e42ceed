"""The learning rate range test: a mock training over rising rates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from minifast.callbacks.scheduler import ScheduledParameters
from minifast.errors import check_count
from minifast.schedules import Value, exponential
from minifast.state import Losses

if TYPE_CHECKING:
    from minifast.learner import Learner


class LRFinder(ScheduledParameters):
    """Raises the learning rate from ``start_lr`` to ``end_lr`` by equal ratios over ``num_it`` batches, both visited.

    Stops before the end when the smoothed loss is more than four times its best or not finite (``stop_div``). The
    learner runs it through ``lr_find``, which puts back what this training changes.

    Source: L. Smith, "Cyclical learning rates for training neural networks" (2017), section 3.3.
    """

    def __init__(
        self, learn: Learner, start_lr: Value = 1e-7, end_lr: Value = 10, num_it: int = 100, stop_div: bool = True
    ) -> None:
        super().__init__(learn)
        first, last = learn.lr_range(start_lr, "start_lr"), learn.lr_range(end_lr, "end_lr")
        check_count("num_it", num_it, least=2)
        if not np.all(np.asarray(first) < np.asarray(last)):
            raise ValueError(
                f"start_lr is {start_lr} and end_lr is {end_lr}; the finder goes up, so start_lr < end_lr."
            )
        self.schedules = {"lr": exponential(first, last)}
        self.num_it = num_it
        self.n_batches = num_it - 1
        self.stop_div = stop_div
        self.best_loss = math.inf
        self.stopped = "a callback stopped it"

    def on_train_begin(self, n_epochs: int, epoch: int) -> dict[str, bool]:
        """Set the first rate; a mock training is not validated."""
        super().on_train_begin(n_epochs, epoch)
        return {"skip_validate": True}

    def on_step_end(self, iteration: int, raw_losses: Losses) -> dict[str, bool] | None:
        """Stop where the rates end, or the loss says so."""
        loss = raw_losses.smoothed()[-1]
        if iteration == 0:
            self.first_loss = loss
        self.best_loss = min(self.best_loss, loss)
        if not math.isfinite(loss):
            self.stopped = "the loss was no longer finite"
        elif self.stop_div and loss > self._limit():
            self.stopped = "the smoothed loss rose over four times its best"
        elif iteration + 1 >= self.num_it:
            self.stopped = "the last rate was reached"
        else:
            return None
        return {"stop_epoch": True, "stop_training": True}

    def _limit(self) -> float:
        # Four times the best, said as a rise above it, so that a loss that may be negative has a limit too.
        best = self.best_loss
        return 4 * best if best > 0 else best + 3 * max(self.first_loss - best, -best)
