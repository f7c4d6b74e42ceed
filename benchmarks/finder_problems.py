"""Small generated problems for ``benchmarks.finder``: some can be learned, the others have random labels."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from minifast import DataBunch, Learner, TensorLoader, accuracy, r2_score

N_VALID = 2000


@dataclass(frozen=True)
class Problem:
    """One problem; all its random numbers come from ``seed``."""

    seed: int
    noise: bool  # the labels do not depend on the inputs
    n: int  # training samples
    bs: int
    n_classes: int  # 1 stands for regression
    images: bool  # 8 x 8 images and a CNN, or vectors and an MLP
    opt: str
    frozen: bool  # only the last layer is trained
    width: int
    batchnorm: bool
    signal: float  # distance of the classes, in standard deviations of the noise
    wrong: float  # share of wrong labels, or of noise in a regression target
    balanced: bool  # classes of equal size; regression targets of mean 0

    @property
    def chance(self) -> float:
        """The accuracy of the most frequent class on the validation set, or the R² of the mean."""
        return 0.0 if self.n_classes == 1 else float(self.labels()[-N_VALID:].bincount().max()) / N_VALID

    def generator(self, stream: int) -> torch.Generator:
        """Return a generator of one of the problem's streams of random numbers."""
        return torch.Generator().manual_seed(10 * self.seed + stream)

    def labels(self) -> Tensor:
        """Return the classes of all samples before some are made wrong."""
        share = torch.ones(self.n_classes) if self.balanced else torch.arange(1.0, self.n_classes + 1)
        return torch.multinomial(share, self.n + N_VALID, replacement=True, generator=self.generator(0))

    def data(self) -> DataBunch:
        """Return the data; the last samples are for validation."""
        generator, total = self.generator(1), self.n + N_VALID
        shape = (1, 8, 8) if self.images else (20,)
        x = torch.randn(total, *shape, generator=generator)
        if self.n_classes == 1:
            direction = torch.randn(x[0].numel(), generator=generator)
            y = functional.normalize(x.flatten(1), dim=1) @ direction
            y = torch.tanh(2 * y) if self.width > 32 else y
            y = (1 - self.wrong) * y + self.wrong * torch.randn(total, generator=generator)
            y = (y / y.std() + (0.0 if self.balanced else 2.0))[:, None]
        else:
            y = self.labels()
            centres = torch.randn(self.n_classes, 2, *shape, generator=generator)  # two clusters for each class
            if self.images:
                centres = functional.avg_pool2d(centres.flatten(0, 1), 3, 1, 1).mul(3).view_as(centres)
            cluster = torch.randint(2, (total,), generator=generator)
            x += self.signal * centres[y, cluster]
            other = torch.randint(self.n_classes, (total,), generator=generator)
            y = torch.where(torch.rand(total, generator=generator) < self.wrong, other, y)
        if self.noise:
            y = y[torch.randperm(total, generator=generator)]
        n = self.n
        train = TensorLoader(x[:n], y[:n], self.bs, shuffle=True, seed=self.seed, device="cpu")
        valid = TensorLoader(x[n:], y[n:], N_VALID, device="cpu")
        loss = nn.MSELoss() if self.n_classes == 1 else nn.CrossEntropyLoss()
        return DataBunch(train, valid, device="cpu", loss_func=loss)

    def model(self) -> nn.Sequential:
        """Return a new network of two parts, the second of which is the last layer."""
        width, norm = self.width, self.batchnorm
        if self.images:
            norms = [nn.BatchNorm2d(8), nn.BatchNorm2d(width)] if norm else [nn.Identity(), nn.Identity()]
            body = [nn.Conv2d(1, 8, 3, 2, 1), norms[0], nn.ReLU(), nn.Conv2d(8, width, 3, 2, 1), norms[1], nn.ReLU()]
            return nn.Sequential(nn.Sequential(*body, nn.Flatten()), nn.Linear(4 * width, self.n_classes))
        norms = [nn.BatchNorm1d(width), nn.BatchNorm1d(width)] if norm else [nn.Identity(), nn.Identity()]
        body = [nn.Linear(20, width), norms[0], nn.ReLU(), nn.Linear(width, width), norms[1], nn.ReLU()]
        return nn.Sequential(nn.Sequential(*body), nn.Linear(width, self.n_classes))

    def learner(self, data: DataBunch, run: int = 0) -> Learner:
        """Return a silent learner; its initial weights and the order of the samples depend on ``run`` alone."""
        torch.manual_seed(self.seed + 100_000 * run)
        data.train_dl.seed = self.seed + 100_000 * run
        opt = {"SGD": partial(torch.optim.SGD, momentum=0.9), "Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
        metric = r2_score if self.n_classes == 1 else accuracy
        learn = Learner(data, self.model(), opt_func=opt[self.opt], metrics=[metric], silent=True)
        return learn.split(lambda model: [model[1]]).freeze() if self.frozen else learn

    @property
    def epochs(self) -> int:
        """The number of epochs of a training with about 150 steps."""
        return max(1, round(150 / (self.n // self.bs)))

    def score(self, data: DataBunch, lr: float, run: int = 0) -> float:
        """Return the accuracy, or R², after a training with the 1cycle policy; 0 if the loss is not finite."""
        learn = self.learner(data, run)
        try:
            learn.fit_one_cycle(self.epochs, lr)
        except ArithmeticError:
            return 0.0
        return float(learn.recorder.metrics[-1][0])


def problems(n: int, first_seed: int = 0) -> list[Problem]:
    """Return ``n`` problems, every second one with random labels."""
    return [make_problem(seed, noise=seed % 2 == 1) for seed in range(first_seed, first_seed + n)]


def make_problem(seed: int, noise: bool) -> Problem:
    """Return the problem with all properties sampled from ``seed``."""
    rng = random.Random(seed)
    n = round(128 * 2 ** rng.uniform(0, 5))
    return Problem(
        seed,
        noise,
        n,
        rng.choice([bs for bs in (16, 32, 64) if bs <= n // 4]),
        rng.choice([1, 2, 2, 3, 5, 10, 20]),
        rng.random() < 0.35,
        rng.choice(["SGD", "Adam", "AdamW"]),
        rng.random() < 0.25,
        rng.choice([16, 32, 64, 128]),
        rng.random() < 0.5,
        rng.uniform(0.5, 1.5),
        rng.uniform(0, 0.4),
        rng.random() < 0.7,
    )
