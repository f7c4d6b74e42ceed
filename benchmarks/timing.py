"""One way to time everything: interleaved rounds, medians, ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def seconds(run: Callable[[], object]) -> float:
    """Return how long ``run`` takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def interleaved(runs: Mapping[str, Callable[[], object]], rounds: int = 7) -> dict[str, list[float]]:
    """Time each of ``runs`` once a round, after one round that does not count, and return the seconds of each.

    A neighbour's load then falls on all of them alike, and a ratio within a round is worth more than any one time.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            took = seconds(run)
            if i:
                times[name].append(took)
    return times


def ratio(times: Mapping[str, list[float]], ours: str, theirs: str) -> float:
    """Return the median over rounds of ours divided by theirs."""
    return statistics.median(a / b for a, b in zip(times[ours], times[theirs], strict=True))


def median(values: list[float]) -> float:
    """Return the median."""
    return statistics.median(values)
