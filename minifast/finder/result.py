"""The result of ``lr_find``: the curve, what each rule reads from it, and a suggestion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minifast import plotting
from minifast.errors import MinifastError
from minifast.finder.rules import Rules, combine_rules, cut, read_rules, suggested_range
from minifast.utils.aliases import deprecated_attribute

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LABELS = {"steepest": "steepest fall", "minimum": "minimum / 10", "valley": "valley", "slide": "slide"}


class FinderResult:
    """Hold the curve of ``lr_find`` and a suggested learning rate; a notebook shows it as a table.

    Attributes:
        lrs: the learning rate of each optimizer step.
        losses: the smoothed loss of each step, of several runs the median.
        curves: the smoothed losses of each run.
        rules: what each rule reads from the curve, see ``minifast.finder.rules.Rules``; empty without a suggestion.
        suggestion: the learning rate to train with, or None if the curve does not show one.
        suggested_range: the lowest and the highest learning rate that train about equally well, or None.
        learned: whether the model learned which target belongs to which sample; None if the loss allows no test.
        learned_from: the learning rate at which the model begins to learn, or None where that is not known.
        valid_minimum: the learning rate with the lowest loss of validation samples, if the model memorizes the training
            samples; else None. The suggestion is then a fifth of it where the rules give more.
        error: why there is no suggestion, or None.
        stopped: why the last run ended.

    Args:
        lrs: the learning rates of each run.
        losses: the smoothed losses of each run.
        stopped: why the last run ended.
        skip_start: how many points the rules ignore at the start, at most a quarter of the curve.
        skip_end: how many points the rules ignore at the end, at most a quarter of the curve.
        learned: the result of the test whether the model learns; with None the fall of the loss decides.
        learned_from: the learning rate at which the model begins to learn, or None.
        valid_minimum: the learning rate with the lowest loss of validation samples, or None.

    >>> result = FinderResult([[1e-4, 1e-3, 1e-2]], [[1.0, 0.9, 0.8]], "the last learning rate was reached")
    >>> result.suggestion is None, result.reason[:33]
    (True, 'The curve of lr_find has 3 points')
    """

    band = deprecated_attribute("band", "suggested_range")
    refusal = deprecated_attribute("refusal", "reason")

    def __init__(
        self,
        lrs: Sequence[Sequence[float]],
        losses: Sequence[Sequence[float]],
        stopped: str,
        skip_start: int = 10,
        skip_end: int = 5,
        learned: bool | None = None,
        learned_from: float | None = None,
        valid_minimum: float | None = None,
    ) -> None:
        shortest = min(map(len, lrs))
        self.lrs = list(lrs[0][:shortest])
        self.curves = [list(run[:shortest]) for run in losses]
        self.losses = np.median(self.curves, axis=0).tolist() if len(self.curves) > 1 else list(self.curves[0])
        self.stopped = stopped
        self.learned, self.learned_from, self.valid_minimum = learned, learned_from, valid_minimum
        self.rules: dict[str, float] = {}
        self.suggestion: float | None = None
        self.suggested_range: tuple[float, float] | None = None
        self.error: MinifastError | None = None
        try:
            readings = read_rules(self.lrs, self.losses, skip_start, skip_end, self.curves, learned, learned_from)
            self.rules = readings._asdict()
            self.suggestion = combine_rules(readings, valid_minimum)
            self.suggested_range = suggested_range(self.suggestion)
        except MinifastError as error:
            self.error = error.with_traceback(None)

    @property
    def reason(self) -> str:
        """Why there is no suggestion, else an empty text."""
        return "" if self.error is None else str(self.error)

    def plot(
        self,
        skip_start: int = 10,
        skip_end: int = 5,
        suggestion: bool = True,
        return_fig: bool | None = None,
        show_grid: bool = False,
        ax: Any = None,
    ) -> Figure | None:
        """Plot the loss over the learning rate; of several runs also the range between the lowest and the highest loss.

        Args:
            skip_start: how many points to leave out at the start, at most a quarter of the curve.
            skip_end: how many points to leave out at the end, at most a quarter of the curve.
            suggestion: mark the suggestion with its range, and what the first two rules read.
            return_fig: return the figure.
            show_grid: draw a grid.
            ax: the axes to plot into; by default a new figure's.
        """
        (axes,) = plotting.axes_for(ax)
        shown = [cut(values, skip_start, skip_end) for values in (self.lrs, self.losses, *self.curves)]
        marks = [(LABELS[name], self.rules[name]) for name in ("steepest", "minimum") if self.rules]
        marks += [] if self.suggestion is None else [("suggestion", self.suggestion)]
        plotting.plot_finder(axes, shown[0], shown[1], shown[2:], marks if suggestion else (), self.suggested_range)
        return plotting.finish([axes], return_fig, show_grid)

    def _rows(self) -> list[tuple[str, str]]:
        rows = [(LABELS[name], f"{lr:.2e}") for name, lr in self.rules.items()]
        return rows if self.suggestion is None else [*rows, ("suggestion", f"{self.suggestion:.2e}")]

    def _conclusion(self) -> str:
        text = self.reason
        if self.suggestion is not None and self.suggested_range is not None:
            text = "Suggested range: {:.1e} to {:.1e}.".format(*self.suggested_range)
            mean = combine_rules(Rules(**self.rules))
            if self.valid_minimum is not None and self.suggestion < mean:
                of = f"{self.valid_minimum:.1e}" if self.valid_minimum > mean else "what the rules give"
                text += (
                    f" The suggestion is a fifth of {of}: above {self.valid_minimum:.1e} the validation loss rises, "
                    f"because the model memorizes the training samples."
                )
        runs = f"Median of {len(self.curves)} runs" if len(self.curves) > 1 else "One run"
        return f"{text} {runs}, {len(self.lrs)} steps: {self.stopped}."

    def __str__(self) -> str:
        """Return what the rules read, and the conclusion, as lines of text."""
        return "\n".join([*(f"{label:14}{lr}" for label, lr in self._rows()), self._conclusion()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cells = [("<b>rule</b>", "<b>learning rate</b>"), *self._rows()]
        rows = "".join(f"<tr><td style='text-align:left'>{label}</td><td>{lr}</td></tr>" for label, lr in cells)
        return f"{f'<table>{rows}</table>' if self.rules else ''}<p>{self._conclusion()}</p>"
