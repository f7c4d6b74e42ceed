"""``compare`` with two processes against one run after another, on runs that last several seconds."""

from __future__ import annotations

from statistics import median

import torch

from benchmarks.timing import Row, seconds
from minifast import ImageDataBunch, Learner, URLs, accuracy, compare, simple_cnn, untar_data
from minifast.comparison import Comparison

ROUNDS = 3
EPOCHS, SEEDS = 5, 2
CONFIGURATIONS = {"low": 2e-2, "high": 5e-2}


def rows() -> list[Row]:
    """Compare in interleaved rounds, with one thread per process."""
    from joblib.externals.loky import get_reusable_executor

    torch.set_num_threads(1)
    data = ImageDataBunch.from_folder(untar_data(URLs.MNIST_SAMPLE), seed=0)

    def make_learner() -> Learner:
        return Learner(data, simple_cnn((3, 16, 16, 2)), metrics=[accuracy])

    def run(n_jobs: int) -> Comparison:
        return compare(make_learner, CONFIGURATIONS, EPOCHS, SEEDS, silent=True, n_jobs=n_jobs)

    times: dict[str, list[float]] = {"alone": [], "started": [], "starting": []}
    losses = []
    for _ in range(ROUNDS):
        get_reusable_executor().shutdown(wait=True)
        for name, n_jobs in (("starting", 2), ("alone", 1), ("started", 2)):
            times[name].append(seconds(lambda n_jobs=n_jobs: losses.append(run(n_jobs).runs["high"][-1].losses)))
    if any(other != losses[0] for other in losses):
        raise SystemExit("The losses of one process and of two differ.")
    what = f"{len(CONFIGURATIONS) * SEEDS} runs of `compare`, `n_jobs=2`, against one after another"
    return [
        row(f"{what}", times, "started", 0.6),
        row(f"{what}, with the start of the processes", times, "starting", None),
    ]


def row(what: str, times: dict[str, list[float]], ours: str, bound: float | None) -> Row:
    """Return the medians, and the median over rounds of the ratio."""
    ratio = median(a / b for a, b in zip(times[ours], times["alone"], strict=True))
    return Row(what, median(times[ours]), median(times["alone"]), ratio, bound, "s")
