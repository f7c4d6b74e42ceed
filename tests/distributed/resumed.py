"""Stop checkpointed runs, and resume them in as many processes or in another number.

``python resumed.py FOLDER KIND:NAME:STOP ...`` trains a run of a kind under a name until the batch STOP, or to the end
without one, and writes the outcome of finished runs to ``FOLDER/NAME_SIZE_RANK.pt``. With ``kill`` as STOP, a random
process kills itself at a random moment, until as many kills as the environment variable KILLS have happened. In place
of a run, ``cases`` trains the default cases of that module, and ``features`` every feature.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import threading
from functools import partial
from pathlib import Path

import cases
import features
import torch
from cases import network, samples
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minifast import AccumulateScheduler, Callback, DataBunch, Learner, TensorLoader, accuracy, set_seed

SIZE, RANK = os.environ.get("WORLD_SIZE", "1"), os.environ.get("RANK", "0")
KINDS = ("plain", "accumulated")


def each_kind(*runs: str) -> list[str]:
    return [f"{kind}:{kind} {run}" for kind in KINDS for run in runs]


IN_ONE = each_kind("whole by one:", "of one, then two:19")
IN_TWO = [
    *each_kind("whole by two:", "of two:19", "of two:", "of two, then one:19", "of one, then two:"),
    *("random:random whole by two:", "random:random of two:19", "random:random of two:"),
]
THEN_IN_ONE = each_kind("of two, then one:")


class StoppedError(Exception):
    pass


class Stop(Callback):
    """Ends the run at a batch, or kills a process."""

    def __init__(self, folder: Path, when: str):
        self.folder, self.when = folder, when
        if when == "kill":
            self.kills = len(list(folder.glob("killed*")))
            chosen = random.Random(self.kills)
            self.kill_at, self.seconds = chosen.randrange(1, 6), chosen.uniform(0, 0.3)
            self.is_chosen = chosen.randrange(int(SIZE)) == int(RANK) and self.kills < int(os.environ["KILLS"])
            self.batches = 0

    def kill(self):
        (self.folder / f"killed{self.kills}").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    def on_train_begin(self):
        if self.when == "kill" and self.is_chosen and self.kills % 2:  # at any moment, also while a file is written
            threading.Timer(self.seconds, self.kill).start()

    def on_backward_end(self, iteration):
        if self.when == "kill" and self.is_chosen and not self.kills % 2:
            self.batches += 1
            if self.batches >= self.kill_at:
                self.kill()
        elif self.when.isdigit() and iteration == int(self.when):
            raise StoppedError

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def noisy(batch):
    return batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]


def learner(kind: str, folder: Path) -> Learner:
    set_seed(1)
    x, y = samples(120)
    if kind == "random":  # every source of random numbers
        train = DataLoader(TensorDataset(x, y), 10, shuffle=True)
        model = network(3, nn.BatchNorm1d(8), nn.Dropout(0.3))
    else:
        train, model = TensorLoader(x, y, 10, shuffle=True, seed=2, device="cpu"), network()
    data = DataBunch(train, TensorLoader(*samples(31), 10, device="cpu"), device="cpu", path=folder)
    if kind == "random":
        data.train_dl.add_tfm(noisy)
    callbacks = [AccumulateScheduler(n_step=3)] if kind == "accumulated" else []
    opt = partial(torch.optim.SGD, momentum=0.9)
    return Learner(data, model, opt, metrics=[accuracy], callbacks=callbacks, silent=True)


def main(folder: Path, *runs: str) -> None:
    for run in runs:
        if run == "cases":
            cases.main(str(folder))
            continue
        if run == "features":
            features.main(folder)
            continue
        kind, name, stop = run.split(":")
        learn = learner(kind, folder)
        try:
            epochs = 5 if "kill" in name else 2
            learn.fit_one_cycle(epochs, 0.05, callbacks=Stop(folder, stop), checkpoint=name, every=2)
        except StoppedError:
            continue
        recorder = learn.recorder
        rows = [row[:-1] for row in recorder.rows]
        outcome = {
            "weights": learn.model.state_dict(),
            "rows": rows,
            "lrs": recorder.lrs,
            "losses": recorder.raw_losses,
        }
        torch.save({**outcome, "random": torch.rand(1)}, folder / f"{name}_{SIZE}_{RANK}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()  # each fit collects garbage, which takes long where many modules are imported
    main(Path(sys.argv[1]), *sys.argv[2:])
