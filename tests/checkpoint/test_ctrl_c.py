"""Ctrl-C in a checkpointed run: it is saved at the end of the batch, and resumes bit for bit."""

from __future__ import annotations

import signal

import pytest
import torch
from conftest import toy_data
from torch.utils.data import DataLoader, TensorDataset

from minifast import Callback, DataBunch, Learner, accuracy, simple_ann
from minifast.utils.interrupts import DelayedInterrupt


class PressesCtrlC(Callback):
    """Send the signal of Ctrl-C to this process, ``times`` times, at an event of a training or validation batch."""

    fit_only = True

    def __init__(self, event: str, iteration: int, train: bool = True, times: int = 1) -> None:
        self.when = event, iteration, train
        self.times = times
        self.went_on = False

    def _press(self, event, iteration, train):
        if self.when == (event, iteration, train):
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)
            self.went_on = True

    def on_batch_begin(self, iteration, train):
        self._press("on_batch_begin", iteration, train)

    def on_backward_end(self, iteration, train):
        self._press("on_backward_end", iteration, train)

    def on_step_end(self, iteration, train):
        self._press("on_step_end", iteration, train)

    def on_batch_end(self, iteration, train):
        self._press("on_batch_end", iteration, train)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def learner(path, presses: PressesCtrlC, data=None) -> Learner:
    torch.manual_seed(0)
    data = toy_data(shuffle=True) if data is None else data  # 3 batches
    return Learner(data, simple_ann(10, 2, 8), metrics=[accuracy], path=path, callbacks=[presses])


def weights(learn: Learner) -> list[torch.Tensor]:
    return list(learn.model.state_dict().values())


NEVER = ("on_batch_end", -1)


@pytest.mark.parametrize("event", ["on_backward_end", "on_step_end", "on_batch_end"])
@pytest.mark.parametrize(
    ("iteration", "where"), [(0, "epoch 0, batch 1"), (2, "epoch 0, batch 3"), (4, "epoch 1, batch 2")]
)
@pytest.mark.parametrize("every", [None, 2])
def test_ctrl_c_saves_the_batch_in_which_it_came(tmp_path, capsys, event, iteration, where, every):
    alone = learner(tmp_path / "alone", PressesCtrlC(*NEVER))
    alone.fit_one_cycle(3, 1e-2)
    stopped = learner(tmp_path, PressesCtrlC(event, iteration))
    with pytest.raises(KeyboardInterrupt):
        stopped.fit_one_cycle(3, 1e-2, checkpoint="run", every=every)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert f"run.checkpoint holds {where}: repeat the same call to resume there." in capsys.readouterr().out
    resumed = learner(tmp_path, PressesCtrlC(*NEVER))
    resumed.fit_one_cycle(3, 1e-2, checkpoint="run", every=every)
    assert all(map(torch.equal, weights(alone), weights(resumed)))
    assert list(alone.recorder.raw_losses) == list(resumed.recorder.raw_losses)


@pytest.mark.parametrize(("train", "times"), [(True, 2), (False, 1)])
def test_a_second_ctrl_c_and_one_in_validation_raise_at_once(tmp_path, capsys, train, times):
    presses = PressesCtrlC("on_batch_end", 3 if train else 6, train, times)
    with pytest.raises(KeyboardInterrupt):
        learner(tmp_path, presses).fit(2, checkpoint="run")
    assert not presses.went_on
    assert "run.checkpoint holds epoch 1, batch 0" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class PressesInLoader(TensorDataset):
    """Press Ctrl-C while the third batch is read."""

    def __getitem__(self, i):
        if i == 8:
            signal.raise_signal(signal.SIGINT)
        return super().__getitem__(i)


def test_ctrl_c_while_a_batch_is_read_saves_that_batch(tmp_path, capsys):
    samples = PressesInLoader(torch.randn(16, 10), torch.randint(2, (16,)))
    data = DataBunch(DataLoader(samples, 4), None, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        learner(tmp_path, PressesCtrlC(*NEVER), data).fit(2, checkpoint="run")
    assert "run.checkpoint holds epoch 0, batch 3" in capsys.readouterr().out


def test_without_a_checkpoint_ctrl_c_raises_at_once(tmp_path):
    presses = PressesCtrlC("on_step_end", 1)
    with pytest.raises(KeyboardInterrupt):
        learner(tmp_path, presses).fit(2)
    assert not presses.went_on


def test_a_handler_of_your_own_stays():
    def handler(number, frame):
        raise AssertionError

    interrupt = DelayedInterrupt()
    before = signal.signal(signal.SIGINT, handler)
    try:
        interrupt.start()
        assert signal.getsignal(signal.SIGINT) is handler
        interrupt.stop()
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
