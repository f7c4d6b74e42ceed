"""Callbacks that react to a loss that is NaN or infinite."""

from __future__ import annotations

import contextlib
import copy
import math
from typing import TYPE_CHECKING, Any

from minifast.errors import NonFiniteLossError
from minifast.training.averages import Losses
from minifast.training.callback import LearnerCallback
from minifast.training.non_finite import all_finite, diagnose
from minifast.training.snapshot import preserve_model

if TYPE_CHECKING:
    from minifast.callbacks.recorder import Recorder
    from minifast.learner.learner import Learner
from minifast.training.batch_checks import check_outputs

LAST = 20  # batches shown when a loss is not finite


STOPS = ("skip_bwd", "skip_step", "stop_epoch", "stop_training", "skip_validate")


class NaNGuard(LearnerCallback):
    """Checks outputs against classes on the first batch, and each training loss for NaN and infinity.

    On the CPU a loss is checked before its backward pass, so the weights stay as the batch before left them. On a
    device losses are looked at when the bar or the epoch's end reads them: nothing waits for the device, and what the
    layers made of the batch is no longer to be known. ``on_nan="ignore"`` leaves the losses to somebody else, and
    ``"end"`` ends the fit with a line where else an error is raised.
    """

    _order = -5

    def __init__(self, learn: Learner, recorder: Recorder) -> None:
        super().__init__(learn)
        self.recorder = recorder
        self._checked = False
        self._seen = 0

    def on_epoch_begin(self, raw_losses: Losses) -> None:
        """Start looking at the epoch's first loss."""
        self._seen = len(raw_losses)

    def on_backward_begin(
        self,
        last_input: Any,
        last_output: Any,
        last_target: Any,
        raw_losses: Losses,
        epoch: int,
        num_batch: int,
        on_nan: str,
    ) -> dict[str, bool] | None:
        """Compare the first outputs with the classes; stop at a loss that is NaN or infinite."""
        if not self._checked:
            self._checked = True
            check_outputs(self.learn, last_output, last_target)
        if on_nan == "ignore" or self._seen >= len(raw_losses.arrived):
            return None
        try:
            self._look(raw_losses.arrived, epoch, num_batch + 1 - len(raw_losses), (last_input, last_target))
        except NonFiniteLossError as error:
            if on_nan != "end":
                raise
            return self._end(error, *STOPS)
        return None

    def on_epoch_end(
        self, raw_losses: Losses, epoch: int, num_batch: int, stop_training: bool, on_nan: str
    ) -> dict[str, bool] | None:
        """Look at the losses that stayed on a device until now."""
        if on_nan == "ignore":
            return None
        try:
            self._look(raw_losses.read(), epoch, num_batch - len(raw_losses), None)
            if not stop_training:
                self._look_at_weights(epoch)
        except NonFiniteLossError as error:
            if on_nan != "end":
                raise
            return self._end(error, "stop_training")
        return None

    def _end(self, error: NonFiniteLossError, *flags: str) -> dict[str, bool]:
        """Say the first line of an error, and end the fit."""
        self.recorder.pbar.write(f"{str(error).splitlines()[0]} The fit ends here.")
        return dict.fromkeys(flags, True)

    def _look_at_weights(self, epoch: int) -> None:
        if not all_finite(self.learn.model.parameters()):
            raise NonFiniteLossError(
                f"The weights are NaN or infinite at the end of epoch {epoch}, though each loss was finite: a gradient "
                f"was not. Clip gradients, try a lower learning rate, and look for a root or a division of 0 in model "
                f"and loss; torch.autograd.set_detect_anomaly(True) names the operation."
            )

    def _look(self, losses: list[float], epoch: int, offset: int, batch: Any) -> None:
        seen, self._seen = self._seen, len(losses)
        for i in range(seen, len(losses)):
            if not math.isfinite(losses[i]):
                is_last = i == len(self.recorder.lrs)  # the recorder has all steps but the one that is to come
                self._stop(losses[: i + 1], epoch, i + offset, batch if is_last else None)

    def _stop(self, losses: list[float], epoch: int, num_batch: int, batch: Any) -> None:
        learn = self.learn
        rates = [*self.recorder.lrs, learn.opt.lr][: len(losses)]
        said: list[str] = []
        if batch is not None:
            # The message matters more than what it says of layers, and may be all that memory is left for.
            with contextlib.suppress(Exception), preserve_model(learn.model), learn.in_precision():
                said.extend(diagnose(learn.model, learn.loss_func, *batch))
        way_out = "try a lower learning rate (lr_find shows which), and look for NaN or huge values in the data"
        if any(line.startswith("The batch's") for line in said):
            way_out = "mend the data or leave that item out"
        elif not epoch and not num_batch:
            way_out = (
                "no step was made yet, so look for NaN or huge values in the data, and in weights that an earlier fit "
                "may have spoilt: load a saved model, or make a new one"
            )
        where = f"epoch {epoch}, batch {num_batch}, learning rate {rates[-1]:.3g}"
        last = [f"{rate:.3g}: {loss:.4g}" for rate, loss in zip(rates[-LAST:], losses[-LAST:], strict=True)]
        raise NonFiniteLossError(
            "\n".join(
                [
                    f"The training loss is {losses[-1]} at {where}; {way_out}.",
                    *said,
                    f"The last batches, learning rate and loss: {', '.join(last)}.",
                ]
            )
        )


class LastFiniteWeights(LearnerCallback):
    """Keeps weights and optimizer of the beginning of the last epoch that began with finite weights."""

    _order = -20

    def __init__(self, learn: Learner) -> None:
        super().__init__(learn)
        self._kept: tuple[str, dict[str, Any], dict[str, Any]] | None = None
        self._epoch: int | None = None

    def on_batch_begin(self, train: bool, epoch: int, num_batch: int) -> None:
        """Take a copy before an epoch's first batch, or the first after a resume, where all is finite."""
        if not train or epoch == self._epoch:
            return
        self._epoch = epoch
        learn = self.learn
        if all_finite(learn.model.state_dict().values()):
            self._kept = None  # lest there be three of each
            where = f"epoch {epoch}, batch {num_batch}"
            self._kept = copy.deepcopy((where, learn.model.state_dict(), learn.opt.state_dict()))

    def restore(self) -> str | None:
        """Put the copy back, but for what schedules set, and return where it was taken; None if there is none."""
        if self._kept is None:
            return None
        where, weights, optimizer = self._kept
        opt = self.learn.opt
        scheduled = {name: opt.read(name) for name in ("lr", "mom", "wd") if name != "mom" or opt.has_momentum}
        self.learn.model.load_state_dict(weights)
        opt.load_state_dict(optimizer)
        for name, values in scheduled.items():
            opt.write(name, values)
        return where

    def forget(self) -> None:
        """Let the copy go."""
        self._kept = None
