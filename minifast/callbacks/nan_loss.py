"""Callbacks that react to a loss that is NaN or infinite."""

from __future__ import annotations

import contextlib
import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from minifast.errors import NonFiniteLossError
from minifast.training.averages import Losses
from minifast.training.callback import LearnerCallback
from minifast.training.groups import loss_module, trained_parameters
from minifast.training.non_finite import all_finite, diagnose, is_finite
from minifast.training.snapshot import eval_mode, preserve_look, preserve_model
from minifast.utils.public import warn_caller
from minifast.utils.tensors import as_arguments, as_pair

if TYPE_CHECKING:
    from minifast.callbacks.recorder import Recorder
    from minifast.learner.learner import Learner

N_SHOWN = 20  # batches that the message lists
STOP_FLAGS = ("skip_bwd", "skip_step", "stop_epoch", "stop_training", "skip_validate")


class NaNCheck(LearnerCallback):
    """Check each training loss for NaN and infinity.

    On the CPU, a loss is checked before its backward pass, so the weights stay as the previous batch left them. On a
    GPU, losses are checked when the progress bar or the end of the epoch reads them, so that training never waits for
    the device. ``on_nan="ignore"`` skips the checks; ``"end"`` prints a line and ends the fit instead of raising.
    """

    _order = -5

    def __init__(self, learn: Learner, recorder: Recorder) -> None:
        super().__init__(learn)
        self.recorder = recorder
        self._seen = 0
        self._validated = True  # until a validation loss is not finite

    def on_epoch_begin(self, raw_losses: Losses) -> None:
        """Start with the epoch's first loss."""
        self._seen = len(raw_losses)

    def on_backward_begin(
        self, last_input: Any, last_target: Any, raw_losses: Losses, epoch: int, num_batch: int, on_nan: str
    ) -> dict[str, bool] | None:
        """Stop if a loss is not finite."""
        if on_nan == "ignore" or self._seen >= len(raw_losses.arrived):
            return None
        try:
            self._check_losses(raw_losses.arrived, epoch, num_batch + 1 - len(raw_losses), (last_input, last_target))
        except NonFiniteLossError as error:
            if on_nan != "end":
                raise
            return self._end(error, *STOP_FLAGS)
        return None

    def on_epoch_end(
        self,
        raw_losses: Losses,
        epoch: int,
        num_batch: int,
        stop_training: bool,
        on_nan: str,
        last_metrics: list[Any],
    ) -> dict[str, bool] | None:
        """Check the losses that are still on the device."""
        if on_nan == "ignore":
            return None
        try:
            self._check_losses(raw_losses.read(), epoch, num_batch - len(raw_losses), None)
            if not stop_training:
                self._check_weights(epoch)
        except NonFiniteLossError as error:
            if on_nan != "end":
                raise
            return self._end(error, "stop_training")
        loss = last_metrics[0] if last_metrics else None
        if loss is not None and self._validated and not math.isfinite(loss):
            self._validated = False
            warn_caller(
                f"The validation loss is {loss} in epoch {epoch}, though the training loss is finite. "
                f"{self._in_validation()}"
            )
        return None

    def _in_validation(self) -> str:
        """Return which validation batch gives a loss that is not finite, and why."""
        learn, loader = self.learn, self.learn.data.valid_dl
        found = ""
        # The fit must continue even if the search fails, and processes that train together must not wait in it.
        with contextlib.suppress(Exception):
            if learn.parallel is None:
                with preserve_look(learn, loader), eval_mode(learn.model), torch.no_grad():
                    found = next(filter(None, (self._problem(*batch) for batch in enumerate(loader))), "")
        return found or "Look for NaN and huge values in the validation data, and for a division by 0 in the loss."

    def _problem(self, number: int, batch: Any) -> str:
        learn = self.learn
        inputs, targets = as_pair(batch, "validation")
        for name, values in (("inputs", inputs), ("targets", targets)):
            if not is_finite(values):
                return f"The {name} of validation batch {number} hold NaN or infinity: remove or replace these values."
        output = learn.output_of(inputs, targets)
        if not is_finite(output):
            return (
                f"The inputs of validation batch {number} are finite, but the model's outputs hold NaN or infinity: "
                f"look for huge values in this batch, and for a division by 0 or a logarithm of 0 in the model."
            )
        if not is_finite(learn.loss_func(output, *as_arguments(targets))):
            return f"Inputs and outputs of validation batch {number} are finite, but their loss is not."
        return ""

    def _end(self, error: NonFiniteLossError, *flags: str) -> dict[str, bool]:
        """Print the first line of an error, and end the fit."""
        self.recorder.pbar.write(f"{str(error).splitlines()[0]} The fit ends here.")
        return dict.fromkeys(flags, True)

    def _check_weights(self, epoch: int) -> None:
        if not all_finite(trained_parameters(self.learn)):
            raise NonFiniteLossError(
                f"The weights are NaN or infinite at the end of epoch {epoch}, though each loss was finite: a gradient "
                f"was not. Clip gradients, try a lower learning rate, and look for sqrt(0) or a division by 0 in model "
                f"and loss; torch.autograd.set_detect_anomaly(True) names the operation."
            )

    def _check_losses(self, losses: list[float], epoch: int, offset: int, batch: Any) -> None:
        seen, self._seen = self._seen, len(losses)
        for i in range(seen, len(losses)):
            if not math.isfinite(losses[i]):
                is_last = i == len(self.recorder.lrs)  # the recorder has all steps but the next
                self._stop(losses[: i + 1], epoch, i + offset, batch if is_last else None)

    def _stop(self, losses: list[float], epoch: int, num_batch: int, batch: Any) -> None:
        learn = self.learn
        learning_rates = [*self.recorder.lrs, learn.opt.lr][: len(losses)]
        diagnosis: list[str] = []
        # On the CPU, all processes see the loss at the same batch.
        parallel = learn.parallel if learn.data.device.type == "cpu" else None
        if parallel is not None:
            parallel.unwrap()  # so that the gradients are those of the share
        if batch is not None:
            # The error must be raised even if the diagnosis fails, for example without memory.
            with contextlib.suppress(Exception), preserve_model(learn.model), learn.in_precision():
                diagnosis.extend(diagnose(learn.model, learn.loss_func, *batch))
        if parallel is not None:
            diagnosis = parallel.gather_diagnosis(diagnosis)
        advice = "try a lower learning rate (lr_find shows which), and look for NaN or huge values in the data"
        if any("The batch's" in line for line in diagnosis):
            advice = "fix the data or leave that sample out"
        elif not epoch and not num_batch:
            advice = (
                "no step was made yet, so look for NaN or huge values in the data, and in weights that an earlier fit "
                "may have left: load a saved model, or create a new one"
            )
        where = f"epoch {epoch}, batch {num_batch}, learning rate {learning_rates[-1]:.3g}"
        recent = zip(learning_rates[-N_SHOWN:], losses[-N_SHOWN:], strict=True)
        last = [f"{learning_rate:.3g}: {loss:.4g}" for learning_rate, loss in recent]
        raise NonFiniteLossError(
            "\n".join(
                [
                    f"The training loss is {losses[-1]} at {where}; {advice}.",
                    *diagnosis,
                    f"The last batches, learning rate and loss: {', '.join(last)}.",
                ]
            )
        )


class LastFiniteWeights(LearnerCallback):
    """Keep the weights and the optimizer state of the start of the last epoch whose weights were finite."""

    _order = -20

    def __init__(self, learn: Learner) -> None:
        super().__init__(learn)
        self._copy: tuple[str, list[dict[str, Any]], dict[str, Any]] | None = None
        self._epoch: int | None = None

    def on_batch_begin(self, train: bool, epoch: int, num_batch: int) -> None:
        """Copy weights and optimizer state before the first batch of an epoch or after a resume, if they are finite."""
        if not train or epoch == self._epoch:
            return
        self._epoch = epoch
        learn = self.learn
        if all_finite(learn.model.state_dict().values()):
            self._copy = None  # free the old copy before the new one is made
            where = f"epoch {epoch}, batch {num_batch}"
            weights = [module.state_dict() for module in self._modules()]
            self._copy = copy.deepcopy((where, weights, learn.opt.state_dict()))

    def _modules(self) -> list[nn.Module]:
        loss = loss_module(self.learn.loss_func)
        return [self.learn.model] if loss is None else [self.learn.model, loss]

    def restore(self) -> str | None:
        """Restore the copy except what schedules set; return where it was taken, or None if there is no copy."""
        if self._copy is None:
            return None
        where, weights, optimizer = self._copy
        for module, state in zip(self._modules(), weights, strict=True):
            module.load_state_dict(state)
        self.learn.opt.load_state_dict(optimizer, keep=("lr", "mom", "wd"))
        self.learn.opt.train(False)
        return where

    def forget(self) -> None:
        """Free the copy."""
        self._copy = None
