"""What a learning rate finder found: the curve, what each rule reads from it, and one suggestion or a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minifast import plotting
from minifast.errors import MinifastError
from minifast.finder.rules import agreed, band, cut, rules

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LABELS = {"steepest": "steepest fall", "minimum": "minimum / 10", "valley": "valley", "slide": "slide"}


class FinderResult:
    """The curve of ``lr_find`` and what it says; a notebook shows it as a table.

    ``lrs`` and ``losses`` (smoothed) hold a value a step of the optimizer; of several runs the median, and ``curves``
    each. ``stopped`` says why it ended. ``rules`` holds the rate that each rule reads, see ``suggest.Rules``;
    ``suggestion`` the one to train with, with ``band`` the lowest and the highest rate that are about as good. Where
    the curve does not say, both are None and ``refusal`` says why.

    Args:
        lrs: the rates of each run.
        losses: the smoothed losses of each run.
        stopped: why the last run ended.
        skip_start, skip_end: how many points at either end the rules leave out (fewer of a short curve).
    """

    def __init__(
        self,
        lrs: Sequence[Sequence[float]],
        losses: Sequence[Sequence[float]],
        stopped: str,
        skip_start: int = 10,
        skip_end: int = 5,
    ) -> None:
        shortest = min(map(len, lrs))
        self.lrs = list(lrs[0][:shortest])
        self.curves = [list(one[:shortest]) for one in losses]
        self.losses = np.median(self.curves, axis=0).tolist()
        self.stopped = stopped
        self.rules: dict[str, float] = {}
        self.suggestion: float | None = None
        self.band: tuple[float, float] | None = None
        self.refusal = ""
        try:
            found = rules(self.lrs, self.losses, skip_start, skip_end, self.curves)
            self.rules = found._asdict()
            self.suggestion = agreed(found)
            self.band = band(self.suggestion)
        except MinifastError as error:
            self.refusal = str(error)

    def plot(
        self,
        skip_start: int = 10,
        skip_end: int = 5,
        suggestion: bool = True,
        return_fig: bool | None = None,
        show_grid: bool = False,
        ax: Any = None,
    ) -> Figure | None:
        """Draw the loss over the learning rate, and of several runs the spread between the lowest and the highest.

        The first ``skip_start`` and the last ``skip_end`` points are left out (fewer of a short curve).
        ``suggestion`` marks the suggestion with its band and what the first two rules read.
        """
        (axes,) = plotting.axes_for(ax)
        shown = [cut(one, skip_start, skip_end) for one in (self.lrs, self.losses, *self.curves)]
        marks = [(LABELS[name], self.rules[name]) for name in ("steepest", "minimum") if self.rules]
        marks += [] if self.suggestion is None else [("suggestion", self.suggestion)]
        plotting.plot_finder(axes, shown[0], shown[1], shown[2:], marks if suggestion else (), self.band)
        return plotting.finish([axes], return_fig, show_grid)

    def _rows(self) -> list[tuple[str, str]]:
        rows = [(LABELS[name], f"{rate:.2e}") for name, rate in self.rules.items()]
        return rows if self.suggestion is None else [*rows, ("suggestion", f"{self.suggestion:.2e}")]

    def _said(self) -> str:
        said = self.refusal
        if self.band is not None:
            said = "Rates from {:.1e} to {:.1e} are about as good.".format(*self.band)
        runs = f"Median of {len(self.curves)} runs" if len(self.curves) > 1 else "One run"
        return f"{said} {runs}, {len(self.lrs)} steps: {self.stopped}."

    def __str__(self) -> str:
        """Say it in lines of text."""
        return "\n".join([*(f"{label:14}{rate}" for label, rate in self._rows()), self._said()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cells = [("<b>rule</b>", "<b>learning rate</b>"), *self._rows()]
        rows = "".join(f"<tr><td style='text-align:left'>{label}</td><td>{rate}</td></tr>" for label, rate in cells)
        return f"<table>{rows if self.rules else ''}</table><p>{self._said()}</p>"
