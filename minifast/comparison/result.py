"""The result of a comparison: a table, a plot and a significance test."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minifast import plotting
from minifast.callbacks.monitor import guess_direction
from minifast.errors import MinifastError
from minifast.utils.checks import check_word
from minifast.utils.text import html_table, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


EXACT_PAIRS = 12  # up to this number of pairs all sign changes are tried
SAMPLED_SIGNS = 20_000  # sign changes that are sampled for more pairs
SIGNIFICANCE = 0.05
MIN_SEEDS = 6  # fewer seeds cannot reach that level: with 6 the smallest p is 2 / 2**6


class Run(NamedTuple):
    """One training of a comparison: its record, and its final metrics by name (NaN if the run diverged)."""

    seed: int
    lrs: list[float]
    losses: list[float]
    reached: dict[str, float]
    seconds: float


class Comparison:
    """The result of ``compare``; a notebook shows it as a table with the verdict below.

    Args:
        runs: the runs of each configuration by name, one per seed.
        by: the metric that decides, or ``"valid_loss"``. By default the accuracy or error rate if there is one.
        ended_by: the KeyboardInterrupt or error that ended the comparison early, or None.
        direction: ``"max"`` if higher values of ``by`` are better, ``"min"`` if lower. By default the name decides.

    Attributes:
        names: the names of the compared metrics.
        verdict: a sentence that says which configuration is first, and whether the difference is more than noise.
    """

    def __init__(
        self,
        runs: Mapping[str, list[Run]],
        by: str | None = None,
        ended_by: BaseException | None = None,
        direction: str | None = None,
    ) -> None:
        self.ended_by = ended_by
        self.runs = {name: list(name_runs) for name, name_runs in runs.items()}
        reached = next((run.reached for name_runs in self.runs.values() for run in name_runs), {})
        metrics = [name for name in reached if name != "valid_loss"]
        if by is not None:
            check_word("by", by, tuple(reached))
        self.by = by or next((name for name in ("accuracy", "error_rate") if name in reached), "valid_loss")
        self.direction = direction or guess_direction(self.by)
        self.names = [*metrics, *(["valid_loss"] if reached else [])]
        self.verdict = self._verdict()

    def values(self, name: str, of: str) -> list[float]:
        """Return the final values of one metric for one configuration, one per seed.

        Args:
            name: the configuration.
            of: the metric's name, or ``"valid_loss"``.
        """
        return [run.reached[of] for run in self.runs[name]]

    def _verdict(self) -> str:
        n_diverged = {
            name: sum(not math.isfinite(value) for value in self.values(name, self.by))
            for name, runs in self.runs.items()
            if runs
        }
        complete = [name for name, n in n_diverged.items() if not n]
        diverged = [f"{n} run{'s' * (n > 1)} of {name}" for name, n in n_diverged.items() if n]
        note = f" The loss was NaN or infinite in {', '.join(diverged)}." if diverged else ""
        first_runs = next(iter(self.runs.values()), [])
        if len(first_runs) > 1 and all(run.losses == first_runs[0].losses for run in first_runs):
            return (
                "All seeds gave the same run, so the noise is unknown: make_learner seems to set a seed of its own. "
                "Let it take the seed as an argument and use that one."
            )
        if len(complete) < 2:
            return f"There is nothing to compare: fewer than two configurations were trained to the end.{note}"
        complete.sort(key=lambda name: mean_of(self.values(name, self.by)), reverse=self.direction == "max")
        first, second = complete[:2]
        a, b = self.values(first, self.by), self.values(second, self.by)
        if mean_of(a) == mean_of(b):
            return f"By {self.by}, {first} and {second} are equal with {mean_of(a):.4f}.{note}"
        ranking = f"By {self.by}, {first} is first with {mean_of(a):.4f}, then {second} with {mean_of(b):.4f}"
        if len(a) < MIN_SEEDS:
            seeds = "1 seed is" if len(a) == 1 else f"{len(a)} seeds are"
            return f"{ranking}; {seeds} too few to tell the difference from noise.{note}"
        p = permutation_test(a, b)
        noise = "more than noise" if p < SIGNIFICANCE else "no more than noise"
        return f"{ranking}; over {len(a)} seeds the difference is {noise} (paired permutation test, p = {p:.2g}).{note}"

    def rows(self) -> list[list[str]]:
        """Return the table with its header: mean ± standard deviation of each metric, and the seconds per run."""
        table = [["configuration", *self.names, "seconds"]]
        for name, runs in self.runs.items():
            cells = [spread_of(self.values(name, of)) for of in self.names]
            table.append([name, *cells, f"{mean_of([run.seconds for run in runs]):.2f}" if runs else ""])
        return table

    def __str__(self) -> str:
        """Return the table and the verdict as text."""
        return f"{text_table(self.rows())}\n{self.verdict}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(self.rows(), note=self.verdict)

    def plot(self, return_fig: bool | None = None, ax: Any = None) -> Figure | None:
        """Plot the learning rates of the first seed and the mean training losses of all seeds.

        Args:
            return_fig: return the figure.
            ax: two pairs of axes to plot on.

        Raises:
            MinifastError: there are no runs.
        """
        if not any(self.runs.values()):
            raise MinifastError("There is nothing to plot: no seed was trained with every configuration.")
        axes = plotting.axes_for(ax, 2)
        for name, runs in self.runs.items():
            curves = [run.losses for run in runs if math.isfinite(run.reached["valid_loss"])]
            shortest = min(map(len, curves), default=0)
            losses = np.mean([curve[:shortest] for curve in curves], axis=0) if curves else []
            plotting.plot_over_batches(axes[0], range(len(runs[0].lrs)), runs[0].lrs, "learning rate", name)
            plotting.plot_over_batches(
                axes[1], range(shortest), losses, "training loss (smoothed, mean of seeds)", name
            )
        axes[0].legend()
        axes[1].set_yscale("log")
        return plotting.finish(axes, return_fig)


def mean_of(values: Sequence[float]) -> float:
    """Return the mean of numbers."""
    return math.fsum(values) / len(values)


def spread_of(values: Sequence[float]) -> str:
    """Format numbers as mean ± standard deviation; diverged runs are counted but not averaged.

    >>> spread_of([1.0, 2.0]), spread_of([1.0]), spread_of([]), spread_of([1.0, math.nan])
    ('1.5000 +/- 0.7071', '1.0000', '', '1.0000 (1 diverged)')
    """
    finite = [value for value in values if math.isfinite(value)]
    parts = [f"{mean_of(finite):.4f}"] if finite else []
    parts += [f"+/- {np.std(finite, ddof=1):.4f}"] if len(finite) > 1 else []
    parts += [f"({len(values) - len(finite)} diverged)"] if len(finite) < len(values) else []
    return " ".join(parts)


def permutation_test(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the two-sided p-value of the mean difference of pairs, by a sign permutation test.

    It is exact for up to 12 pairs; for more, 20,000 sign changes are sampled. Source: R. A. Fisher, "The design of
    experiments" (1935), section 21.

    >>> permutation_test([1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0])
    0.03125
    """
    differences = np.asarray(a, float) - np.asarray(b, float)
    n = len(differences)
    if n <= EXACT_PAIRS:
        signs = np.array(list(itertools.product((1, -1), repeat=n)))
    else:
        signs = np.random.default_rng(0).choice((1, -1), size=(SAMPLED_SIGNS, n))
        signs[0] = 1
    sums = np.abs(signs @ differences)
    return float((sums >= sums[0] * (1 - 1e-9)).mean())  # the first sign change is the observed one
