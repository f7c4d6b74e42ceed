"""Write runs to Weights & Biases, offline: ``wandb sync wandb/offline-run-...`` uploads them later."""

import torch

from minifast import *
from minifast.callbacks import WandbCallback

set_seed(0)
x = torch.randn(400, 8)
data = TensorDataBunch.from_arrays(x, x[:, 0] > 0, seed=0, device="cpu")
learn = Learner(data, simple_ann(8, 2), metrics=[accuracy])
logger = WandbCallback(project="minifast-example", mode="offline", tags=["example"])
learn.fit_one_cycle(2, 1e-2, callbacks=[logger])
print(f"run {logger.run_id}")
