"""One way to time everything: interleaved rounds, medians, ratios."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
ROUNDS = 9


class Row(NamedTuple):
    """One comparison: ours with theirs, and the ratio that was aimed at."""

    what: str
    ours: float
    theirs: float
    ratio: float
    bound: float | None
    unit: str


def seconds(run: Callable[[], object]) -> float:
    """Return how long ``run`` takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def interleaved(runs: Mapping[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Call each of ``runs`` once a round, after one round that does not count, and return what each returned.

    A neighbour's load then falls on all of them alike, and a ratio within a round is worth more than any one time.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            took = run()
            if i:
                times[name].append(took)
    return times


def compare(
    what: str, times: Mapping[str, list[float]], ours: str, theirs: str, bound: float | None, unit: str = "s"
) -> Row:
    """Return the medians of both, and the median over rounds of ours divided by theirs."""
    ratio = statistics.median(a / b for a, b in zip(times[ours], times[theirs], strict=True))
    return Row(what, statistics.median(times[ours]), statistics.median(times[theirs]), ratio, bound, unit)


def process(arguments: Sequence[str], **environment: str) -> float:
    """Return how long a fresh Python process takes from start to end, on one OpenMP thread."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=False)
    took = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return took


def peak_memory(code: str) -> float:
    """Return the most memory, in MB, that a fresh Python process running ``code`` holds at once, as Linux tells it.

    ``getrusage`` would not do: a child begins with its parent's peak.
    """
    measured = f"{code}\nlines = open('/proc/self/status').read().splitlines()"
    measured += "\nprint(next(int(line.split()[1]) / 1024 for line in lines if line.startswith('VmHWM')))"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", measured], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The process failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def table(rows: Sequence[Row]) -> str:
    """Return rows as a table in Markdown."""
    if not rows:
        return "Not measured: this machine has not what it takes."
    lines = ["| what | minifast | compared with | ratio | aimed at |", "|---|---|---|---|---|"]
    for row in rows:
        bound = "" if row.bound is None else f"≤ {row.bound:g}"
        lines.append(
            f"| {row.what} | {row.ours:.4g} {row.unit} | {row.theirs:.4g} {row.unit} | {row.ratio:.3f} | {bound} |"
        )
    return "\n".join(lines)
