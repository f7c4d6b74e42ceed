"""Plots: each function takes plain lists and draws on matplotlib axes. matplotlib is imported at the first plot."""

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


WIDTH, HEIGHT = 6.0, 4.0  # inches, of one axes
CHAR_WIDTH = 0.62  # the average width of a character, as a share of the font size
MAX_LABEL = 24  # characters of a tick label
MOST_LABELS = 100  # tick labels of an axis
MOST_TEXTS = 50  # rows of a matrix with a text in each cell; more take many seconds
NAMES = {"lr": "learning rate", "mom": "momentum", "wd": "weight decay"}


def axes_for(ax: Any, n: int = 1) -> list[Axes]:
    """Return ``n`` axes: those in ``ax`` (a single axes or a sequence of ``n``), or new ones side by side."""
    if ax is None:
        import matplotlib.pyplot as plt

        _, grid = plt.subplots(1, n, figsize=(WIDTH * n, HEIGHT), squeeze=False, layout="constrained")
        return list(grid[0])
    given = list(ax) if isinstance(ax, Sequence) or hasattr(ax, "shape") else [ax]
    if len(given) != n:
        raise ValueError(f"`ax` must hold {n} axes for this plot, got {len(given)}; give {n}, or leave `ax` out.")
    return given


def finish(axes: Sequence[Axes], return_fig: bool | None, show_grid: bool = False) -> Figure | None:
    """Draw a grid with ``show_grid``, and return the figure with ``return_fig``.

    The inline backend of a notebook shows open figures, so a returned figure is closed to show it only once.
    """
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
    """Plot losses over learning rates on a logarithmic axis, with a vertical line for each mark.

    The area between the lowest and the highest of several ``runs`` is shaded, and so is ``band``.
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
        ax.axvspan(*band, color=f"C{len(marks)}", alpha=0.12, label="suggested range")
    if marks or len(runs) > 1:
        ax.legend()


def plot_over_batches(
    ax: Axes, batches: Sequence[int], values: Sequence[Any], label: str, legend: str | None = None
) -> None:
    """Plot a value over the training batches, with one line for all layer groups of equal values.

    A single batch gives a point.
    """
    marker = "o" if len(values) == 1 else None
    if len(values) and isinstance(values[0], Sequence):
        lines: dict[tuple[float, ...], list[int]] = {}
        for i, line in enumerate(zip(*values, strict=True)):
            lines.setdefault(line, []).append(i)
        for line, groups in lines.items():
            names = f"layer group{'s' if len(groups) > 1 else ''} {', '.join(map(str, groups))}"
            ax.plot(batches, line, label=f"{names}: up to {max(line):.2g}", marker=marker)
        if len(lines) > 1:
            ax.legend()
    else:
        ax.plot(batches, values, label=legend, marker=marker)
    ax.set_xlabel("training batch")
    ax.set_ylabel(label)


def plot_hyperparameters(
    values: dict[str, list[Any]], title: str = "", return_fig: bool | None = None, ax: Any = None
) -> Figure | None:
    """Plot hyper-parameters over the training batches, side by side."""
    axes = axes_for(ax, len(values))
    for axis, (name, series) in zip(axes, values.items(), strict=True):
        plot_over_batches(axis, range(len(series)), series, NAMES.get(name, name))
        axis.set_title(title)
    return finish(axes, return_fig)


def plot_losses(
    ax: Axes, batches: Sequence[int], losses: Sequence[float], ends: Sequence[int], val_losses: Sequence[float | None]
) -> None:
    """Plot the training loss of each batch and the validation loss at the end of each epoch."""
    ax.plot(batches, losses, label="train (smoothed)", marker="o" if len(losses) == 1 else None)
    points = [(end, loss) for end, loss in zip(ends, val_losses, strict=False) if loss is not None]
    if points:
        ax.plot(*zip(*points, strict=True), marker="o", label="valid")
    ax.set_xlabel("training batch")
    ax.set_ylabel("loss")
    ax.legend()


def plot_epochs(ax: Axes, epochs: Sequence[int], values: Sequence[Any], label: str) -> None:
    """Plot a value over the epochs, with one line for each number of a nested list."""
    ax.plot(epochs, np.asarray(values, dtype=float).reshape(len(epochs), -1), marker="o")
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("epoch")
    ax.set_ylabel(label)


def shorten(text: str, n: int) -> str:
    """Shorten a text to ``n`` characters by cutting its middle, so that common beginnings and ends stay readable.

    >>> shorten("german_shorthaired_pointer", 12), shorten("beagle", 12)
    ('german…ointer', 'beagle')
    """
    return text if len(text) <= n else f"{text[: n - n // 2]}…{text[-(n // 2) :]}"


def fit_font(texts: Sequence[str], width: float, largest: float = 12.0, smallest: float = 6.0) -> tuple[float, int]:
    """Return the font size at which the longest text is ``width`` points wide, and how many characters fit."""
    longest = max(map(len, texts), default=0)
    size = min(largest, max(smallest, width / (CHAR_WIDTH * max(longest, 1))))
    return size, max(3, int(width / (CHAR_WIDTH * size)))


def plot_images(
    images: Sequence[Any],
    titles: Sequence[str],
    figsize: tuple[float, float] | None = None,
    colors: Sequence[str | None] | None = None,
    heading: str = "",
    masks: Sequence[Any] | None = None,
    columns: int | None = None,
) -> Figure:
    """Show images, arrays ``(height, width, channels)`` in [0, 1], in a grid with a title above each.

    Long titles get a smaller font, and are shortened where that font would be too small to read. ``masks`` are class
    numbers ``(height, width)``, drawn over the images in a color per class; class 0 and negative numbers stay clear.
    """
    import matplotlib.pyplot as plt

    columns = columns or max(1, math.isqrt(len(images) - 1) + 1)
    rows = -(-len(images) // columns)
    titles = [
        "\n".join(textwrap.fill(line, 14, break_long_words=False) for line in title.splitlines()) for title in titles
    ]
    n_lines = max((title.count("\n") for title in titles), default=0)
    width, height = figsize or (1.4 * columns, (1.6 + 0.2 * n_lines) * rows)
    figure, grid = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")
    lines = [line for title in titles for line in title.splitlines()]
    size, n = fit_font(lines, 72 * 0.95 * width / columns)
    for ax in grid.flat:
        ax.axis("off")
    for ax, image, title, color in zip(grid.flat, images, titles, colors or [None] * len(titles), strict=False):
        ax.imshow(image)
        text = "\n".join(shorten(line, n) for line in title.splitlines())
        ax.set_title(text, fontsize=size, **({"color": color} if color else {}))
    for ax, mask in zip(grid.flat, masks or (), strict=False):
        shown = np.ma.masked_less(mask, 1)
        ax.imshow((shown - 1) % 20, cmap="tab20", alpha=0.6, vmin=0, vmax=19, interpolation="nearest")
    figure.suptitle(heading, fontsize=10)
    return figure


def matrix_axes(
    labels: Sequence[str], figsize: tuple[float, float] | None = None, dpi: float | None = None
) -> list[Axes]:
    """Return new axes for a matrix over ``labels``, sized by the number of rows and the length of the labels."""
    import matplotlib.pyplot as plt

    side = 2.5 + 0.08 * min(MAX_LABEL, max(map(len, labels))) + 0.3 * len(labels)
    figure = plt.figure(figsize=figsize or (min(side, 20.0), min(side, 20.0)), dpi=dpi, layout="constrained")
    return [figure.add_subplot()]


def plot_matrix(
    ax: Axes, values: Any, labels: Sequence[str], texts: Sequence[Sequence[str]] | None, cmap: Any, title: str
) -> None:
    """Plot a square matrix with tick labels on both sides, and a text in each cell where it is readable."""
    n = len(labels)
    image = ax.imshow(values, cmap=cmap)
    box = ax.get_window_extent()
    cell = min(box.width, box.height) / ax.figure.dpi * 72 / n  # points
    names = [shorten(label, MAX_LABEL) for label in labels]
    size = max(4.0, min(10.0, 0.8 * cell))
    flat = max(map(len, names)) * CHAR_WIDTH * size <= 0.9 * cell
    step = max(1, math.ceil(1.25 * size / cell)) if 0.8 * cell < size else 1  # with many classes not all labels fit
    if n / step > MOST_LABELS:  # each of which takes milliseconds to lay out
        step, size = math.ceil(n / MOST_LABELS), 10.0
    ax.set_xticks(range(0, n, step), names[::step], rotation=0 if flat else 90, fontsize=size)
    ax.set_yticks(range(0, n, step), names[::step], fontsize=size)
    ax.set_xlabel("predicted")
    ax.set_ylabel("actual")
    ax.set_title(title)
    if texts is None:
        return
    longest = max((text for row in texts for text in row), key=len)
    size, n_fit = fit_font([longest], 0.9 * cell, smallest=4.0)
    if len(longest) > n_fit or len(longest) * CHAR_WIDTH * size > cell:
        return
    shades = image.to_rgba(np.asarray(values, float))[..., :3] @ [0.299, 0.587, 0.114]  # perceived lightness
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            color = ("0.75" if text == "0" else "black") if shades[i, j] > 0.5 else "white"
            # Not in the layout, which is slow with many texts.
            ax.text(j, i, text, ha="center", va="center", fontsize=size, color=color, in_layout=False)


def plot_layers(ax: Axes, values: Sequence[Sequence[float]], label: str, names: Sequence[str]) -> None:
    """Plot one line per layer over the training batches, from dark (first layer) to light (last layer)."""
    import matplotlib as mpl

    colors = mpl.colormaps["viridis"]
    for i, (line, name) in enumerate(zip(values, names, strict=True)):
        ax.plot(line, color=colors(0.9 * i / max(1, len(values) - 1)), linewidth=1.2, label=name)
    ax.set_xlabel("training batch")
    ax.set_ylabel(f"{label} of the activations")
    max_names = 10
    if len(names) <= max_names:
        ax.legend(fontsize="small")
    else:
        ax.legend([ax.lines[0], ax.lines[-1]], [f"first: {names[0]}", f"last: {names[-1]}"], fontsize="small")
