"""What one cycle reaches at the rate of each of the finder's rules, on three problems."""

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
    """Return a maker of learners of handwritten 3s and 7s: two epochs."""
    data = ImageDataBunch.from_folder(untar_data(URLs.MNIST_SAMPLE), seed=0, device="cpu")
    return lambda: Learner(data, simple_cnn((3, 16, 16, 2)), metrics=[accuracy])


def bunch(x: torch.Tensor, y: torch.Tensor, n_train: int, bs: int) -> DataBunch:
    """Return data in memory, the first ``n_train`` items to train on."""
    train = TensorLoader(x[:n_train], y[:n_train], bs, shuffle=True, seed=0, device="cpu")
    valid = TensorLoader(x[n_train:], y[n_train:], 200, device="cpu")
    return DataBunch(train, valid, device="cpu", loss_func=nn.CrossEntropyLoss())


def dummy() -> Callable[[], Learner]:
    """Return a maker of learners of twenty random numbers on one side of a plane, with noise, in two classes."""
    draw = torch.Generator().manual_seed(0)
    x, weights, noise = (torch.randn(*shape, generator=draw) for shape in ((1000, 20), (20,), (1000,)))
    data = bunch(x, (x @ weights + noise > 0).long(), 800, 32)
    return lambda: Learner(data, simple_ann(20, 2), metrics=[accuracy])


def ten_classes() -> Callable[[], Learner]:
    """Return a maker of learners of ten classes, each of four clouds of points in 32 dimensions."""
    draw = torch.Generator().manual_seed(0)
    centres = 0.9 * torch.randn(10, 4, 32, generator=draw)
    y, which = torch.randint(10, (6000,), generator=draw), torch.randint(4, (6000,), generator=draw)
    data = bunch(centres[y, which] + torch.randn(6000, 32, generator=draw), y, 5000, 50)
    return lambda: Learner(data, simple_ann(32, 10), metrics=[accuracy])


PROBLEMS = {
    "MNIST_SAMPLE, 2 epochs": (mnist, 2),
    "dummy data, 5 epochs": (dummy, 5),
    "ten classes, 3 epochs": (ten_classes, 3),
}


def report() -> str:
    """Return a table with a row for each problem: the rate of each rule and the accuracy that it reaches."""
    torch.set_num_threads(1)
    names = [*LABELS.values(), "suggestion", "half of it", "twice it"]
    lines = [f"| problem | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for problem, (make, epochs) in PROBLEMS.items():
        make_learner = make()
        torch.manual_seed(0)
        learn = make_learner()
        learn.silent = True
        found = learn.lr_find()
        if found.suggestion is None or found.band is None:
            raise SystemExit(f"{problem}: {found.refusal}")
        rates = dict(zip(names, [*found.rules.values(), found.suggestion, *found.band], strict=True))
        recipes = {
            name: lambda learn, epochs, rate=rate: learn.fit_one_cycle(epochs, rate) for name, rate in rates.items()
        }
        reached = compare(make_learner, recipes, epochs, SEEDS, silent=True)
        cells = [f"{rate:.1e}: {fmean(reached.values(name, 'accuracy')):.4f}" for name, rate in rates.items()]
        lines.append(f"| {problem} | {' | '.join(cells)} |")
    said = f"The rate, and the mean accuracy of `fit_one_cycle` at it over {SEEDS} seeds; one finder run a problem."
    return "\n".join([*lines, "", said])
