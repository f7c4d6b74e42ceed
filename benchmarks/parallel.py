"""The README's ten lines in two processes that train together, against one process, over ten seeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

import torch

from minifast import ImageDataBunch, Learner, URLs, accuracy, set_seed, simple_cnn, untar_data
from minifast.distributed import launch

SEEDS = range(10)


def train(seeds: Sequence[int]) -> list[float]:
    """Return the accuracy of the ten lines with each seed."""
    torch.set_num_threads(1)
    reached = []
    for seed in seeds:
        set_seed(seed)
        path = untar_data(URLs.MNIST_SAMPLE)
        data = ImageDataBunch.from_folder(path)
        learn = Learner(data, simple_cnn((3, 16, 16, 2)), metrics=[accuracy], silent=True)
        learn.lr_find()
        learn.fit_one_cycle(2, 5e-2)
        reached.append(float(learn.validate()[1]))
    return reached


def report() -> str:
    """Return the accuracies as a table, with the mean difference of runs with the same seed."""
    results = {1: train(SEEDS), 2: launch(train, SEEDS, nproc=2)}
    lines = [f"| processes | accuracy, mean of {len(SEEDS)} seeds | standard deviation | lowest |", "|---|---|---|---|"]
    for size, values in results.items():
        lines.append(f"| {size} | {fmean(values):.4f} | {stdev(values):.4f} | {min(values):.4f} |")
    differences = [b - a for a, b in zip(*results.values(), strict=True)]
    error = stdev(differences) / len(differences) ** 0.5
    lines += ["", f"Mean difference of two processes to one: {fmean(differences):+.4f}, standard error {error:.4f}."]
    return "\n".join(lines)
