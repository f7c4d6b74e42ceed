"""The events of the loop, the fields that callbacks may read and return at each, and the state that holds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minifast.data.loaders import has_length
from minifast.data.order import set_epoch
from minifast.training.averages import Losses
from minifast.utils.checks import counted


@dataclass(frozen=True)
class Event:
    """An event of the loop: the fields first known there, and the fields that a callback may return."""

    first_known: tuple[str, ...]
    may_return: tuple[str, ...]


# In the order of a run. The table of events in the docs is created from this one.
EVENTS: dict[str, Event] = {
    "on_train_begin": Event(
        (
            "n_epochs",
            "epoch",
            "iteration",
            "num_batch",
            "pbar",
            "metrics",
            "metrics_names",
            "raw_losses",
            "skip_validate",
            "on_nan",
        ),
        ("epoch", "skip_validate", "on_nan"),
    ),
    "on_epoch_begin": Event(("stop_training",), ("skip_validate", "stop_training")),
    "on_batch_begin": Event(
        ("last_input", "last_target", "train", "stop_epoch", "skip_bwd", "skip_step", "skip_zero"),
        (
            "last_input",
            "last_target",
            "skip_bwd",
            "skip_step",
            "skip_zero",
            "stop_epoch",
            "stop_training",
            "skip_validate",
        ),
    ),
    "on_loss_begin": Event(
        ("last_output",),
        ("last_output", "skip_bwd", "skip_step", "skip_zero", "stop_epoch", "stop_training", "skip_validate"),
    ),
    "on_backward_begin": Event(
        ("last_loss", "smooth_loss"),
        ("last_loss", "skip_bwd", "skip_step", "skip_zero", "stop_epoch", "stop_training", "skip_validate"),
    ),
    "on_backward_end": Event((), ("skip_step", "skip_zero", "stop_epoch", "stop_training", "skip_validate")),
    "on_step_end": Event((), ("skip_zero", "stop_epoch", "stop_training", "skip_validate")),
    "on_batch_end": Event((), ("stop_epoch", "stop_training", "skip_validate")),
    "on_epoch_end": Event(("last_metrics",), ("last_metrics", "n_epochs", "stop_training", "skip_validate")),
    "on_train_end": Event(("exception",), ()),
}


FIRST_KNOWN: dict[str, str] = {field: name for name, event in EVENTS.items() for field in event.first_known}


# The stages of a run, as the sentence on an error names them.
BEFORE = "before the first batch"
EPOCH_BEGIN = "at the beginning of epoch {epoch}"
TRAINING = "in epoch {epoch} at batch {num_batch}{of}"
VALIDATION = "in the validation of epoch {epoch} at batch {valid_batch}{of}"
EPOCH_END = "at the end of epoch {epoch}"
TRAIN_END = "at the end of the run, after {epochs}"


class State:
    """The state of the loop, under the names of the fields that callbacks read.

    A field that is not set yet is None. ``raw_losses`` holds one loss per batch; ``smooth_loss`` is their moving
    average, a tensor on the CPU that is computed when it is read.
    """

    def __init__(
        self,
        n_epochs: int,
        pbar: Any,
        metrics: Sequence[Any] = (),
        metrics_names: Sequence[str] = (),
        on_nan: str = "ignore",
    ) -> None:
        self.n_epochs = n_epochs
        self.pbar = pbar
        self.metrics = list(metrics)
        self.metrics_names = list(metrics_names)
        self.on_nan = on_nan
        self.stage = BEFORE
        self.epoch = 0
        self.iteration = 0
        self.num_batch = 0
        self.valid_batch = 0  # of the validation, or of another pass without training
        self.n_batches: int | None = None  # of the pass
        self.raw_losses = Losses()
        self.skip_validate = False
        self.stop_training = False
        self.last_input: Any = None
        self.last_target: Any = None
        self.train = False
        self.train_batch: tuple[Any, Any] | None = None  # the last one, before callbacks changed it
        self.stop_epoch = self.skip_bwd = self.skip_step = self.skip_zero = False
        self.last_output: Any = None
        self.last_loss: Any = None
        self.last_metrics: list[Any] = []
        self.exception: BaseException | bool = False
        self.rest: Callable[[Any], Any] | None = None
        self.split: Callable[[Any], Any] | None = None  # takes this process's share of the batches of a loader

    @property
    def smooth_loss(self) -> Tensor | None:
        """The moving average of the training losses so far, before changes by callbacks."""
        smoothed = self.raw_losses.smoothed()
        return torch.tensor(smoothed[-1]) if smoothed else None

    def batches(self, loader: Any, trains: bool = False) -> Any:
        """Return the batches of a loader: all, or after a resume those that remain in the epoch."""
        self.stage, self.valid_batch = TRAINING if trains else VALIDATION, 0
        self.n_batches = len(loader) if has_length(loader) else None
        if trains and hasattr(loader, "begin_epoch"):
            loader.begin_epoch(self.epoch)
        else:
            set_epoch(loader, self.epoch)
        rest, self.rest = self.rest, None
        batches = loader if rest is None else rest(loader)
        return batches if self.split is None else self.split(batches)

    def begin_epoch(self) -> None:
        """Start to count the batches of an epoch."""
        self.stage = EPOCH_BEGIN
        self.num_batch = 0
        self.stop_training = False

    def end_epoch(self) -> None:
        """Count a finished epoch."""
        self.epoch += 1
        self.pbar.epochs_done(self.epoch, self.n_epochs)

    def end_batch(self) -> None:
        """Count a finished training batch."""
        self.iteration += 1
        self.num_batch += 1

    def end_valid_batch(self) -> bool:
        """Count a finished batch of the validation, and return whether it is to be the last."""
        self.valid_batch += 1
        return self.stop_epoch

    def begin_batch(self, xb: Any, yb: Any, train: bool) -> None:
        """Set the fields of a new batch and reset the flags that last for one batch."""
        self.last_input = xb
        self.last_target = yb
        self.last_output = self.last_loss = None
        if train:
            self.train_batch = xb, yb
        self.train = train
        self.stop_epoch = self.skip_bwd = self.skip_step = self.skip_zero = False

    def where(self) -> str:
        """Return where the run is.

        >>> State(3, None).where()
        'before the first batch'
        """
        of = "" if self.n_batches is None else f" of {self.n_batches}"
        return self.stage.format(**vars(self), of=of, epochs=counted(self.epoch, "epoch"))
