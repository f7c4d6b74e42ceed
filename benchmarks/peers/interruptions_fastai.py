"""fastai v2: the tests of ``benchmarks interruptions``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fastai.callback.schedule  # noqa: F401  adds fit_one_cycle and lr_find to Learner
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, Learner, set_seed
from fastai.callback.progress import ProgressCallback  # noqa: F401  adds no_bar to Learner
from fastai.callback.tracker import SaveModelCallback
from interruptions_common import BATCH, LR, SEED, Steps, Subject, datasets, main, network


class StepLogger(Callback):
    """Report each step."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def after_step(self):  # noqa: D102
        self._steps(self.epoch, self.iter)


class Fastai(Subject):
    """A Learner on a pair of fastai's DataLoaders."""

    def __init__(self, folder: Path, steps: Steps) -> None:
        set_seed(SEED, reproducible=True)
        train, valid = datasets()
        data = DataLoaders(DataLoader(train, bs=BATCH, shuffle=True), DataLoader(valid, bs=BATCH), device="cpu")
        self.learn = Learner(data, network(), loss_func=CrossEntropyLossFlat(), path=folder, cbs=StepLogger(steps))
        self.learn.create_opt()
        self.model = self.learn.model

    def find(self) -> None:
        """Run the learning rate finder."""
        with self.learn.no_bar():
            self.learn.lr_find(suggest_funcs=None, show_plot=False)

    def train(self, epochs: int) -> None:
        """Train with the 1cycle policy."""
        with self.learn.no_bar(), self.learn.no_logging():
            self.learn.fit_one_cycle(epochs, LR)

    def train_checkpointed(self, epochs: int) -> None:
        """Train with the 1cycle policy and save each epoch; resume after the last saved epoch."""
        done = len(list((self.learn.path / self.learn.model_dir).glob("model_*.pth")))
        if done:
            self.learn.load(f"model_{done - 1}")
        keep = SaveModelCallback(every_epoch=True, with_opt=True)
        with self.learn.no_bar(), self.learn.no_logging():
            self.learn.fit_one_cycle(epochs, LR, start_epoch=done, cbs=keep)

    def optimizer(self) -> dict[str, Any]:
        """Return the optimizer's state and hyper-parameters."""
        state = self.learn.opt.state_dict()
        return {"state": state["state"], "groups": state["hypers"]}

    def order(self) -> Any:
        """Return the state of the loader's generator."""
        return self.learn.dls.train.rng.getstate()


if __name__ == "__main__":
    main(Fastai)
