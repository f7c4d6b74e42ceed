"""fastai v2: the tests of ``benchmarks lost``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fastai.callback.schedule  # noqa: F401  it gives a Learner fit_one_cycle and lr_find
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, Learner, set_seed
from fastai.callback.progress import ProgressCallback  # noqa: F401  it gives a Learner no_bar
from fastai.callback.tracker import SaveModelCallback
from lost_common import BATCH, RATE, SEED, Steps, Subject, items, main, network


class Tell(Callback):
    """Tells of each step."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def after_step(self):  # noqa: D102
        self._steps(self.epoch, self.iter)


class Fastai(Subject):
    """A Learner on a pair of fastai's DataLoaders."""

    def __init__(self, folder: Path, steps: Steps) -> None:
        set_seed(SEED, reproducible=True)
        train, valid = items()
        data = DataLoaders(DataLoader(train, bs=BATCH, shuffle=True), DataLoader(valid, bs=BATCH), device="cpu")
        self.learn = Learner(data, network(), loss_func=CrossEntropyLossFlat(), path=folder, cbs=Tell(steps))
        self.learn.create_opt()
        self.model = self.learn.model

    def find(self) -> None:
        """Run the learning-rate finder."""
        with self.learn.no_bar():
            self.learn.lr_find(suggest_funcs=None, show_plot=False)

    def train(self, epochs: int) -> None:
        """Train by one cycle."""
        with self.learn.no_bar(), self.learn.no_logging():
            self.learn.fit_one_cycle(epochs, RATE)

    def train_kept(self, epochs: int) -> None:
        """Train by one cycle and save each epoch; go on after the last epoch that was saved."""
        done = len(list((self.learn.path / self.learn.model_dir).glob("model_*.pth")))
        if done:
            self.learn.load(f"model_{done - 1}")
        keep = SaveModelCallback(every_epoch=True, with_opt=True)
        with self.learn.no_bar(), self.learn.no_logging():
            self.learn.fit_one_cycle(epochs, RATE, start_epoch=done, cbs=keep)

    def optimizer(self) -> dict[str, Any]:
        """Return the optimizer's state and hyper-parameters."""
        found = self.learn.opt.state_dict()
        return {"state": found["state"], "groups": found["hypers"]}

    def order(self) -> Any:
        """Return the state of the loader's own generator."""
        return self.learn.dls.train.rng.getstate()


if __name__ == "__main__":
    main(Fastai)
