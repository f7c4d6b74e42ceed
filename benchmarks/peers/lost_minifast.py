"""minifast: the tests of ``benchmarks lost``."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lost_common import BATCH, RATE, SEED, Steps, Subject, items, main, network
from torch.utils.data import DataLoader

from minifast import Callback, DataBunch, Learner


class Tell(Callback):
    """Tells of each step."""

    def __init__(self, steps: Steps) -> None:
        self._steps = lambda epoch, batch: steps(epoch, batch)  # in a finder callbacks hold copies, but for functions

    def on_step_end(self, epoch, num_batch):  # noqa: D102
        self._steps(epoch, num_batch)


class Minifast(Subject):
    """A Learner on a pair of DataLoaders."""

    def __init__(self, folder: Path, steps: Steps) -> None:
        random.seed(SEED)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        train, valid = items()
        data = DataBunch(DataLoader(train, BATCH, shuffle=True), DataLoader(valid, BATCH), device="cpu", path=folder)
        loss = torch.nn.CrossEntropyLoss()
        self.learn = Learner(data, network(), loss_func=loss, callbacks=[Tell(steps)], silent=True)
        self.learn.create_opt(RATE)
        self.model = self.learn.model

    def find(self) -> None:
        """Run the learning-rate finder."""
        self.learn.lr_find()

    def train(self, epochs: int) -> None:
        """Train by one cycle."""
        self.learn.fit_one_cycle(epochs, RATE)

    def train_kept(self, epochs: int) -> None:
        """Train by one cycle; the same call goes on."""
        self.learn.fit_one_cycle(epochs, RATE, checkpoint="run", every=1)

    def optimizer(self) -> dict[str, Any]:
        """Return the torch optimizer's state and groups."""
        found = self.learn.opt.opt.state_dict()
        return {"state": found["state"], "groups": found["param_groups"]}


if __name__ == "__main__":
    main(Minifast)
