"""One cycle against constant learning rates on MNIST_SAMPLE, over ten seeds each."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from benchmarks.documents import write_part
from minifast import ImageDataBunch, Learner, URLs, accuracy, simple_cnn, untar_data

RECIPES: dict[str, Callable[[Learner], None]] = {
    "`fit_one_cycle(2, 5e-2)`": lambda learn: learn.fit_one_cycle(2, 5e-2),
    "`fit(2, 5e-2)`": lambda learn: learn.fit(2, 5e-2),
    "`fit(2, 5e-3)`": lambda learn: learn.fit(2, 5e-3),
}
SEEDS = range(10)


def run(seed: int, recipe: Callable[[Learner], None], data: ImageDataBunch) -> tuple[float, float]:
    """Train from ``seed`` and return the last epoch's accuracy and validation loss."""
    torch.manual_seed(seed)
    data.train_dl.seed, data.train_dl.epoch = seed, 0
    learn = Learner(data, simple_cnn((3, 16, 16, 2)), metrics=[accuracy], silent=True)
    recipe(learn)
    return learn.recorder.metrics[-1][0], learn.recorder.val_losses[-1]


def main() -> None:
    """Print the table and write it into the README."""
    torch.set_num_threads(1)
    data = ImageDataBunch.from_folder(untar_data(URLs.MNIST_SAMPLE), seed=0)
    rows = [
        "| recipe, ten seeds | accuracy: median | lowest | highest | validation loss: median |",
        "|---|---|---|---|---|",
    ]
    for name, recipe in RECIPES.items():
        accuracies, losses = zip(*(run(seed, recipe, data) for seed in SEEDS), strict=True)
        numbers = [statistics.median(accuracies), min(accuracies), max(accuracies), statistics.median(losses)]
        rows.append(f"| {name} | {' | '.join(f'{number:.4f}' for number in numbers)} |")
        print(rows[-1], flush=True)
    write_part("seeds", "\n".join(rows))
