"""Fail in one process only: ``python failing.py FILE RANK WHERE``, which touches FILE when it fails.

WHERE is an event of callbacks, or one of ``loader``, ``worker``, ``loss``, ``metric``, ``step`` of the optimizer,
``scheduler``, ``validation``, ``preds``, ``before`` and ``after`` the fit. ``kill`` kills the process at some moment,
``unused`` leaves a parameter out from the third batch on, and ``changed`` changes a weight.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from pathlib import Path

import torch
from cases import network, samples
from torch import nn
from torch.utils.data import DataLoader, Dataset

from minifast import Callback, DataBunch, Learner, accuracy, set_seed

FILE, RANK, WHERE = Path(sys.argv[1]), sys.argv[2], sys.argv[3]


def is_chosen():
    return os.environ.get("RANK") == RANK


def fail(*args, **fields):
    if is_chosen():
        FILE.touch()
        raise ValueError(f"broken in {WHERE}")


def kill():
    FILE.touch()
    os.kill(os.getpid(), signal.SIGKILL)


class Samples(Dataset):
    def __init__(self):
        self.x, self.y = samples(64)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        if WHERE in ("loader", "worker") and i >= 40:
            fail()
        return self.x[i], self.y[i]


class Loss(nn.CrossEntropyLoss):
    def forward(self, output, target):
        if WHERE == "loss":
            fail()
        return super().forward(output, target)


class FailingSGD(torch.optim.SGD):
    def step(self, closure=None):
        fail()


def broken(output, target):
    fail()
    return accuracy(output, target)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.more, self.passes = network(3, nn.BatchNorm1d(8).double()), nn.Parameter(torch.ones(3)), 0

    def forward(self, x):
        self.passes += self.training
        if WHERE == "unused" and is_chosen() and self.passes > 2:
            FILE.touch()
            return self.body(x)
        return self.body(x) * self.more


class Changing(Callback):
    def on_step_end(self, iteration):
        if is_chosen() and iteration == 2:
            FILE.touch()
            model.more.data += 0.01


def schedule(progress):
    if progress > 0.5:
        fail()
    return 0.01


if __name__ == "__main__":
    torch.set_num_threads(1)
    set_seed(0)
    if WHERE == "before":
        fail()
    if WHERE == "kill" and is_chosen():
        threading.Timer(random.uniform(0, 3), kill).start()
    train = DataLoader(Samples(), 16, num_workers=int(WHERE == "worker"))
    data = DataBunch(train, DataLoader(Samples(), 16), device="cpu", loss_func=Loss())
    callbacks = [type("Failing", (Callback,), {WHERE: fail})()] if WHERE.startswith("on_") else []
    callbacks += [Changing()] if WHERE == "changed" else []
    model = Model()
    metrics = [broken if WHERE == "metric" else accuracy]
    opt_func = FailingSGD if WHERE == "step" else torch.optim.SGD
    learn = Learner(data, model, opt_func, metrics=metrics, callbacks=callbacks, silent=True, path=FILE.parent)
    try:
        learn.fit_schedule(10**9 if WHERE == "kill" else 2, schedule if WHERE == "scheduler" else 0.01)
    except ValueError:
        if is_chosen():
            FILE.touch()  # later than a worker, which reads ahead
        raise
    if WHERE == "after":
        fail()
    learn.save("trained")
    if WHERE == "validation":
        data.valid_dl.add_tfm(lambda batch: fail() or batch)
    learn.validate()
    if WHERE == "preds":
        data.valid_dl.add_tfm(lambda batch: fail() or batch)
    learn.get_preds()
