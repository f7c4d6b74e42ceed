"""Functions that ``launch`` calls in other processes, and a script that calls it as a notebook does."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from cases import SGD, network, tensors

from minifast import DataBunch, Learner, MinifastError, set_seed
from minifast.distributed import launch


def train(fails: bool = False) -> dict:
    torch.set_num_threads(1)
    set_seed(3)
    learn = Learner(tensors(65), network(), opt_func=SGD, silent=True)
    if fails and os.environ["RANK"] == "1":
        raise ValueError("no samples left")
    learn.fit(1, 0.02)
    return {"size": os.environ.get("WORLD_SIZE", "1"), "validated": learn.validate()}


def sample() -> list:
    """Train on other data in each process, as a script does that makes them without a seed at its top."""
    torch.manual_seed(int(os.environ["RANK"]))
    learn = Learner(DataBunch([(torch.rand(8, 6).double(), torch.zeros(8).long())], device="cpu"), network(),
                    loss_func=torch.nn.CrossEntropyLoss(), silent=True)  # fmt: skip
    learn.fit(1, 0.02)
    return learn.recorder.raw_losses


if __name__ == "__main__":
    module = sys.modules["__main__"]
    if sys.argv[1] == "notebook":  # its functions are in no file that another process could import
        del module.__file__
    before = train()  # a notebook may have trained in its own process
    after = launch(train, nproc=2)
    assert after["size"] == "2"
    torch.testing.assert_close(torch.tensor(after["validated"]), torch.tensor(before["validated"]))
    with pytest.raises(MinifastError, match="The processes differ in checksum of training samples"):
        launch(sample)
    with pytest.raises(MinifastError, match=r"Process 1 of 2 failed: ValueError: no samples left \(line 21 of "):
        launch(train, fails=True)
