"""Timing by interleaved rounds, medians and ratios."""

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
    """One comparison: the time of minifast, the other time, their ratio and its target."""

    what: str
    ours: float
    theirs: float
    ratio: float
    bound: float | None
    unit: str


def seconds(run: Callable[[], object]) -> float:
    """Return the seconds that ``run`` takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def cpu_seconds(run: Callable[[], object]) -> float:
    """Return the CPU seconds that ``run`` takes, of all threads: the time that it would take on one core."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


def interleaved(runs: Mapping[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Call each of ``runs`` once per round, after one warm-up round, and return their results by name.

    Load from other processes then affects all of them alike, so ratios within a round are more stable than times. The
    order is reversed in every other round, because a run can profit or suffer from the one before.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name in list(runs) if i % 2 else reversed(runs):
            result = runs[name]()
            if i:
                times[name].append(result)
    return times


def compare(
    what: str, times: Mapping[str, list[float]], ours: str, theirs: str, bound: float | None, unit: str = "s"
) -> Row:
    """Return both medians, and the median over rounds of the ratio."""
    ratio = statistics.median(a / b for a, b in zip(times[ours], times[theirs], strict=True))
    return Row(what, statistics.median(times[ours]), statistics.median(times[theirs]), ratio, bound, unit)


def process(arguments: Sequence[str], **environment: str) -> float:
    """Return the seconds that a new Python process takes, with one OpenMP thread.

    Python may keep the bytecode of what it imports, as pip does for an installed package: the checkout is
    compiled in the first, discarded run.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    begin = time.perf_counter()
    completed = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=False)
    duration = time.perf_counter() - begin
    if completed.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{completed.stderr}")
    return duration


def numbers_of(code: str) -> list[float]:
    """Return the numbers that a new Python process prints last; it runs ``code`` with one OpenMP thread."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    completed = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    if completed.returncode:
        raise SystemExit(f"The process failed:\n{completed.stderr}")
    return [float(number) for number in completed.stdout.splitlines()[-1].split()]


def peak_memory(code: str) -> float:
    """Return the peak memory in MB of a new Python process that runs ``code``, as Linux reports it.

    ``getrusage`` is no alternative: a child process starts with its parent's peak.
    """
    measured = f"{code}\nlines = open('/proc/self/status').read().splitlines()"
    measured += "\nprint(next(int(line.split()[1]) / 1024 for line in lines if line.startswith('VmHWM')))"
    return numbers_of(measured)[0]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    if not rows:
        return "Not measured: this machine lacks the required device."
    lines = ["| measurement | minifast | compared with | ratio | target |", "|---|---|---|---|---|"]
    for row in rows:
        bound = "" if row.bound is None else f"≤ {row.bound:g}"
        lines.append(
            f"| {row.what} | {row.ours:.4g} {row.unit} | {row.theirs:.4g} {row.unit} | {row.ratio:.3f} | {bound} |"
        )
    return "\n".join(lines)
