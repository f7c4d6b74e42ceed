"""Train a model that is sharded over the processes, or the same model in one process.

``python sharded.py FOLDER NAME ...`` runs the named cases and writes each outcome to ``FOLDER/NAME_SIZE_RANK.pt``.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import torch
from cases import network, tensors
from torch import nn

from minifast import (
    AccumulateScheduler,
    Callback,
    EMACallback,
    GradientClipping,
    Learner,
    MinifastError,
    accuracy,
    set_seed,
)
from minifast.distributed.sharding import is_sharded, local

SIZE, RANK = os.environ.get("WORLD_SIZE", "1"), os.environ.get("RANK", "0")
FOLDER = Path(sys.argv[1])


class StoppedError(Exception):
    pass


class Stop(Callback):
    def on_backward_end(self, iteration):
        if iteration == 7:
            raise StoppedError

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class GoOn(Stop):
    """In the place of Stop in a resumed run."""

    def on_backward_end(self):
        pass


GoOn.__name__ = "Stop"


def learner(shards: bool, **options) -> Learner:
    set_seed(3)
    learn = Learner(
        tensors(65), network(3, nn.Linear(8, 8), nn.Tanh()), metrics=[accuracy], silent=True, path=FOLDER, **options
    )
    return learn.shard() if shards else learn


def outcome(learn: Learner, **more) -> dict:
    learn.save("outcome")
    saved = torch.load(FOLDER / "models" / "outcome.pth", weights_only=False)
    return {
        "weights": saved["model"],
        "losses": list(learn.recorder.losses),
        "lrs": list(learn.recorder.lrs),
        "validated": learn.validate(),
        "predictions": learn.get_preds()[0],
        **more,
    }


def fit(name: str, shards: bool) -> dict:
    clipping = partial(GradientClipping, clip=0.05)
    if name == "accumulated":
        learn = learner(shards, callback_fns=[clipping, partial(AccumulateScheduler, n_step=2)])
    elif name == "SGD":
        learn = learner(shards, opt_func=partial(torch.optim.SGD, momentum=0.9))
    else:
        learn = learner(shards, callback_fns=[clipping, EMACallback])
    found = learn.lr_find(num_it=12).losses
    learn.fit_one_cycle(2, 0.05)
    held = sum(local(p).numel() for p in learn.model.parameters())
    held += sum(local(v).numel() for s in learn.opt.opt.state.values() for v in s.values() if v.ndim)
    done = outcome(learn, found=found, held=held, sharded=is_sharded(learn.model))
    learn.fit(1, 0.01)
    learn.load("outcome")  # into shards
    after = learn.validate()
    torch.testing.assert_close(torch.tensor(after), torch.tensor(done["validated"]))
    return done


def run(name: str, shards: bool, stops: bool) -> dict:
    learn = learner(
        shards,
        callbacks=[Stop() if stops else GoOn()],
        callback_fns=[partial(AccumulateScheduler, n_step=2), EMACallback],
    )
    try:
        learn.fit_one_cycle(3, 0.05, checkpoint=name, every=3)
    except StoppedError:
        return {}
    return outcome(learn)


def refusals() -> dict:
    learn = learner(True)
    told = {}
    for name, call in {"again": learn.shard, "export": learn.export}.items():
        try:
            call()
        except MinifastError as error:
            told[name] = str(error)
    return told


if __name__ == "__main__":
    torch.set_num_threads(1)
    for argument in sys.argv[2:]:
        kind, _, name = argument.partition(":")
        if kind == "refusals":
            result = refusals()
        elif kind in ("fit", "shard"):
            result = fit(name, kind == "shard")
        else:  # whole:NAME, stop:NAME, resume:NAME, with shards if "sharded" is in it
            result = run(name, "sharded" in kind, kind.startswith("stop"))
        torch.save(result, FOLDER / f"{kind}-{name}_{SIZE}_{RANK}.pt")
