"""A whole process from a cold start with cached data: minifast against its peers at the same task."""

from __future__ import annotations

import importlib.util
import statistics
from pathlib import Path

from benchmarks.timing import Row, interleaved, process
from minifast import URLs, untar_data

PEERS = {"minifast": "minifast", "fastai": "fastai", "lightning": "lightning", "skorch": "skorch",
         "keras": "keras", "ignite": "ignite", "accelerate": "accelerate", "torchtnt": "torchtnt"}  # fmt: skip
SCRIPTS = Path(__file__).parent / "peers"


def rows() -> list[Row]:
    """Compare in interleaved rounds with each installed peer, and print the names of the others."""
    installed = [name for name in PEERS if importlib.util.find_spec(PEERS[name])]
    for name in PEERS.keys() - set(installed):
        print(f"{name} is not installed and left out; python -m pip install '.[bench]' installs it.")
    sample = str(untar_data(URLs.MNIST_SAMPLE))

    def script(name: str) -> float:
        return process([str(SCRIPTS / f"{name}_.py")], MNIST_SAMPLE=sample)

    times = interleaved({name: lambda name=name: script(name) for name in installed}, rounds=7)
    rows = []
    quickest = min((name for name in installed if name != "minifast"), key=lambda name: statistics.median(times[name]))
    for name in installed:
        if name != "minifast":
            ratio = statistics.median(a / b for a, b in zip(times["minifast"], times[name], strict=True))
            ours, theirs = (statistics.median(times[library]) for library in ("minifast", name))
            bound = 0.6 if name == quickest else None
            rows.append(Row(f"whole process, MNIST_SAMPLE, against {name}", ours, theirs, ratio, bound, "s"))
    return rows
