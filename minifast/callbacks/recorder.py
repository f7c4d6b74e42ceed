"""The record of a fit: rates and losses a batch, metrics an epoch, the table and the plots."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minifast import plotting
from minifast.errors import MinifastError
from minifast.finder.result import FinderResult
from minifast.finder.rules import cut
from minifast.training.averages import Losses
from minifast.training.callback import LearnerCallback

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from minifast.learner.learner import Learner


KEPT = ("lrs", "moms", "group_lrs", "raw_losses", "val_losses", "metrics", "nb_batches", "rows")


def as_number(value: Any) -> Any:
    """Return a metric's value as a plain number where it is one, else as it is."""
    single = getattr(value, "ndim", None) == 0 or (hasattr(value, "__float__") and not hasattr(value, "ndim"))
    return value if isinstance(value, int) or not single else float(value)


def as_plain(value: Any) -> Any:
    """Return a value in numbers, texts, lists and dicts; of what is nothing of these, its description."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (list, tuple)):
        return [as_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(name): as_plain(one) for name, one in value.items()}
    return value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)


def cell(value: Any) -> str:
    """Write a value as the table shows it.

    >>> cell(3), cell(0.5), cell(None), cell([0.5, 1.0])
    ('3', '0.500000', '#na#', '[0.500000, 1.000000]')
    """
    if isinstance(value, list):
        return f"[{', '.join(map(cell, value))}]"
    return "#na#" if value is None else f"{value:.6f}" if isinstance(value, float) else str(value)


def clock(seconds: float) -> str:
    """Write seconds as ``mm:ss``, or ``h:mm:ss`` from an hour on.

    >>> clock(65), clock(3661)
    ('01:05', '1:01:01')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


class Recorder(LearnerCallback):
    """Keeps what happened in a fit, writes the table and draws the plots; ``learn.recorder`` is the last fit's.

    A value a training batch: ``lrs`` and ``moms`` (those that the optimizer's step used; of the last layer group),
    ``group_lrs`` (a list with the rate of each layer group; empty where there is one group),
    ``raw_losses`` and ``losses`` (their moving average, beta 0.98, corrected for its start). A value an epoch:
    ``val_losses`` (None where validation was skipped), ``metrics`` (a list of values), ``nb_batches``, ``rows`` (the
    table's numbers under ``names``, the time in seconds). ``call`` is what the run was asked to do.

    Args:
        learn: the learner.
        add_time: whether the table has the column ``time``.
        silent: keep the record but write no table.
    """

    _order = -10

    def __init__(self, learn: Learner | None = None, add_time: bool = True, silent: bool = False) -> None:
        super().__init__(learn)
        self.add_time = add_time
        self.silent = silent
        self.metrics_names: list[str] = []
        self.lrs: list[float] = []
        self.moms: list[float] = []
        self.group_lrs: list[list[float]] = []
        self.val_losses: list[float | None] = []
        self.metrics: list[list[Any]] = []
        self.nb_batches: list[int] = []
        self.rows: list[list[Any]] = []
        self.min_grad_lr: float | None = None
        self.call: dict[str, Any] = {}
        self.found: FinderResult | None = None  # what the finder found, where this is its run
        self._without_momentum = ""
        self._several = False  # whether there are layer groups to tell apart
        self._losses = Losses()
        self._added_names: list[str] = []

    @property
    def losses(self) -> list[float]:
        """The smoothed training loss after each batch."""
        return self._losses.smoothed()

    @property
    def raw_losses(self) -> list[float]:
        """The training loss of each batch, as it came."""
        return self._losses.read()

    @property
    def names(self) -> list[str]:
        """The table's header."""
        return ["epoch", "train_loss", "valid_loss", *self.metrics_names, *(["time"] if self.add_time else [])]

    def __repr__(self) -> str:
        method = self.call.get("method", "no run yet")
        values = dict(zip(self.names, self.rows[-1], strict=True)) if self.rows else {}
        last = "".join(f", {name}={cell(values[name])}" for name in self.names[1:] if name in values and name != "time")
        return f"Recorder({method}: epochs={len(self.rows)}, batches={len(self.lrs)}{last})"

    def add_metric_names(self, names: Sequence[str]) -> None:
        """Add columns; call it in ``on_train_begin`` of a callback whose ``_order`` is below the Recorder's -10."""
        self._added_names += names

    def on_train_begin(self, pbar: Any, metrics_names: list[str], raw_losses: Losses) -> None:
        """Write the header."""
        self.pbar = pbar
        self.metrics_names = [*metrics_names, *self._added_names]
        self._losses = raw_losses
        self._without_momentum = self.learn.opt.without_momentum
        self._several = len(self.learn.layer_groups) > 1
        pbar.describe = lambda: f"{self.losses[-1]:.4f}" if len(raw_losses) else ""
        if not self.silent:
            pbar.write(self.names, table=True)

    def on_epoch_begin(self) -> None:
        """Start the epoch's clock."""
        self._start = time.perf_counter()

    def on_step_end(self) -> None:
        """Record the rate and the momentum that the step just used."""
        opt = self.learn.opt
        self.lrs.append(opt.lr)
        self.moms.append(opt.mom)
        if self._several:
            self.group_lrs.append(opt.read("lr"))

    def on_epoch_end(self, epoch: int, num_batch: int, last_metrics: list[Any]) -> None:
        """Record the epoch and write its row."""
        val_loss, *values = map(as_number, last_metrics)
        self.nb_batches.append(num_batch)
        self.val_losses.append(val_loss)
        if values:
            self.metrics.append(values)
        missing = [None] * (len(self.metrics_names) - len(values))
        row = [epoch, self.losses[-1] if self.losses else None, val_loss, *values, *missing]
        self.rows.append([*row, *self._seconds()])
        self._write(self.rows[-1])

    def format_stats(self, stats: Sequence[Any]) -> None:
        """Write a row of your own into the table; the column ``time`` is added. The record stays as it is.

        >>> from minifast import Callback
        >>> class Rates(Callback):
        ...     def __init__(self, learn):
        ...         self.recorder = learn.recorder
        ...     def on_epoch_end(self, epoch):
        ...         self.recorder.format_stats([epoch, "rate", self.recorder.lrs[-1]])
        """
        self._write([*map(as_number, stats), *self._seconds()])

    def _seconds(self) -> list[float]:
        return [time.perf_counter() - self._start] if self.add_time else []

    def _write(self, row: Sequence[Any]) -> None:
        if not self.silent:
            cells = [*map(cell, row[:-1]), clock(row[-1])] if self.add_time else [*map(cell, row)]
            self.pbar.write(cells, table=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the record: lists of numbers."""
        return {name: list(getattr(self, name)) for name in KEPT}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a record over, and write its rows into the table."""
        self._losses.restore(state["raw_losses"])
        vars(self).update({name: values for name, values in state.items() if name != "raw_losses"})
        for row in self.rows:
            self._write(row)

    def to_dict(self) -> dict[str, Any]:
        """Return all of the record in numbers, texts, lists and dicts; ``Recorder.from_dict`` takes it back."""
        found = self.found and {"lrs": self.found.lrs, "curves": self.found.curves, "stopped": self.found.stopped}
        values = {"call": self.call, "names": self.names, **self.state_dict(), "losses": list(self.losses)}
        return as_plain({**values, "without_momentum": self._without_momentum, "found": found})  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recorder:
        """Return a record that belongs to no learner, with all that ``to_dict`` returned; it can be plotted."""
        names = values["names"]
        recorder = cls(add_time=names[-1] == "time", silent=True)
        recorder.metrics_names = names[3:-1] if recorder.add_time else names[3:]
        recorder.load_state_dict({name: values[name] for name in KEPT})
        recorder.call = values["call"]
        recorder._without_momentum = values["without_momentum"]
        if found := values["found"]:
            curves = found["curves"]
            recorder.found = FinderResult([found["lrs"]] * len(curves), curves, found["stopped"])
        return recorder

    def on_train_end(self) -> None:
        """Drop the loss of a batch that was never stepped on, because the fit ended in it."""
        self._losses.truncate(len(self.lrs))

    def plot(
        self,
        skip_start: int = 10,
        skip_end: int = 5,
        suggestion: bool = False,
        return_fig: bool | None = None,
        show_grid: bool = False,
        ax: Any = None,
    ) -> Figure | None:
        """Draw the smoothed loss over the learning rate, as ``lr_find`` left them.

        The first ``skip_start`` and the last ``skip_end`` points are left out (fewer of a short record).
        ``suggestion`` marks the suggested rate with its band, the rate of the steepest fall, which is then in
        ``min_grad_lr``, and a tenth of the rate of the lowest loss; where the curve does not say, it says why.

        Raises:
            MinifastError: no batch was trained yet.
        """
        self._need_batches("lr_find")
        if self.found and not self.found.lrs:
            raise MinifastError(f"There is nothing to plot: the finder made no step; {self.found.stopped}.")
        found = self.found or FinderResult([self.lrs], [self.losses], "the fit ended", skip_start, skip_end)
        if suggestion and found.refusal:
            print(found.refusal)
        elif suggestion:
            self.min_grad_lr = found.rules["steepest"]
        return found.plot(skip_start, skip_end, suggestion, return_fig, show_grid, ax)

    def plot_lr(
        self,
        show_moms: bool = False,
        skip_start: int = 0,
        skip_end: int = 0,
        return_fig: bool | None = None,
        ax: Any = None,
    ) -> Figure | None:
        """Draw the learning rate of each batch and, with ``show_moms``, the momentum beside it (``ax`` is then two).

        Layer groups that were trained at different rates have a line each; the momentum is the last group's.
        An optimizer that works without momentum has none to draw; the title says so.
        """
        self._need_batches()
        axes = plotting.axes_for(ax, 2 if show_moms else 1)
        batches = cut(range(len(self.lrs)), skip_start, skip_end)
        rates = cut(self.group_lrs or self.lrs, skip_start, skip_end)
        plotting.plot_over_batches(axes[0], batches, rates, "learning rate")
        if show_moms:
            plotting.plot_over_batches(axes[1], batches, cut(self.moms, skip_start, skip_end), "momentum")
            axes[1].set_title(self._without_momentum)
        return plotting.finish(axes, return_fig)

    def plot_losses(
        self,
        skip_start: int = 0,
        skip_end: int = 0,
        return_fig: bool | None = None,
        show_grid: bool = False,
        ax: Any = None,
    ) -> Figure | None:
        """Draw the smoothed training loss of each batch and the validation loss at the end of each epoch."""
        self._need_batches()
        axes = plotting.axes_for(ax)
        batches = cut(range(len(self.losses)), skip_start, skip_end)
        ends = [n - 1 for n in itertools.accumulate(self.nb_batches)]
        plotting.plot_losses(axes[0], batches, cut(self.losses, skip_start, skip_end), ends, self.val_losses)
        return plotting.finish(axes, return_fig, show_grid)

    def plot_metrics(
        self,
        skip_start: int = 0,
        skip_end: int = 0,
        return_fig: bool | None = None,
        show_grid: bool = False,
        ax: Any = None,
    ) -> Figure | None:
        """Draw each metric over the epochs, one pair of axes each (``ax`` is as many as there are metrics)."""
        if not self.metrics:
            raise MinifastError(
                "There are no metrics to plot; give the Learner some, such as metrics=[accuracy], and fit."
            )
        axes = plotting.axes_for(ax, len(self.metrics[0]))
        for i, (one, name) in enumerate(zip(axes, self.metrics_names, strict=False)):
            epochs = cut(range(len(self.metrics)), skip_start, skip_end)
            plotting.plot_epochs(one, epochs, [self.metrics[epoch][i] for epoch in epochs], name)
        return plotting.finish(axes, return_fig, show_grid)

    def _need_batches(self, first: str = "fit") -> None:
        if not self.lrs:
            raise MinifastError(f"There is nothing to plot yet: no batch was trained; call learn.{first}(...) first.")
