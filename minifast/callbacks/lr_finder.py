"""The learning rate range test: a mock training with a rising learning rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from minifast.callbacks.scheduler import ScheduledParameters
from minifast.distributed.exchange import gather_rows
from minifast.finder.learning import UNSEEN_SHIFTS, Run, ShiftedTargets, run_of, with_unseen
from minifast.finder.rules import BETA
from minifast.finder.validation import ValidationSlices
from minifast.schedules.annealing import Value
from minifast.schedules.shapes import exponential
from minifast.training.averages import Losses, SmoothenValue, is_uncounted
from minifast.utils.checks import check_count
from minifast.utils.tensors import count_samples, map_tensors

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


MAX_BATCHES = 1000  # per optimizer step; after that many skipped steps in a row the test gives up


class LRFinder(ScheduledParameters):
    """Raise the learning rate from ``start_lr`` to ``end_lr`` in ``num_it`` optimizer steps with equal ratios.

    ``Learner.lr_find`` runs this callback and restores all state that the mock training changes. ``lrs`` and ``losses``
    (smoothed, as the Recorder's) hold one value per optimizer step. With accumulated gradients the loss of a step is
    that of one big batch.

    Args:
        learn: the learner.
        start_lr: the learning rate of the first step; or one per layer group.
        end_lr: the learning rate of the last step; or one per layer group.
        num_it: the number of optimizer steps, at least 2.
        stop_div: stop when the smoothed loss is more than four times its lowest value. A loss that is NaN or infinite
            always stops the test.

    Raises:
        ValueError: ``start_lr`` is not below ``end_lr``.

    Source: L. Smith, "Cyclical learning rates for training neural networks" (2017), section 3.3.
    """

    def __init__(
        self, learn: Learner, start_lr: Value = 1e-7, end_lr: Value = 10, num_it: int = 100, stop_div: bool = True
    ) -> None:
        super().__init__(learn)
        first, last = learn.lr_range(start_lr, "start_lr"), learn.lr_range(end_lr, "end_lr")
        check_count("num_it", num_it, least=2)
        if not np.all(np.asarray(first) < np.asarray(last)):
            raise ValueError(f"`start_lr` must be lower than `end_lr`, got {start_lr} and {end_lr}; lr_find raises it.")
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
        self._batches = 0  # that belong to earlier steps
        self.uses_validation = True  # lr_find switches it off where callbacks change the batches
        self._compared = self._unseen = ShiftedTargets(learn.loss_func)
        self._slices: ValidationSlices | None = None
        self._steps: list[int] = []  # the step that each batch belongs to
        self._rates: list[Value] = []
        self._last_rates: list[float] = []  # of the last layer group

    def on_train_begin(self, n_epochs: int, epoch: int) -> dict[str, bool]:
        """Set the first learning rate, and skip validation."""
        self._compared = ShiftedTargets(self.learn.loss_func)
        self._unseen = ShiftedTargets(self.learn.loss_func, UNSEEN_SHIFTS)
        self._slices = None
        self._rates = [self.schedules["lr"](i / self.n_batches) for i in range(self.num_it)]
        self._last_rates = [
            rate if isinstance(rate, float) else float(np.asarray(rate).flat[-1]) for rate in self._rates
        ]
        self._set(0)  # without the checks of other schedules: both ends are checked
        return {"skip_validate": True}

    def _set(self, batch: int) -> None:
        self.learn.opt.write("lr", self._rates[batch])

    def comparison(self) -> Run | None:
        """Return the losses against right and shifted targets, see ``minifast.finder.learning``, or None."""
        parameters = (parameter for parameter in self.learn.model.parameters() if parameter.requires_grad)
        n_batches, n_params = len(self.learn.data.train_dl), sum(parameter.numel() for parameter in parameters)
        pairs, n_targets = self._compared.losses(), self._compared.n_targets
        run = run_of(pairs, self._steps, len(self.lrs), n_batches, n_targets, n_params)
        if run is None or self._slices is None or not self._slices.n_slices:
            return run
        slices = self._slices
        return with_unseen(run, pairs, self._unseen.losses(), self._steps, slices.n_slices, slices.n_samples)

    def _compare(self, epoch: int, output: Any, target: Any) -> None:
        """Compare the loss of a batch with that against other targets, and after the first pass that of other samples.

        Training samples that were seen before may be memorized, validation samples cannot be.
        """
        parallel = self.learn.parallel
        if parallel is not None and self._compared.works:  # compare the whole batch, as one process does
            share = map_tensors(Tensor.detach, output), target
            output, target = gather_rows(share, count_samples(target), parallel.has_samples, parallel.group)
        self._compared.add(output, target)
        if epoch == 0 or not (self.uses_validation and self._compared.works):
            return
        if self._slices is None:
            self._slices = ValidationSlices(self.learn, count_samples(target))
        pair = self._slices.next_pair(self.learn) if self._slices.n_slices else None
        if pair is not None:
            self._unseen.add(*pair)

    def jump_to_epoch(self, epoch: int) -> None:
        """Stay at the first learning rate at whatever epoch training starts."""

    def on_batch_end(  # type: ignore[override]  # an event takes the fields that it names
        self,
        train: bool,
        epoch: int,
        iteration: int,
        raw_losses: Losses,
        skip_step: bool,
        last_output: Any,
        last_target: Any,
    ) -> dict[str, bool] | None:
        """Record the step and set the next learning rate; stop after the last step or when the loss diverges."""
        if not train:
            return None
        n_steps, last = len(self.lrs), raw_losses[-1]
        self._compare(epoch, last_output, last_target)
        self._steps.append(n_steps)
        finite = math.isfinite(last)
        if not (finite and skip_step):
            self._record(raw_losses, last)
            n_steps += 1
        if not finite:
            self.stopped = "the loss was NaN or infinite"
        elif self.stop_div and n_steps and self.losses[-1] > self._limit():
            self.stopped = "the smoothed loss rose above four times its lowest value"
        elif n_steps >= self.num_it:
            self.stopped = "the last learning rate was reached"
        elif iteration + 1 >= MAX_BATCHES * (n_steps + 1):
            self.stopped = f"the optimizer made {n_steps} steps in {iteration + 1} batches"
        else:
            self._set(n_steps)
            return None
        return {"stop_epoch": True, "stop_training": True}

    def _record(self, raw_losses: Losses, last: float) -> None:
        loss: float | None = last
        before, self._batches = self._batches, len(raw_losses)
        if self._batches > before + 1:
            loss = raw_losses.step_loss(before)
        elif is_uncounted(last):
            loss = None
        if loss is not None:
            self._average.add_value(loss)
        self.lrs.append(self._last_rates[len(self.lrs)])
        self.losses.append(self._average.smooth)
        self.best_loss = min(self.best_loss, self._average.smooth)

    def _limit(self) -> float:
        # A rise above the best loss, so that negative losses have a limit too.
        best = self.best_loss
        return 4 * best if best > 0 else best + 3 * max(self.losses[0] - best, -best)

    def on_epoch_end(self, epoch: int, n_epochs: int) -> dict[str, int] | None:
        """Add an epoch if steps are missing because each takes several batches."""
        if epoch + 1 < n_epochs or len(self.lrs) >= self.num_it:
            return None
        return {"n_epochs": n_epochs + 1}
