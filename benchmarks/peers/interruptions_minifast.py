"""minifast: the tests of ``benchmarks interruptions``."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interruptions_common import BATCH, LR, SEED, Steps, Subject, datasets, main, network
from torch.utils.data import DataLoader

from minifast import Callback, DataBunch, Learner


class StepLogger(Callback):
    """Report each step."""

    def __init__(self, steps: Steps) -> None:
        self._steps = lambda epoch, batch: steps(epoch, batch)  # the finder copies attributes, but not functions

    def on_step_end(self, epoch, num_batch):  # noqa: D102
        self._steps(epoch, num_batch)


class Minifast(Subject):
    """A Learner on a pair of DataLoaders."""

    def __init__(self, folder: Path, steps: Steps) -> None:
        random.seed(SEED)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        train, valid = datasets()
        data = DataBunch(DataLoader(train, BATCH, shuffle=True), DataLoader(valid, BATCH), device="cpu", path=folder)
        loss = torch.nn.CrossEntropyLoss()
        self.learn = Learner(data, network(), loss_func=loss, callbacks=[StepLogger(steps)], silent=True)
        self.learn.create_opt(LR)
        self.model = self.learn.model

    def find(self) -> None:
        """Run the learning rate finder."""
        self.learn.lr_find()

    def train(self, epochs: int) -> None:
        """Train with the 1cycle policy."""
        self.learn.fit_one_cycle(epochs, LR)

    def train_checkpointed(self, epochs: int) -> None:
        """Train with the 1cycle policy; the same call resumes."""
        self.learn.fit_one_cycle(epochs, LR, checkpoint="run", every=1)

    def optimizer(self) -> dict[str, Any]:
        """Return the torch optimizer's state and groups."""
        state = self.learn.opt.opt.state_dict()
        return {"state": state["state"], "groups": state["param_groups"]}


if __name__ == "__main__":
    main(Minifast)
