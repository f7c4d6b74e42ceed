"""Fail in one process only: ``python failing.py WHERE``, an event, ``loader``, ``worker``, ``before`` or ``after``."""

from __future__ import annotations

import os
import sys

import torch
from cases import network, samples
from torch import nn
from torch.utils.data import DataLoader, Dataset

from minifast import Callback, DataBunch, Learner, accuracy, set_seed

RANK, WHERE = os.environ.get("RANK"), sys.argv[1]


def fail(*args, **fields):
    if RANK == "1":
        raise ValueError(f"broken in {WHERE}")


class Samples(Dataset):
    def __init__(self):
        self.x, self.y = samples(64)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        if WHERE in ("loader", "worker") and i >= 40:
            fail()
        return self.x[i], self.y[i]


if __name__ == "__main__":
    torch.set_num_threads(1)
    set_seed(0)
    if WHERE == "before":
        fail()
    train = DataLoader(Samples(), 16, num_workers=int(WHERE == "worker"))
    data = DataBunch(train, DataLoader(Samples(), 16), device="cpu", loss_func=nn.CrossEntropyLoss())
    callbacks = [type("Failing", (Callback,), {WHERE: fail})()] if WHERE.startswith("on_") else []
    learn = Learner(data, network(), metrics=[accuracy], callbacks=callbacks, silent=True)
    learn.fit(2, 0.01)
    if WHERE == "after":
        fail()
    learn.validate()
