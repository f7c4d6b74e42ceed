"""A live graph of the losses below a notebook's bar."""

from __future__ import annotations

import time
from typing import Any

from minifast.training.callback import LearnerCallback

SHARE = 0.1  # of the time, at most, that goes into drawing


class ShowGraph(LearnerCallback):
    """Draws training and validation loss below the bar while a notebook's fit runs; elsewhere it does nothing.

    It draws when an epoch ends, but where epochs are short not each time, so that it takes a tenth of the time at most;
    the last graph is drawn when the fit ends.

    >>> callback = ShowGraph()
    """

    fit_only = True
    _next = 0.0
    _drawn = 0

    def on_train_begin(self) -> None:
        """Begin anew."""
        self._next = 0.0
        self._drawn = 0

    def on_epoch_end(self, pbar: Any) -> None:
        """Draw, if it is time."""
        begin = time.perf_counter()
        if begin >= self._next:
            self._draw(pbar)
            end = time.perf_counter()
            self._next = end + (end - begin) * (1 - SHARE) / SHARE

    def on_train_end(self, pbar: Any) -> None:
        """Draw the last graph."""
        self._draw(pbar)

    def _draw(self, pbar: Any) -> None:
        recorder = self.learn.recorder
        if len(recorder.lrs) == self._drawn:
            return
        self._drawn = len(recorder.lrs)

        def figure() -> Any:
            from matplotlib.figure import Figure

            figure = Figure(figsize=(6, 4), layout="constrained")
            recorder.plot_losses(ax=figure.subplots())
            return figure

        pbar.show(figure)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a run that is taken up again draws anew."""
        return {}
