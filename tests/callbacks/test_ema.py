"""EMACallback: the average, when the model has it, and the weights after the fit."""

from __future__ import annotations

import contextlib

import pytest
import torch
from conftest import FailsAt, toy_data, toy_learner
from torch import nn

from minifast import AccumulateScheduler, Callback, EMACallback, Learner, SaveModelCallback


def tensors(learn: Learner) -> list[torch.Tensor]:
    return [one.detach().clone() for one in (*learn.model.parameters(), *learn.model.buffers())]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Trail(Callback):
    """Keeps what the model holds after each step, and in each validation."""

    _order = 6_000

    def __init__(self, learn: Learner) -> None:
        self.learn, self.steps, self.validated, self.ends = learn, [], [], []

    def on_step_end(self, skip_step):
        if not skip_step:
            self.steps.append(tensors(self.learn))

    def on_batch_begin(self, train):
        if not train:
            self.validated.append(tensors(self.learn))

    def on_epoch_end(self):
        self.ends.append(tensors(self.learn))


def with_norms(**options) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    return Learner(toy_data(100, 10), model, silent=True, **options)


def averages(trail: Trail, decay: float) -> list[list[torch.Tensor]]:
    """The average after each step, by hand; whole numbers are counts and are not averaged."""
    found = [trail.steps[0]]
    for n, step in enumerate(trail.steps[1:], 1):
        keep = min(decay, (1 + n) / (10 + n))
        both = zip(found[-1], step, strict=True)
        found.append([keep * a + (1 - keep) * b if b.is_floating_point() else b for a, b in both])
    return found


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_average_is_validated_and_left_and_training_is_as_without(decay) -> None:
    learn, alone = with_norms(), with_norms()
    trail, plain = Trail(learn), Trail(alone)
    learn.fit_one_cycle(2, 1e-2, callbacks=[EMACallback(decay=decay), trail])
    alone.fit_one_cycle(2, 1e-2, callbacks=plain)
    assert all(equal(a, b) for a, b in zip(trail.steps, plain.steps, strict=True))
    assert learn.recorder.raw_losses == alone.recorder.raw_losses
    wanted = averages(trail, decay)
    for at, held in ((9, trail.validated[0]), (9, trail.ends[0]), (19, trail.validated[-1]), (19, tensors(learn))):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(wanted[at], held, strict=True))
    if decay:
        assert not equal(tensors(learn), tensors(alone))
    assert learn.validate()[0] == learn.recorder.val_losses[-1]


def test_without_validation_the_average_is_left_too() -> None:
    learn, validated = with_norms(), with_norms()
    learn.data.valid_dl = None
    for one in (learn, validated):
        one.fit(2, 1e-2, callbacks=EMACallback(decay=0.9))
    assert equal(tensors(learn), tensors(validated))


def test_a_step_that_is_not_made_is_not_averaged() -> None:
    learn, big = toy_learner(n=60, bs=10), toy_learner(n=60, bs=20)
    for one, callbacks in ((learn, [AccumulateScheduler(n_step=2)]), (big, [])):
        one.fit(2, 1e-2, callbacks=[*callbacks, EMACallback(decay=0.9)])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(tensors(learn), tensors(big), strict=True))


@pytest.mark.parametrize("event", ["on_batch_begin", "on_step_end", "on_epoch_end"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_fit_that_fails_leaves_the_weights_themselves(event, error) -> None:
    class Fails(Callback):
        _order = 9_000

    def fail(epoch, train=False):
        if epoch == 1 and not (train and event == "on_batch_begin"):  # in the validation, where the average is held
            raise error("gone")

    learn, alone = with_norms(), with_norms()
    for one, callbacks in ((learn, [EMACallback()]), (alone, [])):
        fails = Fails()
        setattr(fails, event, fail)
        with pytest.raises(error, match="gone"):
            one.fit(2, 1e-2, callbacks=[*callbacks, fails])
    assert equal(tensors(learn), tensors(alone))


def test_it_is_used_again_and_elsewhere_without_a_trace() -> None:
    ema = EMACallback()
    learn = with_norms(callbacks=ema)
    with pytest.raises(OSError, match="gone"):
        learn.fit(2, 1e-2, callbacks=FailsAt(12))
    before = tensors(learn)
    learn.validate()
    learn.get_preds()
    assert equal(before, tensors(learn))
    learn.lr_find(num_it=5)
    assert equal(before, tensors(learn))
    assert (ema._steps, ema._others) == (0, [])
    learn.fit(1, 1e-2)
    left = tensors(learn)
    learn.get_preds()
    assert equal(left, tensors(learn))


def test_buffers_that_are_assigned_anew_are_averaged() -> None:
    class Moving(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(10))

        def forward(self, x):
            if self.training:
                self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
            return x - self.mean

    learn = Learner(toy_data(), nn.Sequential(Moving(), nn.Linear(10, 2)), silent=True)
    trail = Trail(learn)
    learn.fit(2, 1e-2, callbacks=[EMACallback(decay=0.9), trail])
    wanted = averages(trail, 0.9)[-1]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(wanted, tensors(learn), strict=True))


def test_decay_is_a_share() -> None:
    with pytest.raises(ValueError, match=r"`decay` must be at most 1, got 1\.1"):
        EMACallback(decay=1.1)


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("interrupted", [True, False])
def test_the_best_model_that_is_loaded_at_the_end_stays(tmp_path, validated, interrupted) -> None:
    class Interrupts(Callback):
        def on_batch_end(self, epoch, train):
            if interrupted and epoch == 1 and train is not validated:
                raise KeyboardInterrupt

    learn = with_norms(path=tmp_path)
    if not validated:
        learn.data.valid_dl = None
    save = SaveModelCallback(monitor="valid_loss" if validated else "train_loss")
    with contextlib.suppress(KeyboardInterrupt):
        learn.fit(3, 1e-1, callbacks=[EMACallback(decay=0.5), save, Interrupts()])
    held = tensors(learn)
    learn.load("bestmodel")
    assert equal(held, tensors(learn))
