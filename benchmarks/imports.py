"""Import time of minifast, against ``import torch`` alone."""

from __future__ import annotations

from benchmarks.timing import Row, compare, interleaved, process


def rows() -> list[Row]:
    """Compare whole processes that only import."""
    times = interleaved(
        {
            "torch": lambda: process(["-c", "import torch"]),
            "star": lambda: process(["-c", "from minifast import *"]),
        },
        rounds=11,
    )
    return [
        compare("`from minifast import *` against `import torch`", times, "star", "torch", 1.10),
    ]
