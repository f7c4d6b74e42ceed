"""The record of a fit: learning rates and losses of each batch, metrics of each epoch, the table and the plots."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minifast import plotting
from minifast.errors import MinifastError
from minifast.finder.result import FinderResult
from minifast.finder.rules import cut
from minifast.metrics.base import RESERVED, distinct, expand_all
from minifast.training.averages import Losses
from minifast.training.callback import LearnerCallback
from minifast.training.progress import notebook_cell
from minifast.utils.aliases import deprecated_attribute
from minifast.utils.tensors import as_number, as_plain
from minifast.utils.text import cell, clock, html_table, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from minifast.learner.learner import Learner


RECORDED = ("lrs", "moms", "group_lrs", "raw_losses", "val_losses", "metrics", "nb_batches", "rows")


class Recorder(LearnerCallback):
    """Record a fit, print its table and plot it. ``learn.recorder`` is the recorder of the last fit.

    Attributes:
        lrs: the learning rate of each step, of the last layer group.
        moms: the momentum of each step, of the last layer group.
        group_lrs: the learning rates of each step, a list with one for each layer group; empty with a single group.
        raw_losses: the training loss of each batch.
        losses: the moving average of ``raw_losses`` (beta 0.98, with bias correction); batches of one accumulated step
            count as one big batch.
        val_losses: the validation loss of each epoch, None where validation was skipped.
        metrics: the values of the metrics after each epoch, in the order of ``metrics_names``.
        metrics_names: the columns of the metrics, and of callbacks that add columns.
        nb_batches: the number of training batches of each epoch.
        rows: the rows of the table, numbers in the order of ``names``; times are in seconds.
        call: the method that started the run, with its arguments.
        finder_result: the ``FinderResult``, if the run was one of ``lr_find``.

    Args:
        learn: the learner.
        add_time: add the column ``time``, the duration of each epoch.
        silent: record the fit but print no table.
    """

    _order = -10
    _has_header = True  # of the table; False from the beginning of a run until its first step
    found = deprecated_attribute("found", "finder_result")

    def __init__(self, learn: Learner | None = None, add_time: bool = True, silent: bool = False) -> None:
        super().__init__(learn)
        self.add_time, self.silent = add_time, silent
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
        self._cell: int | None = None  # of the notebook that shows the table while it trains
        self.finder_result: FinderResult | None = None
        self._without_momentum, self._several_groups = "", False
        self._losses = Losses()
        self._columns: list[str] = []  # of the metrics, as they declare them
        self._expanded: list[str] = []  # the same, with one for each of several values
        self._added_names: list[str] = []

    @property
    def losses(self) -> list[float]:
        """The smoothed training loss after each batch."""
        return self._losses.smoothed()

    @property
    def raw_losses(self) -> list[float]:
        """The training loss of each batch."""
        return self._losses.read()

    @property
    def names(self) -> list[str]:
        """The columns of the table."""
        return ["epoch", "train_loss", "valid_loss", *self.metrics_names, *(["time"] if self.add_time else [])]

    def __repr__(self) -> str:
        method = self.call.get("method", "no run yet")
        values = dict(zip(self.names, self.rows[-1], strict=True)) if self.rows else {}
        last = "".join(f", {name}={cell(values[name])}" for name in self.names[1:] if name in values and name != "time")
        return f"Recorder({method}: epochs={len(self.rows)}, batches={len(self.lrs)}{last})"

    def _repr_html_(self) -> str:
        table_is_above = self._cell is not None and self._cell == notebook_cell()
        rows = [] if table_is_above or not self.rows else [self.names, *map(self._cells, self.rows)]
        return html_table(rows, right=1, note=repr(self))

    def add_metric_names(self, names: Sequence[str]) -> None:
        """Add columns to the table.

        Call it in ``on_train_begin`` of a callback whose ``_order`` is below the recorder's -10.

        Args:
            names: the names of the columns; the callback's ``on_epoch_end`` returns their values with ``add_metrics``.
        """
        if hasattr(self, "pbar"):  # the run has begun
            raise MinifastError(
                f"The columns {', '.join(names)} come too late: the table has its columns already. Call "
                f"add_metric_names in on_train_begin of a callback with `_order = -11`, which is below the recorder's."
            )
        self._added_names += names

    def on_train_begin(self, pbar: Any, metrics_names: list[str], raw_losses: Losses) -> None:
        """Take the display and the columns."""
        self.pbar = pbar
        self._columns = self._expanded = list(metrics_names)
        self.metrics_names = [*metrics_names, *self._added_names]
        self._losses = raw_losses
        self._without_momentum = self.learn.opt.without_momentum
        self._several_groups = len(self.learn.layer_groups) > 1
        pbar.describe = lambda: f"{self.losses[-1]:.4f}" if len(raw_losses) else ""
        self._has_header = self.silent  # it waits for the first step, so that an error before has no empty table above

    def _begin_table(self) -> None:
        """Print the header, if it is not printed yet."""
        if not self._has_header:
            self._has_header = True
            self.pbar.write(self.names, table=True)
            self._cell = None if self.learn.silent else notebook_cell()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "pbar"}

    def on_epoch_begin(self) -> None:
        """Start the timer of the epoch."""
        self._start = time.perf_counter()

    def on_step_end(self) -> None:
        """Record the learning rate and the momentum that the step used."""
        opt = self.learn.opt
        if not self._has_header:  # here, because a call takes longer
            self._begin_table()
        self.lrs.append(opt.lr)
        self.moms.append(opt.mom)
        if self._several_groups:
            self.group_lrs.append(opt.read("lr"))

    def on_epoch_end(self, epoch: int, num_batch: int, last_metrics: list[Any]) -> None:
        """Record the epoch and print its row."""
        val_loss, *values = map(as_number, last_metrics)
        self.nb_batches.append(num_batch)
        self.val_losses.append(val_loss)
        recorded = bool(values)
        values = self._expand(values, validated=val_loss is not None)
        if recorded:
            self.metrics.append(values)
        row = [epoch, self.losses[-1] if self.losses else None, val_loss, *values]
        self.rows.append([*row, *self._seconds()])
        self._write(self.rows[-1])

    def _expand(self, values: list[Any], validated: bool) -> list[Any]:
        """Return a value for each of ``metrics_names``, which may grow by the columns of several values."""
        n = len(self._columns)
        if not validated and len(values) <= len(self._added_names):
            values = [None] * n + values  # only callbacks added values
        own, added = values[:n], values[n:]
        if all(value is None for value in own):
            own = [None] * len(self._expanded)
        else:
            names, own = expand_all(self._columns, own)
            if names != self._expanded:
                self._change_columns(names)
        if len(added) > len(self._added_names):
            expand_all([*self._columns, *self._added_names], values)  # raises
        return [*own, *added, *[None] * (len(self._added_names) - len(added))]

    def _change_columns(self, names: list[str]) -> None:
        """Show several values of a metric in a column each, from the first epoch that has them."""
        old = len(self._expanded)
        if any(value is not None for row in self.rows for value in row[3 : 3 + old]):
            raise MinifastError(
                f"The metrics have the values {', '.join(names)} in this epoch, and had {', '.join(self._expanded)} "
                f"before; return the same values in each epoch."
            )
        self._expanded = names
        self.metrics_names = distinct([*names, *self._added_names], RESERVED)
        for values in self.metrics:
            values[:old] = [None] * len(names)
        for row in self.rows:
            row[3 : 3 + old] = [None] * len(names)
        self._has_header = self.silent

    def format_stats(self, stats: Sequence[Any]) -> None:
        """Print an additional row in the table, with the ``time`` column added; nothing is recorded.

        Args:
            stats: the values of the row, in the order of ``names``, without ``time``.

        >>> from minifast import Callback
        >>> class LearningRates(Callback):
        ...     def __init__(self, learn):
        ...         self.recorder = learn.recorder
        ...     def on_epoch_end(self, epoch):
        ...         self.recorder.format_stats([epoch, "lr", self.recorder.lrs[-1]])
        """
        self._write([*map(as_number, stats), *self._seconds()])

    def _seconds(self) -> list[float]:
        return [time.perf_counter() - self._start] if self.add_time else []

    def _write(self, row: Sequence[Any]) -> None:
        self._begin_table()
        if not self.silent:
            self.pbar.write(self._cells(row), table=True)

    def _cells(self, row: Sequence[Any]) -> list[str]:
        return [*map(cell, row[:-1]), clock(row[-1])] if self.add_time else [*map(cell, row)]

    def state_dict(self) -> dict[str, Any]:
        """Return the record as lists of numbers."""
        record = {name: list(getattr(self, name)) for name in RECORDED}
        return {**record, "parts": self._losses.parts, "expanded": list(self._expanded)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a record, and print its rows."""
        self._losses.restore(state["raw_losses"], state.get("parts", ()))
        vars(self).update({name: state[name] for name in RECORDED if name != "raw_losses"})
        expanded = state.get("expanded", self._expanded)
        if expanded != self._expanded:
            self._expanded = list(expanded)
            self.metrics_names = distinct([*expanded, *self._added_names], RESERVED)
            self._has_header = self.silent
        for row in self.rows:
            self._write(row)

    def to_dict(self) -> dict[str, Any]:
        """Return the whole record as numbers, texts, lists and dicts, for ``Recorder.from_dict``."""
        result = self.finder_result
        finder = result and {name: getattr(result, name) for name in ("lrs", "curves", "stopped", "learned")}
        record = {name: list(getattr(self, name)) for name in RECORDED}
        values: dict[str, Any] = {"call": self.call, "names": self.names, **record, "losses": list(self.losses)}
        values |= {"parts": self._losses.parts, "without_momentum": self._without_momentum, "found": finder}
        return as_plain(values)  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recorder:
        """Return the recorder of a record that ``to_dict`` returned; it belongs to no learner, and you can plot it."""
        names = values["names"]
        recorder = cls(add_time=names[-1] == "time", silent=True)
        recorder.metrics_names = names[3:-1] if recorder.add_time else names[3:]
        recorder.load_state_dict({name: values[name] for name in (*RECORDED, "parts") if name in values})
        recorder.call = values["call"]
        recorder._without_momentum = values["without_momentum"]
        if finder := values["found"]:
            curves = finder["curves"]
            recorder.finder_result = FinderResult(
                [finder["lrs"]] * len(curves), curves, finder["stopped"], learned=finder.get("learned")
            )
        return recorder

    def on_train_end(self) -> None:
        """Drop the loss of a batch without a step, in which the fit ended."""
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
        """Plot the smoothed loss over the learning rate, after ``lr_find``.

        Args:
            skip_start: the number of points to leave out at the start (fewer if the record is short). Default: 10.
            skip_end: the number of points to leave out at the end (fewer if the record is short). Default: 5.
            suggestion: mark the suggested learning rate with its range, the steepest fall and a tenth of the learning
                rate of the lowest loss; the steepest fall is then in ``min_grad_lr``. If the curve has no suggestion,
                print the reason.
            return_fig: return the figure.
            show_grid: draw a grid.
            ax: the axes to plot on; by default new ones.

        Returns:
            The figure with ``return_fig``, otherwise None.

        Raises:
            MinifastError: if no batch was trained yet.
        """
        self._need_batches("lr_find")
        result = self.finder_result
        if result and not result.lrs:
            raise MinifastError(f"There is nothing to plot: the learning rate finder made no step; {result.stopped}.")
        if result is None:
            write_text("This run trained: plot_losses() shows its losses, lr_find() makes the curve of this plot.")
        result = result or FinderResult([self.lrs], [self.losses], "the fit ended", skip_start, skip_end)
        if suggestion and result.reason:
            write_text(result.reason)
        elif suggestion:
            self.min_grad_lr = result.rules["steepest"]
        return result.plot(skip_start, skip_end, suggestion, return_fig, show_grid, ax)

    def plot_lr(
        self,
        show_moms: bool = False,
        skip_start: int = 0,
        skip_end: int = 0,
        return_fig: bool | None = None,
        ax: Any = None,
    ) -> Figure | None:
        """Plot the learning rate of each batch and, with ``show_moms``, the momentum beside it.

        Layer groups with different learning rates have one line each; the momentum is that of the last group. For an
        optimizer without momentum, the title of the second plot states the reason why it is empty.

        Args:
            show_moms: plot the momentum too; ``ax`` is then a sequence of two axes.
            skip_start: the number of batches to leave out at the start.
            skip_end: the number of batches to leave out at the end.
            return_fig: return the figure.
            ax: the axes to plot on; by default new ones.
        """
        self._need_batches()
        axes = plotting.axes_for(ax, 2 if show_moms else 1)
        batches = cut(range(len(self.lrs)), skip_start, skip_end)
        lrs = cut(self.group_lrs or self.lrs, skip_start, skip_end)
        plotting.plot_over_batches(axes[0], batches, lrs, "learning rate")
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
        """Plot the smoothed training loss of each batch and the validation loss at the end of each epoch.

        Args:
            skip_start: the number of batches to leave out at the start.
            skip_end: the number of batches to leave out at the end.
            return_fig: return the figure.
            show_grid: draw a grid.
            ax: the axes to plot on; by default new ones.
        """
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
        """Plot each metric over the epochs, on axes of its own.

        Args:
            skip_start: the number of epochs to leave out at the start.
            skip_end: the number of epochs to leave out at the end.
            return_fig: return the figure.
            show_grid: draw a grid.
            ax: a sequence with one axes for each metric; by default new ones.

        Raises:
            MinifastError: if there are no metrics, or no epoch was validated.
        """
        if not self.metrics:
            cure = "; give the Learner some, such as metrics=[accuracy]"
            if self.rows and self._columns:
                cure = ", because no validation ran: give the DataBunch a validation set"
            raise MinifastError(f"There are no metrics to plot{cure}, and fit.")
        axes = plotting.axes_for(ax, len(self.metrics[0]))
        for i, (axis, name) in enumerate(zip(axes, self.metrics_names, strict=False)):
            epochs = cut(range(len(self.metrics)), skip_start, skip_end)
            plotting.plot_epochs(axis, epochs, [self.metrics[epoch][i] for epoch in epochs], name)
        return plotting.finish(axes, return_fig, show_grid)

    def _need_batches(self, first: str = "fit") -> None:
        if not self.lrs:
            raise MinifastError(f"There is nothing to plot yet: no batch was trained; call learn.{first}(...) first.")
