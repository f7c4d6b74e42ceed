"""Search a learning rate and a width with Optuna, which ends trials that do badly."""

import optuna
import torch

from minifast import *
from minifast.callbacks import OptunaPruningCallback

set_seed(0)
x = torch.randn(600, 8)
data = TensorDataBunch.from_arrays(x, x[:, :3].prod(1) > 0, bs=50, seed=0, device="cpu")


def objective(trial: optuna.Trial) -> float:
    set_seed(0)
    model = simple_ann(8, 2, trial.suggest_int("width", 8, 64))
    learn = Learner(data, model, metrics=[accuracy], silent=True)
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    learn.fit_one_cycle(4, lr, callbacks=[OptunaPruningCallback(trial, monitor="accuracy")])
    return learn.recorder.metrics[-1][0]


pruner = optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=1)
study = optuna.create_study(direction="maximize", pruner=pruner, sampler=optuna.samplers.TPESampler(seed=0))
study.optimize(objective, n_trials=10)
print(study.best_params, f"{study.best_value:.3f}")
