"""Pictures: lists in, matplotlib axes out. matplotlib is imported when the first picture is made."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 6.0, 4.0  # inches, of one pair of axes
NAMES = {"lr": "learning rate", "mom": "momentum", "wd": "weight decay"}


def axes_for(ax: Any, n: int = 1) -> list[Axes]:
    """Return ``n`` axes: those given as ``ax`` (one, or a sequence of ``n``), or new ones side by side."""
    if ax is None:
        import matplotlib.pyplot as plt

        _, grid = plt.subplots(1, n, figsize=(WIDTH * n, HEIGHT), squeeze=False, layout="constrained")
        return list(grid[0])
    given = list(ax) if isinstance(ax, Sequence) or hasattr(ax, "shape") else [ax]
    if len(given) != n:
        raise ValueError(f"ax holds {len(given)} axes and this plot needs {n}; give {n}, or leave ax out.")
    return given


def finish(axes: Sequence[Axes], return_fig: bool | None, show_grid: bool = False) -> Figure | None:
    """Draw a grid and return the figure where they are asked for; a notebook shows it once, as its cell's value."""
    for ax in axes if show_grid else ():
        ax.grid(alpha=0.4)
    if not return_fig:
        return None
    figure = axes[0].figure
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None and "inline" in pyplot.get_backend():
        pyplot.close(figure)
    return figure  # type: ignore[return-value]  # a subfigure's axes give a SubFigure, which saves and shows alike


def plot_finder(
    ax: Axes,
    lrs: Sequence[float],
    losses: Sequence[float],
    runs: Sequence[Sequence[float]] = (),
    marks: Sequence[tuple[str, float]] = (),
    band: tuple[float, float] | None = None,
) -> None:
    """Draw the finder's curve, losses over learning rates on a logarithmic axis, with a line for each mark.

    Of several ``runs`` the spread is a shade around the curve; ``band`` is a shade behind the marks.
    """
    ax.plot(lrs, losses)
    if len(runs) > 1:
        ax.fill_between(lrs, np.min(runs, axis=0), np.max(runs, axis=0), alpha=0.25, label=f"{len(runs)} runs")
    ax.set_xscale("log")
    ax.set_xlabel("learning rate")
    ax.set_ylabel("loss (smoothed)")
    for i, (label, lr) in enumerate(marks, 1):
        ax.axvline(lr, color=f"C{i}", linestyle="--", linewidth=1, label=f"{label}: {lr:.2e}")
    if marks and band:
        ax.axvspan(*band, color=f"C{len(marks)}", alpha=0.12, label="about as good")
    if marks or len(runs) > 1:
        ax.legend()


def plot_over_batches(
    ax: Axes, batches: Sequence[int], values: Sequence[float], label: str, legend: str | None = None
) -> None:
    """Draw a value a training batch; of one batch alone a point."""
    ax.plot(batches, values, label=legend, marker="o" if len(values) == 1 else None)
    ax.set_xlabel("training batch")
    ax.set_ylabel(label)


def plot_hyperparameters(
    values: dict[str, list[Any]], title: str = "", return_fig: bool | None = None, ax: Any = None
) -> Figure | None:
    """Draw hyper-parameters over the training batches side by side; of several layer groups a line each."""
    axes = axes_for(ax, len(values))
    for one, (name, each) in zip(axes, values.items(), strict=True):
        plot_over_batches(one, range(len(each)), each, NAMES.get(name, name))
        if len(one.lines) > 1:
            one.legend([f"layer group {i}" for i in range(len(one.lines))])
        one.set_title(title)
    return finish(axes, return_fig)


def plot_losses(
    ax: Axes, batches: Sequence[int], losses: Sequence[float], ends: Sequence[int], val_losses: Sequence[float | None]
) -> None:
    """Draw the training loss a batch and the validation loss at the ends of the epochs."""
    ax.plot(batches, losses, label="train (smoothed)", marker="o" if len(losses) == 1 else None)
    points = [(end, loss) for end, loss in zip(ends, val_losses, strict=False) if loss is not None]
    if points:
        ax.plot(*zip(*points, strict=True), marker="o", label="valid")
    ax.set_xlabel("training batch")
    ax.set_ylabel("loss")
    ax.legend()


def plot_epochs(ax: Axes, epochs: Sequence[int], values: Sequence[float], label: str) -> None:
    """Draw a value an epoch."""
    ax.plot(epochs, values, marker="o")
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("epoch")
    ax.set_ylabel(label)


def plot_images(pictures: Sequence[Any], titles: Sequence[str], figsize: tuple[float, float] | None = None) -> Figure:
    """Draw pictures, arrays ``(height, width, channels)`` in [0, 1], in a square of rows, a title over each."""
    import matplotlib.pyplot as plt

    columns = max(1, math.isqrt(len(pictures) - 1) + 1)
    rows = -(-len(pictures) // columns)
    titles = [textwrap.fill(title, 14) for title in titles]  # as many letters as a picture is wide
    lines = 1 + max((title.count("\n") for title in titles), default=0)
    size = figsize or (1.4 * columns, (1.4 + 0.2 * lines) * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for ax in grid.flat:
        ax.axis("off")
    for ax, picture, title in zip(grid.flat, pictures, titles, strict=False):
        ax.imshow(picture)
        ax.set_title(title, fontsize="medium")
    return figure
