"""The learning rate finder: its error rates, and the accuracy of the 1cycle policy at the suggestion."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, median

import torch
from torch import nn

from benchmarks.finder_problems import N_VALID, Problem, problems
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
N_PROBLEMS = 200  # half of them with random labels
FIRST_SEED = 3000  # the rules were chosen on the problems of other seeds
N_GRID = 30  # problems that are trained with all learning rates of the grid
GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
TRIED = (1e-3, 1e-2, 1e-1)  # learning rates that decide whether a problem can be learned


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


def is_learned(problem: Problem, scores: Sequence[float]) -> bool:
    """Return whether the best score is clearly above chance."""
    chance = problem.chance
    error = math.sqrt(chance * (1 - chance) / N_VALID)
    return max(scores) > chance + max(4 * error, 0.1 * (1 - chance))


def passes(problem: Problem) -> str:
    """Return how often 100 steps see each sample, as the row of the table."""
    n = 100 * problem.bs / problem.n
    return "at most 1" if n <= 1 else "1 to 5" if n <= 5 else "more than 5"


def mean_score(problem: Problem, data: DataBunch, lr: float) -> float:
    """Return the mean score of trainings from other initial weights, each with another order of the samples."""
    return fmean(problem.score(data, lr, run) for run in range(SEEDS))


def error_rates() -> str:
    """Return a table of how often the finder suggests a learning rate on noise and on problems that can be learned."""
    given: dict[tuple[str, str], list[bool]] = {}
    gaps: list[float] = []
    too_hard = 0
    for problem in problems(N_PROBLEMS, FIRST_SEED):
        data = problem.data()
        suggestion = problem.learner(data).lr_find().suggestion
        if not problem.noise:
            scores = {lr: problem.score(data, lr) for lr in TRIED}
            if not is_learned(problem, list(scores.values())):
                too_hard += 1
                continue
            if suggestion is not None and len(gaps) < N_GRID:
                best = max(mean_score(problem, data, lr) for lr in GRID)
                gaps.append(best - mean_score(problem, data, suggestion))
        traits = [passes(problem), problem.opt, "regression" if problem.n_classes == 1 else "classes"]
        traits += ["CNN" if problem.images else "MLP", "frozen body" if problem.frozen else "all layers"]
        for trait in ["all", *traits]:
            given.setdefault((trait, "noise" if problem.noise else "learned"), []).append(suggestion is not None)
    lines = ["| problems | suggestions on random labels | suggestions on what can be learned |", "|---|---|---|"]
    order = ("all", "at most 1", "1 to 5", "more than 5", "SGD", "Adam", "AdamW", "classes", "regression", "MLP", "CNN")
    for trait in (*order, "all layers", "frozen body"):
        cells = [given.get((trait, kind), []) for kind in ("noise", "learned")]
        name = f"{trait} passes over the samples" if "1" in trait or "5" in trait else trait
        rates = [f"{sum(cell)} of {len(cell)} ({100 * sum(cell) / max(1, len(cell)):.1f} %)" for cell in cells]
        lines.append(f"| {name} | {' | '.join(rates)} |")
    return "\n".join(
        [
            *lines,
            "",
            f"One `lr_find()` per problem; {too_hard} problems on which no learning rate of {TRIED} was clearly better "
            f"than chance are left out.",
            f"On {len(gaps)} problems the suggestion was compared with a grid of {len(GRID)} learning rates from "
            f"{GRID[0]:g} to {GRID[-1]:g}, by the mean accuracy (or R²) of {SEEDS} trainings each. It is below the "
            f"best of the grid by {median(gaps):.4f} in the median and {fmean(gaps):.4f} in the mean; by at most 0.01 "
            f"on {sum(gap <= 0.01 for gap in gaps)} problems, by at most 0.02 on {sum(gap <= 0.02 for gap in gaps)}.",
        ]
    )


def report() -> str:
    """Return the table of error rates and the accuracy at the learning rate of each rule."""
    torch.set_num_threads(1)
    return f"{error_rates()}\n\n{accuracies()}"


def accuracies() -> str:
    """Return a table with one row per problem: the learning rate of each rule and the accuracy at it."""
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
