"""lr_find: its learning rates, when it stops, its suggestion, and that it restores all state."""

from __future__ import annotations

import itertools
import math
import os
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import rates_used, toy_data, toy_items, toy_learner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from minifast import Callback, DataBunch, Learner, LearnerCallback, LRFinder, MinifastError, TensorLoader, simple_ann
from minifast.finder import FinderResult, suggest_lr
from minifast.finder.rules import combine_rules, read_rules
from minifast.training import EVENTS

SGD = partial(torch.optim.SGD, momentum=0.9)


# --- the rates


@pytest.mark.parametrize("num_it", [2, 3, 10, 100])
def test_both_ends_are_visited_evenly_in_the_logarithm_of_the_rate(num_it) -> None:
    learn = toy_learner()
    learn.lr_find(num_it=num_it, stop_div=False)
    lrs = learn.recorder.lrs
    assert len(lrs) == len(learn.recorder.losses) == len(learn.recorder.raw_losses) == num_it
    assert lrs == pytest.approx([1e-7 * 1e8 ** (i / (num_it - 1)) for i in range(num_it)], rel=1e-12)
    assert lrs[0] == 1e-7
    assert lrs[-1] == pytest.approx(10, rel=1e-15)


def test_what_is_recorded_is_what_the_step_used() -> None:
    learn = toy_learner()
    used = []

    class Reads(Callback):
        def on_backward_end(self):
            used.append((learn.opt.opt.param_groups[0]["lr"], learn.opt.opt.param_groups[0]["betas"][0]))

    learn.callbacks = [Reads()]
    learn.lr_find(start_lr=1e-5, end_lr=1e-2, num_it=20)
    assert list(zip(learn.recorder.lrs, learn.recorder.moms, strict=True)) == used
    assert (used[0][0], used[-1][0]) == (1e-5, pytest.approx(1e-2, rel=1e-12))


def test_rates_of_layer_groups() -> None:
    learn = toy_learner()
    learn.layer_groups = [learn.model[1], learn.model[3]]
    used, notes = rates_used(learn)
    learn.callbacks = [notes]
    learn.lr_find(slice(1e-6, 1e-4), slice(1e-3, 1e-1), num_it=7, stop_div=False)
    assert used[0] == pytest.approx([1e-6, 1e-4])
    assert used[-1] == pytest.approx([1e-3, 1e-1])


@pytest.mark.parametrize(("batches", "num_it"), [(1, 5), (3, 7), (3, 6), (7, 2), (10, 10)])
def test_as_many_passes_over_the_data_as_it_takes(batches, num_it) -> None:
    learn = toy_learner(n=batches * 5, bs=5)
    learn.lr_find(num_it=num_it, stop_div=False)
    assert len(learn.recorder.lrs) == num_it
    assert sum(learn.recorder.nb_batches) == num_it
    assert len(learn.recorder.nb_batches) == math.ceil(num_it / batches)


def test_there_is_no_validation_and_no_table(capsys) -> None:
    validated = []

    class Watches(Callback):
        def on_batch_begin(self, train):
            if not train:
                validated.append(train)

    learn = toy_learner(silent=False, callbacks=[Watches()])
    learn.lr_find(num_it=10)
    assert not validated
    assert set(learn.recorder.val_losses) == {None}
    (line,) = capsys.readouterr().out.splitlines()
    assert "recorder.plot()" in line


class Accumulate(Callback):
    """Steps every ``n`` batches, whatever the epochs."""

    def __init__(self, n):
        self.n, self.waiting = n, 0

    def on_backward_end(self):
        self.waiting = (self.waiting + 1) % self.n
        return {"skip_step": True, "skip_zero": True} if self.waiting else None


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_under_accumulation_a_point_is_a_step_of_the_optimizer(n) -> None:
    accumulate = Accumulate(n)
    learn = toy_learner(callbacks=[accumulate], n=30, bs=10)
    used = []

    class Steps(Callback):
        def on_step_end(self, skip_step):
            if not skip_step:
                used.append(learn.opt.lr)

    learn.callbacks.append(Steps())
    learn.lr_find(num_it=10, stop_div=False)
    finder, recorder = learn.lr_finder, learn.recorder
    assert finder.lrs == used
    assert finder.lrs == pytest.approx(list(np.geomspace(1e-7, 10, 10)))
    assert len(recorder.lrs) == 10 * n
    means = np.array(recorder.raw_losses).reshape(10, n).mean(1)
    assert finder.losses == pytest.approx(smoothed(list(means)), rel=1e-6)
    assert accumulate.waiting == 0
    (line,) = recorder.plot(return_fig=True, skip_start=0, skip_end=0).axes[0].lines
    assert len(line.get_xdata()) == 10


def test_a_finder_that_never_steps_gives_up(monkeypatch) -> None:
    monkeypatch.setattr("minifast.callbacks.lr_finder.MAX_BATCHES", 60)
    learn = toy_learner(callbacks=[Accumulate(10**6)])
    learn.lr_find(num_it=2)
    assert learn.lr_finder.lrs == []
    assert learn.lr_finder.stopped == "the optimizer made 0 steps in 60 batches"


# --- when it stops


def find_with_losses(losses: list[float], **options) -> Learner:
    """A finder that meets just these losses."""
    losses = list(losses)
    met = iter(losses)

    def loss_func(output, target):
        return output.sum() * 0 + next(met)

    learn = toy_learner(loss_func=loss_func, metrics=[])
    learn.lr_find(num_it=len(losses), **options)
    return learn


def smoothed(losses: list[float]) -> list[float]:
    average, result = 0.0, []
    for i, loss in enumerate(losses, 1):
        average = 0.98 * average + 0.02 * loss
        result.append(average / (1 - 0.98**i))
    return result


def test_it_stops_when_the_smoothed_loss_is_over_four_times_its_best() -> None:
    losses = [1.0] * 20 + [2.0**i for i in range(80)]
    curve = smoothed(losses)
    last = next(i for i, loss in enumerate(curve) if loss > 4 * min(curve[: i + 1]))
    learn = find_with_losses(losses)
    assert len(learn.recorder.lrs) == last + 1
    assert learn.recorder.losses == pytest.approx(curve[: last + 1], rel=1e-5)
    assert len(find_with_losses(losses, stop_div=False).recorder.lrs) == 100


def test_it_does_not_stop_at_exactly_four_times_the_best() -> None:
    learn = find_with_losses([0.0, 0.0, 0.0])
    assert len(learn.recorder.lrs) == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("stop_div", [True, False])
@pytest.mark.parametrize("at", [0, 1, 7])
def test_it_stops_when_the_loss_is_not_finite(bad, stop_div, at) -> None:
    learn = find_with_losses([1.0] * at + [bad] + [1.0] * 10, stop_div=stop_div)
    assert len(learn.recorder.lrs) == len(learn.recorder.losses) == at + 1
    assert not math.isfinite(learn.recorder.raw_losses[-1])


def test_a_loss_that_overflows_in_real_training_stops_it_cleanly() -> None:
    learn = toy_learner(opt_func=SGD, loss_func=lambda output, target: (output**4).mean())
    before = [p.detach().clone() for p in learn.model.parameters()]
    learn.lr_find(end_lr=1e30, num_it=60, stop_div=False)
    assert len(learn.recorder.lrs) < 60
    assert not math.isfinite(learn.recorder.losses[-1])
    assert all(torch.equal(old, p) for old, p in zip(before, learn.model.parameters(), strict=True))


@pytest.mark.parametrize("shift", [-3.0, -1.0, -0.5])
def test_a_loss_that_may_be_negative_is_no_reason_to_stop(shift) -> None:
    falling = [shift - i / 50 for i in range(50)]
    assert len(find_with_losses(falling).recorder.lrs) == 50
    through_zero = [1.0 - i / 10 for i in range(50)]
    assert len(find_with_losses(through_zero).recorder.lrs) == 50


def test_a_negative_loss_that_rises_far_stops_it() -> None:
    learn = find_with_losses([-1.0 - i / 50 for i in range(50)] + [2.0**i for i in range(50)])
    assert 50 < len(learn.recorder.lrs) < 70


@pytest.mark.parametrize(
    ("losses", "options", "reason"),
    [
        ([1.0] * 5, {}, "the last learning rate was reached"),
        ([1.0, 1e3, 1e3], {}, "four times"),
        ([1.0, float("nan"), 1.0], {}, "finite"),
    ],
)
def test_stopped_tells_why_the_test_ended(losses, options, reason, capsys) -> None:
    learn = find_with_losses(losses, **options)
    assert reason in learn.lr_finder.stopped
    learn.silent = False
    learn.loss_func = nn.CrossEntropyLoss()
    learn.lr_find(num_it=3)
    assert str(learn.lr_finder.stopped) in capsys.readouterr().out


def test_when_another_callback_stops_it_there_is_a_reason_too(capsys) -> None:
    class Stops(Callback):
        def on_batch_end(self, iteration):
            return {"stop_epoch": True, "stop_training": True} if iteration == 4 else None

    learn = toy_learner(silent=False, callbacks=[Stops()])
    learn.lr_find(num_it=20)
    assert len(learn.recorder.lrs) == 5
    said = capsys.readouterr().out
    assert "None" not in said
    assert "callback" in said


# --- what is put back


class Everything:
    """All that a finder could change, compared bit for bit."""

    def __init__(self, learn: Learner) -> None:
        self.learn = learn
        self.before = self.now()

    def now(self) -> dict:
        learn = self.learn
        model = learn.model
        opt = learn.opt
        loader = learn.data.train_dl
        inner = getattr(loader, "dl", None)
        generator = getattr(inner, "generator", None)
        return {
            "weights": {name: value.clone() for name, value in model.state_dict().items()},
            "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            "training": [module.training for module in model.modules()],
            "requires_grad": [p.requires_grad for p in model.parameters()],
            "opt": None if opt is None else (id(opt), id(opt.opt), [dict(g) for g in opt.opt.param_groups]),
            "state": None if opt is None else {
                p: {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in values.items()}
                for p, values in opt.opt.state.items()
            },
            "wd": None if opt is None else opt.read("wd"),
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state(),
            "generator": None if generator is None else generator.get_state(),
            "epoch": vars(loader).get("epoch"),
            "loss_func": id(learn.loss_func),
            "callbacks": list(map(id, learn.callbacks)),
            "metrics": list(map(id, learn.metrics)),
        }  # fmt: skip

    def same(self) -> list[str]:
        """The names of what is not as it was."""
        now = self.now()
        return [name for name, value in self.before.items() if not equal(value, now[name])]


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def busy_learner(loader: str = "generator", **options) -> Learner:
    """A learner with all that can change: BatchNorm, dropout, shuffling, draws from every generator."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    items = toy_items(60)

    def draw(batch):
        x, y = batch
        return x + 1e-3 * (random.random() + np.random.rand() + torch.rand(())), y

    if loader == "TensorLoader":
        train_dl = TensorLoader(*items.tensors, bs=20, shuffle=True, seed=3, device="cpu")
        train_dl.add_tfm(draw)
        data = DataBunch(train_dl, DataLoader(items, 20), device="cpu")
    else:
        generator = torch.Generator().manual_seed(1) if loader == "generator" else None
        train_dl = DataLoader(items, 20, shuffle=True, generator=generator)
        data = DataBunch(train_dl, DataLoader(items, 20), device="cpu", dl_tfms=[draw])
    model = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    return Learner(data, model, silent=True, loss_func=nn.CrossEntropyLoss(), **options)


LOADERS = ["generator", "no generator", "TensorLoader"]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("opt_func", [SGD, torch.optim.Adam])
@pytest.mark.parametrize("fits", [0, 1])
def test_everything_is_as_before(loader, opt_func, fits) -> None:
    learn = busy_learner(loader, opt_func=opt_func)
    for _ in range(fits):
        learn.fit(1)
    everything = Everything(learn)
    learn.lr_find(num_it=10)
    assert everything.same() == []
    assert (learn.opt is None) == (fits == 0)


def test_everything_is_as_before_in_the_middle_of_something() -> None:
    learn = busy_learner()
    learn.fit(1)
    learn.model.train()
    learn.model[1].eval()  # a frozen BatchNorm
    learn.model[0].weight.requires_grad_(False)
    x, y = learn.data.one_batch()
    learn.loss_func(learn.model(x), y).backward()
    everything = Everything(learn)
    assert everything.before["training"] == [True, True, False, True, True, True]
    assert everything.before["gradients"][1] is not None
    learn.lr_find(num_it=10)
    assert everything.same() == []


class OopsError(Exception):
    pass


def raising(event: str, error: BaseException, after: int = 0) -> Callback:
    callback = Callback()
    calls = []

    def method(**known):
        calls.append(1)
        if len(calls) > after:
            random.random(), np.random.rand(), torch.rand(())
            raise error

    setattr(callback, event, method)
    return callback


@pytest.mark.parametrize("error", [OopsError(), KeyboardInterrupt()])
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("fits", [0, 1])
def test_everything_is_as_before_when_an_event_raises(event, error, fits) -> None:
    learn = busy_learner()
    for _ in range(fits):
        learn.fit(1)
    after = 0 if "train" in event else 1
    learn.callbacks = [raising(event, error, after)]
    everything = Everything(learn)
    with pytest.raises(type(error)):
        learn.lr_find(num_it=10)
    assert everything.same() == []


@pytest.mark.parametrize("where", ["loss", "model", "data"])
def test_everything_is_as_before_when_the_learners_own_parts_raise(where) -> None:
    learn = busy_learner()
    learn.fit(1)
    calls = []

    def fails(*args):
        calls.append(1)
        if len(calls) == 4:
            raise OopsError

    if where == "loss":
        loss_func = learn.loss_func
        learn.loss_func = lambda *args: fails() or loss_func(*args)
    elif where == "model":
        learn.model[4].register_forward_pre_hook(fails)
    else:
        learn.data.train_dl.add_tfm(lambda batch: fails() or batch)
    everything = Everything(learn)
    with pytest.raises(OopsError):
        learn.lr_find(num_it=10)
    assert everything.same() == []


def test_a_callback_that_meddles_with_the_optimizer_leaves_nothing_either() -> None:
    class Meddles(LearnerCallback):
        def on_backward_end(self):
            self.learn.opt.step()
            self.learn.model[1].reset_running_stats()
            self.learn.opt.opt.state.clear()
            self.learn.opt = None
            self.learn.create_opt(1e-3)

    learn = busy_learner()
    learn.callback_fns = [Meddles]
    learn.fit(1)
    everything = Everything(learn)
    learn.lr_find(num_it=5)
    assert everything.same() == []


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("fits", [0, 1])
def test_training_after_it_is_training_without_it_bit_for_bit(loader, fits) -> None:
    def trained(with_finder: bool) -> Learner:
        learn = busy_learner(loader)
        for _ in range(fits):
            learn.fit(1)
        if with_finder:
            learn.lr_find(num_it=10)
        learn.fit_one_cycle(2, 1e-2)
        return learn

    alone, after = trained(False), trained(True)
    assert alone.recorder.raw_losses == after.recorder.raw_losses
    assert alone.recorder.lrs == after.recorder.lrs
    assert equal(alone.model.state_dict(), after.model.state_dict())
    assert equal(alone.recorder.val_losses, after.recorder.val_losses)


def test_two_in_a_row_give_the_same_curve() -> None:
    learn = busy_learner()
    learn.lr_find(num_it=10)
    first = learn.recorder
    learn.lr_find(num_it=10)
    assert learn.recorder is not first
    assert (first.lrs, first.raw_losses) == (learn.recorder.lrs, learn.recorder.raw_losses)


def test_it_trains_as_the_learner_would_with_the_state_it_has() -> None:
    learn = toy_learner(opt_func=SGD)
    learn.fit(1, 0.1)
    momenta = []

    class Reads(Callback):
        def on_backward_end(self):
            if not momenta:
                momenta.append(learn.opt.opt.state[learn.model[1].weight]["momentum_buffer"].clone())

    before = learn.opt.opt.state[learn.model[1].weight]["momentum_buffer"].clone()
    learn.callbacks = [Reads()]
    learn.lr_find(num_it=3)
    assert torch.equal(momenta[0], before)
    assert learn.opt.lr == 0.1


def test_nothing_is_written_to_disk(tmp_path, monkeypatch) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    learn = toy_learner(path=tmp_path / "path")
    opened = []
    real_open = os.open
    monkeypatch.setattr(os, "open", lambda *args, **kwargs: opened.append(args) or real_open(*args, **kwargs))
    learn.lr_find(num_it=5)
    assert not opened
    assert [path for part in ("path", "cwd") for path in Path(tmp_path / part).rglob("*")] == []


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"start_lr": 0}, ValueError, "`start_lr` must be positive, got 0"),
        ({"start_lr": -1e-7}, ValueError, "`start_lr` must be positive, got -1e-07"),
        ({"start_lr": "1e-7"}, TypeError, "`start_lr` must be a number, got '1e-7' of type str"),
        ({"end_lr": 0}, ValueError, "`end_lr` must be positive, got 0"),
        ({"end_lr": float("inf")}, ValueError, "`end_lr` must be finite, got inf"),
        ({"end_lr": 1e-7}, ValueError, "`start_lr` must be lower than `end_lr`, got 1e-07 and 1e-07"),
        ({"start_lr": 1, "end_lr": 1e-3}, ValueError, "`start_lr` must be lower than `end_lr`, got 1 and 0.001"),
        ({"num_it": 1}, ValueError, "`num_it` must be at least 2, got 1"),
        ({"num_it": 0}, ValueError, "`num_it` must be at least 2, got 0"),
        ({"num_it": 10.0}, TypeError, r"`num_it` must be an integer, got 10\.0 of type float"),
        ({"wd": "x"}, TypeError, "`wd` must be a number, got 'x' of type str"),
    ],
)
def test_arguments_are_refused_before_any_batch(arguments, error, message) -> None:
    learn = busy_learner()
    everything = Everything(learn)
    with pytest.raises(error, match=message):
        learn.lr_find(**arguments)
    assert everything.same() == []


def test_data_without_a_batch_are_refused() -> None:
    data = toy_data()
    data.train_dl.dl = []
    learn = Learner(data, nn.Linear(10, 2), loss_func=nn.CrossEntropyLoss(), silent=True)
    with pytest.raises(MinifastError, match="no batch"):
        learn.lr_find()


def test_the_finder_is_a_callback_too() -> None:
    learn = toy_learner(n=200, bs=10)
    learn.fit(1, callbacks=[LRFinder(learn, 1e-4, 1e-1, num_it=12)])
    assert learn.recorder.lrs == pytest.approx(np.geomspace(1e-4, 1e-1, 12))
    assert learn.opt.lr == 3e-3


# --- suggestions

RATES = [10 ** (k / 10 - 6) for k in range(71)]  # 1e-6 to 10


def curve(fall: float, steepest: float, rise: float) -> list[float]:
    """A loss of 1 that falls to about 1 - fall around the rate ``steepest`` and rises from ``rise`` on."""
    return [
        1 - fall / (1 + math.exp(-3 * math.log10(lr / steepest))) + max(0.0, math.log10(lr / rise)) ** 2 for lr in RATES
    ]


@pytest.mark.parametrize("steepest", [1e-4, 1e-3, 1e-2])
def test_the_suggestion_is_between_the_steepest_fall_and_a_tenth_of_the_minimum(steepest) -> None:
    losses = curve(0.8, steepest, rise=steepest * 50)
    fall, tenth = read_rules(RATES, losses, 10, 5)[:2]
    assert fall == pytest.approx(steepest, rel=0.3)
    fallen = losses[0] - np.minimum.accumulate(losses)
    lowest = int((fallen >= 0.95 * fallen[-1]).argmax())  # but for the last twentieth of the fall
    assert tenth == pytest.approx(RATES[lowest] / 10, rel=0.6)  # of a curve that is smoothed first
    assert suggest_lr(RATES, losses) == pytest.approx(math.sqrt(fall * tenth))
    assert min(fall, tenth) <= suggest_lr(RATES, losses) <= max(fall, tenth)


def test_the_steepest_fall_is_over_the_logarithm_of_the_rate_and_before_the_minimum() -> None:
    line = [1.0] * 6 + [1 - 0.1 * i if i <= 6 else 0.4 for i in range(20)]
    line[18:] = [5.0, 1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]  # a steeper fall, but after the minimum
    fall = read_rules(RATES[:26], line, skip_start=0, skip_end=0).steepest
    assert fall <= RATES[12]
    uneven = [*np.geomspace(1e-6, 1e-4, 5), 1e-3, *np.linspace(1e-2, 1e-1, 10)]
    losses = [1.0] * 5 + [0.9, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.33, 0.32, 0.31, 0.3]
    by_rate = np.gradient(losses, uneven)[:12].argmin()
    assert read_rules(uneven, losses, 0, 0).steepest > 10 * uneven[int(by_rate)]


def test_neither_scale_nor_shift_of_the_loss_changes_the_suggestion() -> None:
    losses = curve(0.8, 1e-3, 1e-1)
    expected = suggest_lr(RATES, losses)
    for scale, shift in ((10.0, 0.0), (1e-3, 0.0), (1.0, -5.0), (2.0, 100.0)):
        assert suggest_lr(RATES, [scale * loss + shift for loss in losses]) == pytest.approx(expected)


def test_points_that_are_not_finite_are_left_out() -> None:
    losses = curve(0.8, 1e-3, 1e-1)
    spoilt = [*losses[:60], float("nan"), float("inf"), *losses[62:]]
    assert suggest_lr(RATES, spoilt) == suggest_lr(RATES, losses)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([], "has 0 points, too few"),
        ([1.0, 0.9, 0.8], "has 3 points, too few"),
        ([1.0 - i / 10 for i in range(9)], "has 9 points, too few"),
        ([float("nan")] * 71, "was NaN or infinite from the first step on"),
        ([1.0] * 71, "does not fall"),
        ([1.0 + i for i in range(71)], "does not fall"),
    ],
)
def test_a_curve_that_says_nothing_gives_no_number(losses, message) -> None:
    with pytest.raises(MinifastError, match=message):
        read_rules(RATES[: len(losses)], losses)
    with pytest.raises(MinifastError, match=message):  # and it counts the points that it was given
        suggest_lr(RATES[: len(losses)], losses)


def test_valley_and_slide() -> None:
    losses = curve(0.8, 1e-3, 1e-1)
    found = read_rules(RATES, losses)
    falling = [i for i in range(1, len(losses)) if losses[i] < losses[i - 1]]
    assert RATES[falling[0]] < found.valley < RATES[falling[-1]]
    assert found.valley == pytest.approx(RATES[falling[len(falling) // 2]], rel=0.6)
    assert found.slide in RATES


def test_the_longest_fall_need_not_be_of_neighbours() -> None:
    from minifast.finder.rules import _longest_fall

    rng = random.Random(0)
    for n in (1, 2, 5, 9, 12):
        for _ in range(30):
            values = [rng.randrange(8) for _ in range(n)]
            found = _longest_fall(values)
            assert all(i < j and values[i] > values[j] for i, j in itertools.pairwise(found))
            longest = max(
                sum(mask) for mask in itertools.product((0, 1), repeat=n)
                if all(a > b for a, b in itertools.pairwise([v for v, m in zip(values, mask, strict=True) if m]))
            )  # fmt: skip
            assert len(found) == longest


def result_of(losses: list[float], **options) -> FinderResult:
    return FinderResult([RATES[: len(losses)]], [losses], "it was enough", 0, 0, **options)


def test_a_result_says_what_each_rule_reads_and_suggests_one() -> None:
    found = result_of(curve(0.8, 1e-3, 1e-1))
    assert list(found.rules) == ["steepest", "minimum", "valley", "slide"]
    assert found.suggestion == pytest.approx(math.sqrt(found.rules["steepest"] * found.rules["minimum"]))
    assert found.suggested_range == (found.suggestion / 2, found.suggestion * 2)
    assert found.reason == ""
    text, html = str(found), found._repr_html_()
    for rate in (*found.rules.values(), found.suggestion):
        assert f"{rate:.2e}" in text
        assert f"<td>{rate:.2e}</td>" in html
    low, high = found.suggested_range
    assert text.splitlines()[-1] == f"Suggested range: {low:.1e} to {high:.1e}. One run, 71 steps: it was enough."
    (ax,) = found.plot(return_fig=True).axes
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [label.partition(":")[0] for label in labels] == [
        "steepest fall", "minimum / 10", "suggestion", "suggested range",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([1.0, 0.9, 0.8], "has 3 points, too few"),
        ([1.0 + i for i in range(71)], "does not fall more than by chance"),
    ],
)
def test_a_result_without_a_suggestion_has_a_reason(losses, reason) -> None:
    found = result_of(losses)
    assert found.suggestion is None
    assert found.suggested_range is None
    assert reason in found.reason
    assert found.reason in str(found)
    assert found.reason in found._repr_html_()
    assert "<table>" not in found._repr_html_()
    if len(losses) > 3:
        assert " Try num_it=300 or repeats=3. " in found.reason
    found.plot()


def test_a_steepest_fall_far_from_the_minimum_counts_up_to_a_factor_of_10() -> None:
    found = result_of([1.0] * 20 + [0.5] * 8 + [0.4 - i / 1e2 for i in range(40)])
    assert found.rules["steepest"] < found.rules["minimum"] / 10
    assert found.suggestion == pytest.approx(found.rules["minimum"] / math.sqrt(10))


def test_losses_that_fall_by_chance_only_give_no_rate() -> None:
    refused = 0
    for seed in range(40):
        rng = random.Random(seed)
        refused += result_of(smoothed([1 + 0.1 * rng.gauss(0, 1) for _ in range(71)])).suggestion is None
    assert refused == 40


def test_several_runs_give_the_median_and_differ() -> None:
    learn = busy_learner()
    everything = Everything(learn)
    found = learn.lr_find(num_it=30, repeats=3)
    assert everything.same() == []
    assert len(found.curves) == 3
    assert len({tuple(one) for one in found.curves}) == 3
    assert found.losses == [sorted(values)[1] for values in zip(*found.curves, strict=True)]
    assert len(learn.history) == 3
    (ax,) = found.plot(return_fig=True).axes
    assert ax.get_legend().get_texts()[0].get_text() == "3 runs"
    assert found.curves[0] == learn.lr_find(num_it=30).losses
    with pytest.raises(ValueError, match="`repeats` must be at least 1, got 0"):
        learn.lr_find(repeats=0)


def test_a_real_finder_suggests_a_rate_that_trains() -> None:
    learn = toy_learner(n=200, bs=20)
    learn.lr_find()
    lr = suggest_lr(learn.recorder.lrs, learn.recorder.losses)
    assert 1e-4 < lr < 1
    learn.fit_one_cycle(3, lr)
    assert learn.recorder.metrics[-1][0] > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_a_regression_is_told_from_noise(seed) -> None:
    torch.manual_seed(seed)
    x = torch.randn(2000, 10)
    signal, noise = x @ torch.randn(10) / 10**0.5, torch.randn(2000)

    def find(y) -> FinderResult:
        data = DataBunch(TensorLoader(x, y[:, None], 32, shuffle=True, seed=0, device="cpu"), None, device="cpu")
        return Learner(data, simple_ann(10, 1, 50), loss_func=torch.nn.MSELoss(), silent=True).lr_find()

    assert find(signal + 0.3 * noise).suggestion is not None
    assert "does not fall more than by chance" in find(noise).reason


def test_the_slide_does_not_depend_on_the_scale() -> None:
    losses = curve(0.8, 1e-3, 1e-1)
    assert read_rules(RATES, losses).slide == read_rules(RATES, [1000 * loss for loss in losses]).slide


def test_a_dead_network_gets_no_rate() -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(10, 10) for _ in range(6)]
    for layer in layers:
        torch.nn.init.normal_(layer.weight, std=0.01)
        torch.nn.init.zeros_(layer.bias)
    model = torch.nn.Sequential(
        *(part for layer in layers for part in (layer, torch.nn.ReLU())), torch.nn.Linear(10, 2)
    )
    learn = toy_learner(n=2000)
    dead = Learner(learn.data, model, opt_func=SGD, silent=True)
    assert "does not fall more than by chance" in dead.lr_find().reason


def test_old_names_of_a_result_still_work_with_a_warning() -> None:
    result = result_of(curve(0.8, 1e-3, 1e-1))
    with pytest.warns(DeprecationWarning, match=r"FinderResult\.band is now called suggested_range"):
        assert result.band == result.suggested_range
    with pytest.warns(DeprecationWarning, match=r"FinderResult\.refusal is now called reason"):
        assert result.refusal == result.reason == ""


@settings(max_examples=60, deadline=None)
@given(place=st.integers(16, 24), depth=st.floats(0.1, 0.6), learned=st.integers(50, 70))
def test_a_dip_before_the_model_learns_is_noise(place, depth, learned) -> None:
    lrs = np.logspace(-6, 1, 120)
    curve = 1 - 0.3 / (1 + np.exp(-(np.arange(120) - learned - 10) / 4))
    curve[110:] += 3
    dip = curve.copy()
    dip[place - 4 : place + 5] -= depth
    plain = read_rules(lrs, curve, learned=True, learned_from=lrs[learned])
    noisy = read_rules(lrs, dip, learned=True, learned_from=lrs[learned])
    assert noisy.minimum == plain.minimum
    assert noisy.minimum >= lrs[learned] / 10 / 1.2
    assert lrs[learned] / 12 <= noisy.steepest <= 10 * noisy.minimum
    assert combine_rules(noisy) == pytest.approx(combine_rules(plain))
