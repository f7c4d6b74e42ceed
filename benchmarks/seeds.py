"""The 1cycle policy against other schedules on MNIST_SAMPLE, each at three learning rates, over ten seeds."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch

from benchmarks.documents import write_part
from minifast import ImageDataBunch, Learner, URLs, accuracy, compare, simple_cnn, untar_data
from minifast.comparison import Comparison
from minifast.schedules import SCHEDULES

LEARNING_RATES = {"constant": (5e-3, 1e-2, 5e-2)}
OTHER_LEARNING_RATES = (2e-2, 5e-2, 1e-1)
NAMES = ("constant", "step", "exponential", "cosine", "one_cycle")


def main() -> None:
    """Print the table and the conclusion, and write them into the documentation."""
    torch.set_num_threads(1)
    data = ImageDataBunch.from_folder(untar_data(URLs.MNIST_SAMPLE), seed=0)

    def make_learner(seed: int) -> Learner:
        data.train_dl.seed, data.train_dl.epoch = seed, 0
        return Learner(data, simple_cnn((3, 16, 16, 2)), metrics=[accuracy])

    configurations: dict[str, Any] = {}
    for name in NAMES:
        for lr in LEARNING_RATES.get(name, OTHER_LEARNING_RATES):
            configurations[f"{name}, {lr:g}"] = SCHEDULES[name].of(lr)
    results = compare(make_learner, configurations, epochs=2, seeds=10)
    head, *rows = ([*row[:-1]] for row in results.rows())  # without the seconds
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    best = {}
    for name in NAMES:
        name_of_best = max((configuration for configuration in results.runs if configuration.startswith(f"{name}, ")),
                 key=lambda configuration: fmean(results.values(configuration, results.by)))  # fmt: skip
        best[name_of_best] = results.runs[name_of_best]
    text = "\n".join([*lines, "", f"Of each schedule at its best learning rate: {Comparison(best).verdict}"])
    print(text)
    write_part("seeds", text)
