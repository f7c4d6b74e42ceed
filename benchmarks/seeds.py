"""One cycle against other schedules on MNIST_SAMPLE, each at three rates, over ten seeds."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch

from benchmarks.documents import write_part
from minifast import ImageDataBunch, Learner, URLs, accuracy, compare, simple_cnn, untar_data
from minifast.comparison import Comparison
from minifast.schedules import SCHEDULES

RATES = {"constant": (5e-3, 1e-2, 5e-2)}
OTHER_RATES = (2e-2, 5e-2, 1e-1)
NAMES = ("constant", "step", "exponential", "cosine", "one_cycle")


def main() -> None:
    """Print the table and the sentence, and write them into the README."""
    torch.set_num_threads(1)
    data = ImageDataBunch.from_folder(untar_data(URLs.MNIST_SAMPLE), seed=0)

    def make_learner(seed: int) -> Learner:
        data.train_dl.seed, data.train_dl.epoch = seed, 0
        return Learner(data, simple_cnn((3, 16, 16, 2)), metrics=[accuracy])

    recipes: dict[str, Any] = {}
    for name in NAMES:
        for rate in RATES.get(name, OTHER_RATES):
            recipes[f"{name}, {rate:g}"] = SCHEDULES[name].of(rate)
    found = compare(make_learner, recipes, epochs=2, seeds=10)
    head, *rows = ([*row[:-1]] for row in found.rows())  # but for the seconds
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    best = {}
    for name in NAMES:
        at = max((recipe for recipe in found.runs if recipe.startswith(f"{name}, ")),
                 key=lambda recipe: fmean(found.values(recipe, found.by)))  # fmt: skip
        best[at] = found.runs[at]
    text = "\n".join([*lines, "", f"Of each schedule at its best rate: {Comparison(best).verdict}"])
    print(text)
    write_part("seeds", text)
