"""fit_one_cycle: learning rate and momentum of each step, what is restored, and which arguments raise an error."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from conftest import rates_used, toy_learner

from minifast import AccumulateScheduler, AdamW, Callback, OneCycleScheduler
from minifast.callbacks import ScheduledParameters
from minifast.schedules import linear

OPTIMIZERS = {
    "SGD with momentum": partial(torch.optim.SGD, momentum=0.9),
    "SGD": torch.optim.SGD,
    "Adam": torch.optim.Adam,
    "AdamW": AdamW,
    "RMSprop": torch.optim.RMSprop,
    "RMSprop with momentum": partial(torch.optim.RMSprop, momentum=0.9),
    "Adagrad": torch.optim.Adagrad,
}
WITHOUT_MOMENTUM = {"SGD", "RMSprop", "Adagrad"}


def by_hand(n: int, lr_max: float, pct: float = 0.3, div: float = 25.0) -> tuple[list[float], list[float]]:
    """The design's one cycle: a line from lr_max/div to lr_max over the first batches, then a cosine to 0."""
    warm = max(1, int(n * pct)) if n > 1 else 0
    lrs, moms = [], []
    for i in range(n):
        if i < warm:
            p = i / warm
            lrs.append(lr_max / div + (lr_max - lr_max / div) * p)
            moms.append(0.95 - 0.1 * p)
        else:
            half = (1 + math.cos(math.pi * (i - warm) / (n - warm))) / 2
            lrs.append(lr_max * half)
            moms.append(0.95 - 0.1 * half)
    return lrs, moms


def used_by(learn) -> list[tuple[float, float]]:
    """Write down what the torch optimizer's groups hold at each step."""
    used = []
    learn.create_opt(1e-3)
    inner = learn.opt.opt
    step = inner.step

    def spying_step(*args):
        group = inner.param_groups[-1]
        used.append((group["lr"], group["betas"][0] if "betas" in group else group.get("momentum", 0.0)))
        return step(*args)

    inner.step = spying_step
    return used


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_recorded_is_what_the_step_used(name) -> None:
    learn = toy_learner(n=100, bs=10, opt_func=OPTIMIZERS[name])
    used = used_by(learn)
    learn.fit_one_cycle(2, 0.05)
    recorder = learn.recorder
    assert list(zip(recorder.lrs, recorder.moms, strict=True)) == used
    lrs, moms = by_hand(20, 0.05)
    assert recorder.lrs == pytest.approx(lrs, abs=1e-12)
    if name in WITHOUT_MOMENTUM:
        assert recorder.moms == [0.0] * 20
        assert all(group.get("momentum", 0.0) == 0.0 for group in learn.opt.opt.param_groups)
    else:
        assert recorder.moms == pytest.approx(moms, abs=1e-12)
    assert recorder.lrs[6] == max(recorder.lrs) == 0.05


@pytest.mark.parametrize("n", [1, 2, 3, 99, 100])
def test_every_small_run(n) -> None:
    learn = toy_learner(n=n, bs=1, metrics=[])
    learn.data.valid_dl = None
    learn.fit_one_cycle(1, 0.01)
    lrs, moms = by_hand(n, 0.01)
    assert learn.recorder.lrs == pytest.approx(lrs, abs=1e-12)
    assert learn.recorder.moms == pytest.approx(moms, abs=1e-12)
    assert len(learn.recorder.lrs) == n


def test_epochs_make_no_difference_to_the_curve() -> None:
    one, five = toy_learner(n=50, bs=5), toy_learner(n=10, bs=5)
    one.fit_one_cycle(1, 0.01)
    five.fit_one_cycle(5, 0.01)
    assert one.recorder.lrs == five.recorder.lrs
    assert one.recorder.moms == five.recorder.moms


def test_arguments_shape_the_curve() -> None:
    learn = toy_learner(n=100, bs=10)
    learn.fit_one_cycle(1, 0.01, moms=(0.9, 0.8), div_factor=10, pct_start=0.5, final_div=100)
    recorder = learn.recorder
    assert recorder.lrs[0] == pytest.approx(0.001)
    assert recorder.lrs[5] == 0.01
    assert recorder.lrs[9] == pytest.approx(0.0001 + 0.0099 * (1 + math.cos(math.pi * 4 / 5)) / 2)
    assert (recorder.moms[0], recorder.moms[5]) == (0.9, 0.8)
    learn.fit_one_cycle(1, 0.01, moms=0.9)
    assert learn.recorder.moms == [0.9] * 10
    learn.fit_one_cycle(1, 0.01, pct_start=0)
    assert learn.recorder.lrs[0] == 0.01
    learn.fit_one_cycle(1, 0.01, pct_start=1)
    assert learn.recorder.lrs[-1] == pytest.approx(0.0004 + 0.0096 * 0.9)


def test_cosine_warmup_is_fastai_v1s_code() -> None:
    learn = toy_learner(n=30, bs=1)
    learn.fit_one_cycle(1, 0.01, warmup="cosine", final_div=25e4)
    lrs, moms = learn.recorder.lrs, learn.recorder.moms
    assert lrs[0] == pytest.approx(0.0004)
    assert lrs[9] == max(lrs) == 0.01
    assert lrs[-1] == pytest.approx(5.6e-5, rel=0.005)
    assert moms[9] == 0.85
    assert lrs[3] == pytest.approx(0.01 + (0.0004 - 0.01) / 2 * (math.cos(math.pi / 3) + 1))


def test_a_rate_per_layer_group() -> None:
    learn = toy_learner(n=100, bs=10)
    learn.layer_groups = [learn.model[1], learn.model[3]]
    used, notes = rates_used(learn)
    learn.fit_one_cycle(1, slice(1e-4, 1e-2), callbacks=notes)
    assert used[3] == pytest.approx([1e-4, 1e-2])
    assert np.array(used)[:, 0] * 100 == pytest.approx(np.array(used)[:, 1], rel=1e-12)
    assert learn.recorder.lrs == [rates[1] for rates in used]


# --- what is put back


@pytest.mark.parametrize(("name", "mom"), [("SGD with momentum", 0.9), ("AdamW", 0.9), ("Adam", 0.9), ("SGD", 0.0)])
def test_a_later_fit_has_the_momentum_from_before(name, mom) -> None:
    learn = toy_learner(opt_func=OPTIMIZERS[name])
    learn.fit_one_cycle(1, 0.05)
    assert learn.opt.mom == mom
    assert learn.opt.lr == 0.05
    learn.fit(1, 0.01)
    assert learn.recorder.moms == [mom] * 3
    assert learn.recorder.lrs == [0.01] * 3


def test_a_momentum_that_the_user_set_is_put_back() -> None:
    learn = toy_learner()
    learn.create_opt(1e-3)
    learn.opt.mom = 0.7
    learn.fit_one_cycle(1, 0.05)
    assert learn.opt.mom == 0.7


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt()])
def test_it_is_put_back_also_after_an_error(error) -> None:
    class Raises(Callback):
        def on_batch_end(self, iteration):
            if iteration == 1:
                raise error

    learn = toy_learner()
    with pytest.raises(type(error)):
        learn.fit_one_cycle(2, 0.05, callbacks=[Raises()])
    assert (learn.opt.lr, learn.opt.mom) == (0.05, 0.9)


def test_two_schedules_of_the_rate_in_one_fit_are_refused_before_any_batch() -> None:
    learn = toy_learner()
    message = "OneCycleScheduler and OneCycleScheduler both set lr; leave one of them out"
    with pytest.raises(ValueError, match=message):
        learn.fit_one_cycle(1, 0.05, callbacks=[OneCycleScheduler(learn, 0.01, moms=(0.8, 0.7))])
    assert learn.history == []
    learn.fit(1, 0.02, callbacks=[OneCycleScheduler(learn, 0.01, moms=(0.8, 0.7))])
    assert (learn.opt.lr, learn.opt.mom) == (0.02, 0.9)


def test_an_error_before_the_schedules_began_stays_what_it_is() -> None:
    class Raises(Callback):
        _order = -50

        def on_train_begin(self):
            raise RuntimeError("early")

    learn = toy_learner(opt_func=torch.optim.Adagrad, callbacks=[Raises()])
    with pytest.raises(RuntimeError, match="early"):
        learn.fit(1, callbacks=[ScheduledParameters(learn, {"mom": linear(0.9, 0.8)}, n_batches=3)])


def test_weight_decay_may_follow_a_schedule_too() -> None:
    learn = toy_learner(wd=0.1)
    seen = []

    class Reads(Callback):
        def on_backward_end(self):
            seen.append(learn.opt.wd)

    learn.fit(1, callbacks=[ScheduledParameters(learn, {"wd": linear(0.0, 0.3)}, n_batches=3), Reads()])
    assert seen == pytest.approx([0.0, 0.1, 0.2])
    assert learn.opt.wd == 0.1


def test_a_schedule_that_is_shorter_than_the_fit_stays_at_its_end() -> None:
    learn = toy_learner()
    learn.fit(2, callbacks=[ScheduledParameters(learn, {"lr": linear(0.01, 0.02)}, n_batches=2)])
    assert learn.recorder.lrs == pytest.approx([0.01, 0.015, 0.02, 0.02, 0.02, 0.02])


def test_the_last_value_is_set_after_the_last_batch_and_then_put_back() -> None:
    learn = toy_learner()
    ends = []

    class Reads(Callback):
        _order = 5

        def on_epoch_end(self):
            ends.append((learn.opt.lr, learn.opt.mom))

    learn.fit_one_cycle(1, 0.05, callbacks=[Reads()])
    assert ends == [(0.0, pytest.approx(0.95))]


# --- part of a cycle


def test_start_epoch_takes_the_cycle_up_where_it_was() -> None:
    whole, rest = toy_learner(n=100, bs=10), toy_learner(n=100, bs=10)
    whole.fit_one_cycle(4, 0.01)
    rest.fit_one_cycle(4, 0.01, start_epoch=2)
    assert rest.recorder.lrs == whole.recorder.lrs[20:]
    assert rest.recorder.moms == whole.recorder.moms[20:]
    assert rest.recorder.lrs[0] == pytest.approx(0.00812, rel=1e-3)  # as measured of fastai v1
    assert [row[0] for row in rest.recorder.rows] == [2, 3]


def test_tot_epochs_is_the_length_of_the_cycle() -> None:
    whole, half = toy_learner(n=100, bs=10), toy_learner(n=100, bs=10)
    whole.fit_one_cycle(4, 0.01)
    half.fit_one_cycle(2, 0.01, tot_epochs=4)
    assert half.recorder.lrs == whole.recorder.lrs[:20]
    half.fit_one_cycle(4, 0.01, start_epoch=2, tot_epochs=4)
    assert half.recorder.lrs == whole.recorder.lrs[20:]


@pytest.mark.parametrize("order", [-20, 0, 20])
def test_an_epoch_that_another_callback_sets_takes_the_cycle_up_there(order) -> None:
    class Jumps(Callback):
        _order = order

        def on_train_begin(self):
            return {"epoch": 2}

    whole, rest = toy_learner(n=100, bs=10), toy_learner(n=100, bs=10)
    whole.fit_one_cycle(4, 0.01)
    rest.fit_one_cycle(4, 0.01, callbacks=[Jumps()])
    assert rest.recorder.lrs == whole.recorder.lrs[20:]
    assert (rest.opt.lr, rest.opt.mom) == (0.01, 0.9)


def test_a_stopped_epoch_does_not_bend_the_curve() -> None:
    class Stops(Callback):
        def on_batch_end(self, num_batch, train):
            return {"stop_epoch": True} if train and num_batch == 4 else None

    learn = toy_learner(n=100, bs=10)
    learn.fit_one_cycle(2, 0.01, callbacks=[Stops()])
    assert learn.recorder.lrs == pytest.approx(by_hand(20, 0.01)[0][:10], abs=1e-12)


def test_under_accumulation_a_step_trains_at_what_its_first_batch_came_with() -> None:
    learn = toy_learner(n=100, bs=10)
    lrs, moms = by_hand(10, 0.01)
    learn.fit_one_cycle(1, 0.01, callbacks=AccumulateScheduler(n_step=4))
    firsts = [0, 0, 0, 0, 4, 4, 4, 4, 8, 8]
    assert learn.recorder.lrs == pytest.approx([lrs[i] for i in firsts], abs=1e-12)
    assert learn.recorder.moms == pytest.approx([moms[i] for i in firsts], abs=1e-12)


def test_it_is_a_callback_of_fit_and_of_callback_fns_too() -> None:
    lrs, _ = by_hand(3, 0.02)
    learn = toy_learner()
    learn.fit(1, callbacks=[OneCycleScheduler(learn, 0.02)])
    assert learn.recorder.lrs == pytest.approx(lrs)
    learn = toy_learner(callback_fns=[partial(OneCycleScheduler, lr_max=0.02)])
    learn.fit(1)
    assert learn.recorder.lrs == pytest.approx(lrs)


def test_the_plan_can_be_drawn_without_training() -> None:
    learn = toy_learner()
    plan = OneCycleScheduler(learn, 0.02).plan(100)
    lrs, moms = by_hand(100, 0.02)
    assert [plan["lr"](i / 100) for i in range(100)] == pytest.approx(lrs, abs=1e-12)
    assert [plan["mom"](i / 100) for i in range(100)] == pytest.approx(moms, abs=1e-12)


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "`epochs` must be at least 1, got 0"),
        ({"epochs": -1}, ValueError, "`epochs` must be at least 1, got -1"),
        ({"epochs": 1.5}, TypeError, r"`epochs` must be an integer, got 1\.5 of type float"),
        ({"epochs": "2"}, TypeError, "`epochs` must be an integer, got '2' of type str"),
        ({"max_lr": 0}, ValueError, "`max_lr` must be positive, got 0"),
        ({"max_lr": -0.1}, ValueError, r"`max_lr` must be positive, got -0\.1"),
        ({"max_lr": "0.1"}, TypeError, r"`max_lr` must be a number, got '0\.1' of type str"),
        ({"max_lr": float("nan")}, ValueError, "`max_lr` must be finite, got nan"),
        ({"max_lr": [0.1, 0.2]}, ValueError, "lr has 2 values for 1 layer groups"),
        ({"moms": (0.9,)}, ValueError, r"`moms` must have two values, .* got 1"),
        ({"moms": (0.9, 0.8, 0.7)}, ValueError, "`moms` must have two values, .* got 3"),
        ({"moms": ()}, ValueError, "`moms` must have two values, .* got 0"),
        ({"moms": (0.9, "0.8")}, TypeError, r"each of moms must be a number, got '0\.8' of type str"),
        ({"moms": "ab"}, TypeError, "each of moms must be a number, got 'ab' of type str"),
        ({"moms": (1.5, 0.8)}, ValueError, r"each of moms must be at most 1, got 1\.5"),
        ({"moms": (0.95, -0.1)}, ValueError, r"each of moms must be at least 0, got -0\.1"),
        ({"moms": None}, TypeError, "each of moms must be a number, got None of type NoneType"),
        ({"div_factor": 0}, ValueError, "`div_factor` must be positive, got 0"),
        ({"div_factor": -25}, ValueError, "`div_factor` must be positive, got -25"),
        ({"div_factor": "25"}, TypeError, "`div_factor` must be a number, got '25' of type str"),
        ({"pct_start": 1.01}, ValueError, r"`pct_start` must be at most 1, got 1\.01"),
        ({"pct_start": -0.01}, ValueError, r"`pct_start` must be at least 0, got -0\.01"),
        ({"pct_start": 30}, ValueError, "`pct_start` must be at most 1, got 30"),
        ({"pct_start": "0.3"}, TypeError, r"`pct_start` must be a number, got '0\.3' of type str"),
        ({"final_div": 0}, ValueError, "`final_div` must be positive, got 0"),
        ({"final_div": "x"}, TypeError, "`final_div` must be a number, got 'x' of type str"),
        ({"tot_epochs": 0}, ValueError, "`tot_epochs` must be at least 1, got 0"),
        ({"tot_epochs": 2.5}, TypeError, r"`tot_epochs` must be an integer, got 2\.5 of type float"),
        ({"tot_epochs": 1}, ValueError, "`tot_epochs` must be at least the 2 epochs of the fit, got 1"),
        ({"start_epoch": -1}, ValueError, "`start_epoch` must be at least 0, got -1"),
        ({"start_epoch": 0.5}, TypeError, r"`start_epoch` must be an integer, got 0\.5 of type float"),
        ({"start_epoch": 2}, ValueError, r"`start_epoch` must be lower than the number of epochs \(2\), got 2"),
        ({"warmup": "linaer"}, ValueError, "`warmup` must be one of 'linear', 'cosine', got 'linaer'"),
        ({"wd": "0.1"}, TypeError, r"`wd` must be a number, got '0\.1' of type str"),
        ({"callbacks": [OneCycleScheduler]}, TypeError, "callbacks holds the class OneCycleScheduler"),
    ],
)
def test_arguments_are_refused_before_any_batch(arguments, error, message) -> None:
    learn = toy_learner()
    before = [p.detach().clone() for p in learn.model.parameters()]
    batches = []
    learn.data.train_dl.add_tfm(lambda batch: batches.append(1) or batch)
    with pytest.raises(error, match=message):
        learn.fit_one_cycle(**({"epochs": 2, "max_lr": 0.01} | arguments))
    assert not batches
    assert all(torch.equal(old, p) for old, p in zip(before, learn.model.parameters(), strict=True))
