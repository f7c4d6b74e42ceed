"""The base class of callbacks that write the record of a fit to a tool that shows runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minifast.distributed.sharding import class_of
from minifast.training.callback import LearnerCallback
from minifast.training.parallel import group_of

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


class RunLogger(LearnerCallback):
    """Write losses, learning rates and momentum of each batch, and losses and metrics of each epoch, to a tool.

    A subclass overrides ``open_run``, ``write`` and ``close_run``; the others decide what is written and when. The
    values are taken from the recorder when an epoch ends, so a batch costs nothing. Of several processes, the first
    one writes. A fit that ends with an error writes the batches of its last epoch too. ``lr_find`` writes nothing.

    Attributes of numbers and texts, such as the identity of the run, are saved in checkpoints, so a resumed run can
    continue where it was. It writes the batches again that it repeats; their values are the same.

    Args:
        learn: the learner; a learner that you pass the callback to sets it.

    >>> class Printer(RunLogger):
    ...     def write(self, rows):
    ...         for step, values in rows:
    ...             print(step, sorted(values))
    >>> import torch
    >>> from minifast import DataBunch, Learner, simple_ann
    >>> batch = torch.randn(8, 4), torch.randint(2, (8,))
    >>> data = DataBunch([batch] * 2, [batch], device="cpu", classes=["a", "b"])
    >>> recorder = Learner(data, simple_ann(4, 2), silent=True).fit(1, callbacks=[Printer()])
    1 ['loss/batch', 'loss/train', 'rate/lr', 'rate/mom']
    2 ['loss/batch', 'loss/train', 'loss/valid', 'rate/lr', 'rate/mom']
    """

    fit_only = True

    def __init__(self, learn: Learner | None = None) -> None:
        super().__init__(learn)
        self._done = 0  # batches already written
        self._opened = False

    # --- what a subclass overrides

    def open_run(self, config: dict[str, Any]) -> None:
        """Open the run, or the one that a checkpoint continues.

        Args:
            config: the call of the fit, the names of model, optimizer and loss, and sizes, as plain values.
        """

    def write(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Write values: pairs of the number of training batches so far, and the values after it by their names."""
        raise NotImplementedError

    def close_run(self, failed: bool) -> None:
        """Close the run.

        Args:
            failed: the fit ended with an error or Ctrl-C.
        """

    # --- what the loop calls

    def on_train_begin(self) -> None:
        """Begin with the first batch."""
        self._done = 0

    def on_epoch_begin(self) -> None:
        """Open the run, after a resumed one has its state back."""
        self._open()

    def on_epoch_end(self) -> None:
        """Write the values of the epoch."""
        recorder = self.learn.recorder
        row = dict(zip(recorder.names, recorder.rows[-1], strict=True))
        values = {"loss/valid": row["valid_loss"]}
        values |= {f"metrics/{name}": row[name] for name in recorder.metrics_names}
        self._write({name: float(value) for name, value in values.items() if isinstance(value, (float, int))})

    def on_train_end(self, exception: Any) -> None:
        """Write the batches of an unfinished epoch, and close the run."""
        if self._done < len(self.learn.recorder.lrs):
            self._write({})
        if self._opened:
            self._opened = False
            self.close_run(bool(exception))

    def _open(self) -> None:
        group = group_of(self.learn)
        if not self._opened and (group is None or group.rank == 0):
            self.open_run(self._config())
            self._opened = True

    def _write(self, last: dict[str, float]) -> None:
        """Write the batches that are not written yet, the last one with more values."""
        self._open()
        recorder = self.learn.recorder
        batches = {
            "loss/batch": recorder.raw_losses,
            "loss/train": recorder.losses,
            "rate/lr": recorder.lrs,
            "rate/mom": recorder.moms,
        }
        rows = [
            (i + 1, {name: float(values[i]) for name, values in batches.items() if values[i] is not None})
            for i in range(self._done, len(recorder.lrs))
        ]
        if last:
            rows = rows or [(self._done, {})]
            rows[-1][1].update(last)
        self._done = len(recorder.lrs)
        if self._opened and rows:
            self.write(rows)

    def _config(self) -> dict[str, Any]:
        learn = self.learn
        call = {name: value for name, value in learn.recorder.call.items() if value is not None}
        return {
            **call,
            "model": class_of(learn.model).__name__,
            "parameters": sum(parameter.numel() for parameter in learn.model.parameters()),
            "optimizer": type(learn.opt.opt).__name__,
            "loss": str(learn.loss_func),
            "batch_size": learn.data.batch_size,
            "batches": len(learn.data.train_dl),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the identity of the run and how much of it is written."""
        return {name: value for name, value in super().state_dict().items() if name != "_opened"}
