"""The learning rate range test: a mock training over rising rates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from minifast.callbacks.scheduler import ScheduledParameters
from minifast.finder.rules import BETA
from minifast.schedules.annealing import Value
from minifast.schedules.shapes import exponential
from minifast.training.averages import Losses, SmoothenValue
from minifast.utils.checks import check_count

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


PATIENCE = 1000  # batches for each step, before a finder whose steps are skipped gives up


class LRFinder(ScheduledParameters):
    """Raises the learning rate from ``start_lr`` to ``end_lr`` by equal ratios over ``num_it`` steps, both visited.

    A step is the optimizer's: where gradients are accumulated over batches, it has the mean of their losses. ``lrs``
    and ``losses`` (smoothed, as the Recorder's) hold a value a step. Stops before the end when the smoothed loss is
    more than four times its best (``stop_div``) or a loss is not finite. The learner runs it through ``lr_find``, which
    puts back what this training changes.

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
        self.controls = ("lr",)
        self.num_it = num_it
        self.n_batches = num_it - 1
        self.stop_div = stop_div
        self.stopped = "a callback stopped it"
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.best_loss = math.inf
        self._average = SmoothenValue(BETA)
        self._batches = 0  # those that earlier steps had

    def on_train_begin(self, n_epochs: int, epoch: int) -> dict[str, bool]:
        """Set the first rate; a mock training is not validated."""
        super().on_train_begin(n_epochs, epoch)
        return {"skip_validate": True}

    def jump_to_epoch(self, epoch: int) -> None:
        """Stay at the first rate, wherever training starts."""

    def on_step_end(self, raw_losses: Losses, skip_step: bool) -> dict[str, bool] | None:
        """Note the step, and stop where the rates end or the loss says so."""
        finite = math.isfinite(raw_losses[-1])
        if finite and skip_step:
            return None
        losses = raw_losses[self._batches :]
        self._average.add_value(sum(losses) / len(losses))
        self._batches = len(raw_losses)
        self.lrs.append(self.learn.opt.lr)
        self.losses.append(self._average.smooth)
        self.best_loss = min(self.best_loss, self.losses[-1])
        if not finite:
            self.stopped = "the loss was no longer finite"
        elif self.stop_div and self.losses[-1] > self._limit():
            self.stopped = "the smoothed loss rose over four times its best"
        elif len(self.lrs) >= self.num_it:
            self.stopped = "the last rate was reached"
        else:
            return None
        return {"stop_epoch": True, "stop_training": True}

    def _limit(self) -> float:
        # Four times the best, said as a rise above it, so that a loss that may be negative has a limit too.
        best = self.best_loss
        return 4 * best if best > 0 else best + 3 * max(self.losses[0] - best, -best)

    def on_batch_end(self, train: bool, iteration: int, skip_step: bool) -> dict[str, bool] | None:
        """Set the rate of the next step; give up where there are none."""
        if not train:
            return None
        self._set(len(self.lrs))
        if iteration + 1 < PATIENCE * (len(self.lrs) + 1):
            return None
        self.stopped = f"{iteration + 1} batches gave it {len(self.lrs)} steps of the optimizer"
        return {"stop_epoch": True, "stop_training": True}

    def on_epoch_end(self, epoch: int, n_epochs: int, num_batch: int) -> dict[str, int] | None:
        """Go over the data once more where steps are missing, because they have several batches each."""
        if epoch + 1 < n_epochs or len(self.lrs) >= self.num_it:
            return None
        if not num_batch:
            self.stopped = "the data gave no more batches"
            return None
        return {"n_epochs": n_epochs + 1}
