"""Compress samples to two numbers and restore them: the targets are the inputs."""

import torch
from torch import nn

from minifast import *

set_seed(0)
angles = torch.rand(600, 1) * 6.28
x = torch.cat([angles.sin(), angles.cos(), angles.sin() * angles.cos()], 1) @ torch.randn(3, 12)  # 12 from one number
data = TensorDataBunch.from_arrays(x, torch.zeros(600), bs=50, seed=0, device="cpu")
model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 2), nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 12))
learn = Learner(data, model, loss_func=nn.MSELoss(), batch_fn=lambda batch: (batch[0], batch[0]))
before = learn.validate()[0]
learn.fit_one_cycle(8, 1e-2)
restored, originals = learn.get_preds()
print(f"mean squared error {((restored - originals) ** 2).mean():.4f}, {before:.4f} before")
assert learn.recorder.val_losses[-1] < 0.2 * before
