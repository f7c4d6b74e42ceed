"""Accuracy of the 1cycle policy at the learning rate of each rule of the finder, on three problems."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import torch
from torch import nn

from minifast import (
    DataBunch,
    ImageDataBunch,
    Learner,
    TensorLoader,
    URLs,
    accuracy,
    compare,
    simple_ann,
    simple_cnn,
    untar_data,
)
from minifast.finder.result import LABELS

SEEDS = 5


def mnist() -> Callable[[], Learner]:
    """Return a function that creates learners of handwritten 3s and 7s."""
    data = ImageDataBunch.from_folder(untar_data(URLs.MNIST_SAMPLE), seed=0, device="cpu")
    return lambda: Learner(data, simple_cnn((3, 16, 16, 2)), metrics=[accuracy])


def bunch(x: torch.Tensor, y: torch.Tensor, n_train: int, bs: int) -> DataBunch:
    """Return data in memory; the first ``n_train`` samples are for training."""
    train = TensorLoader(x[:n_train], y[:n_train], bs, shuffle=True, seed=0, device="cpu")
    valid = TensorLoader(x[n_train:], y[n_train:], 200, device="cpu")
    return DataBunch(train, valid, device="cpu", loss_func=nn.CrossEntropyLoss())


def dummy() -> Callable[[], Learner]:
    """Return a function that creates learners of two classes of random points, divided by a plane with noise."""
    generator = torch.Generator().manual_seed(0)
    x, weights, noise = (torch.randn(*shape, generator=generator) for shape in ((1000, 20), (20,), (1000,)))
    data = bunch(x, (x @ weights + noise > 0).long(), 800, 32)
    return lambda: Learner(data, simple_ann(20, 2), metrics=[accuracy])


def ten_classes() -> Callable[[], Learner]:
    """Return a function that creates learners of ten classes, each of four clusters in 32 dimensions."""
    generator = torch.Generator().manual_seed(0)
    centres = 0.9 * torch.randn(10, 4, 32, generator=generator)
    y, cluster = torch.randint(10, (6000,), generator=generator), torch.randint(4, (6000,), generator=generator)
    data = bunch(centres[y, cluster] + torch.randn(6000, 32, generator=generator), y, 5000, 50)
    return lambda: Learner(data, simple_ann(32, 10), metrics=[accuracy])


PROBLEMS = {
    "MNIST_SAMPLE, 2 epochs": (mnist, 2),
    "dummy data, 5 epochs": (dummy, 5),
    "ten classes, 3 epochs": (ten_classes, 3),
}


def report() -> str:
    """Return a table with one row per problem: the learning rate of each rule and the accuracy at it."""
    torch.set_num_threads(1)
    names = [*LABELS.values(), "suggestion", "half of it", "twice it"]
    lines = [f"| problem | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for problem, (make, epochs) in PROBLEMS.items():
        make_learner = make()
        torch.manual_seed(0)
        learn = make_learner()
        learn.silent = True
        result = learn.lr_find()
        if result.suggestion is None or result.suggested_range is None:
            raise SystemExit(f"{problem}: {result.reason}")
        learning_rates = dict(
            zip(names, [*result.rules.values(), result.suggestion, *result.suggested_range], strict=True)
        )
        configurations = {
            name: lambda learn, epochs, lr=lr: learn.fit_one_cycle(epochs, lr) for name, lr in learning_rates.items()
        }
        runs = compare(make_learner, configurations, epochs, SEEDS, silent=True)
        cells = [f"{lr:.1e}: {fmean(runs.values(name, 'accuracy')):.4f}" for name, lr in learning_rates.items()]
        lines.append(f"| {problem} | {' | '.join(cells)} |")
    caption = f"Learning rate: mean accuracy of `fit_one_cycle` over {SEEDS} seeds. One finder run per problem."
    return "\n".join([*lines, "", caption])
