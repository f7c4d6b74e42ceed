"""The callback that plots the losses of a running fit in a notebook."""

from __future__ import annotations

import time
from typing import Any

from minifast.training.callback import LearnerCallback

MAX_SHARE = 0.1  # of the training time, at most, is spent on plotting


class ShowGraph(LearnerCallback):
    """Plot training and validation loss below the progress bar of a notebook; outside of a notebook do nothing.

    The plot is updated when an epoch ends. If epochs are short some updates are skipped, so that plotting takes at most
    a tenth of the time. The final plot appears when the fit ends.

    >>> callback = ShowGraph()
    """

    fit_only = True
    _next = 0.0
    _plotted = 0

    def on_train_begin(self) -> None:
        """Reset the timer and the count of plotted batches."""
        self._next = 0.0
        self._plotted = 0

    def on_epoch_end(self, pbar: Any) -> None:
        """Update the plot, unless the last update was too recent."""
        begin = time.perf_counter()
        if begin >= self._next:
            self._plot(pbar)
            end = time.perf_counter()
            self._next = end + (end - begin) * (1 - MAX_SHARE) / MAX_SHARE

    def on_train_end(self, pbar: Any) -> None:
        """Plot the final losses."""
        self._plot(pbar)

    def _plot(self, pbar: Any) -> None:
        recorder = self.learn.recorder
        if len(recorder.lrs) == self._plotted:
            return
        self._plotted = len(recorder.lrs)

        def figure() -> Any:
            from matplotlib.figure import Figure

            figure = Figure(figsize=(6, 4), layout="constrained")
            recorder.plot_losses(ax=figure.subplots())
            return figure

        pbar.show(figure)

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: a resumed run starts a new plot."""
        return {}
