"""Learn an embedding from pairs: samples of the same kind come near to each other, others do not."""

import torch
from torch import nn
from torch.nn import functional

from minifast import *


class Pairs(torch.utils.data.Dataset):
    """Pairs (left, right, same): three values, so the model gets the first two and the loss the last."""

    def __init__(self, n: int) -> None:
        self.kinds = torch.arange(n) % 5
        self.x = functional.one_hot(self.kinds, 5).float() @ torch.randn(5, 20) + 0.3 * torch.randn(n, 20)
        self.others = torch.where(torch.rand(n) < 0.5, (torch.arange(n) + 5) % n, torch.randint(n, (n,)))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple:
        j = int(self.others[i])
        return self.x[i], self.x[j], (self.kinds[i] == self.kinds[j]).float()


class Twins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return (self.embed(left) - self.embed(right)).norm(dim=1)  # the distance


def contrastive(distance: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    return (same * distance**2 + (1 - same) * functional.relu(1 - distance) ** 2).mean()


def agreement(distance: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    return ((distance < 0.5) == (same > 0.5)).float().mean()


set_seed(0)
pairs = Pairs(1000)
train, valid = torch.utils.data.random_split(pairs, [800, 200])
data = DataBunch.create(train, valid, bs=50, seed=0, device="cpu")
learn = Learner(data, Twins(), loss_func=contrastive, metrics=[agreement])
learn.fit_one_cycle(5, 1e-2)
assert learn.recorder.metrics[-1][0] > 0.9
