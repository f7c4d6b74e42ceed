"""Train a generator against a critic: two networks and two optimizers, by a callback.

The learner's model is the generator; the callback trains the critic before each of its steps.
"""

import torch
from torch import nn
from torch.nn import functional

from minifast import *

NOISE = 4
generator = nn.Sequential(nn.Linear(NOISE, 32), nn.ReLU(), nn.Linear(32, 2))
critic = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))


def fool(made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """The generator's loss: the critic should take what it made for real."""
    return functional.softplus(-critic(made)).mean()


class CriticStep(Callback):
    """One step of the critic for each step of the generator."""

    def __init__(self) -> None:
        self.opt = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.5, 0.99))

    def on_loss_begin(self, last_output, last_target, train):
        if train:
            self.opt.zero_grad()  # the generator's step left gradients in the critic
            made, real = critic(last_output.detach()), critic(last_target)
            (functional.softplus(made) + functional.softplus(-real)).mean().backward()
            self.opt.step()


def noise_to_real(batch):
    real, _ = batch
    return torch.randn(len(real), NOISE, device=real.device), real


set_seed(0)
real = torch.randn(1000, 2) * 0.3 + torch.tensor([2.0, -1.0])
data = TensorDataBunch.from_arrays(real, torch.zeros(1000), bs=50, seed=0, device="cpu")
learn = Learner(
    data, generator, opt_func=torch.optim.Adam, loss_func=fool, batch_fn=noise_to_real, callbacks=[CriticStep()]
)
learn.fit(30, 2e-3)
with torch.no_grad():
    made = generator(torch.randn(1000, NOISE))
print(f"mean {made.mean(0).tolist()}, of the real ones {real.mean(0).tolist()}")
assert (made.mean(0) - real.mean(0)).norm() < 1
