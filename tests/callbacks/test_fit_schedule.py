"""fit_schedule, the forms of the 1cycle policy, and plot_schedule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FailsAt, rates_used, toy_learner
from torch.optim.lr_scheduler import OneCycleLR

from minifast import Callback, MinifastError, flat_cosine, one_cycle, three_phases, two_halves, warm_restarts
from minifast.schedules import SCHEDULES, constant, exponential, join, linear, polynomial, repeat, step
from minifast.schedules.one_cycle import POLICIES, whole_batches


def test_every_batch_trains_with_what_the_schedules_say() -> None:
    learn = toy_learner()
    decays = []

    class Looks(Callback):
        def on_backward_end(self):
            decays.append(learn.opt.opt.param_groups[0]["weight_decay"])

    lr, mom, wd = linear(0.0, 0.06), linear(0.9, 0.8), linear(0.1, 0.0)
    learn.fit_schedule(2, lr=lr, mom=mom, wd=wd, callbacks=[Looks()])
    for recorded, schedule in ((learn.recorder.lrs, lr), (learn.recorder.moms, mom), (decays, wd)):
        assert recorded == pytest.approx([schedule(i / 6) for i in range(6)])
    assert learn.opt.lr == 0.06


def test_numbers_stay() -> None:
    learn = toy_learner()
    learn.fit_schedule(1, lr=1e-2, mom=0.7)
    assert learn.recorder.lrs == [1e-2] * 3
    assert learn.recorder.moms == [0.7] * 3
    assert learn.opt.wd == learn.wd


def test_values_of_layer_groups() -> None:
    learn = toy_learner()
    learn.layer_groups = [learn.model[1], learn.model[3]]
    used, notes = rates_used(learn)
    learn.fit_schedule(1, lr=linear(np.array([0.0, 0.3]), np.array([0.3, 0.0])), callbacks=[notes])
    assert used == [pytest.approx(pair) for pair in ([0.0, 0.3], [0.1, 0.2], [0.2, 0.1])]


@pytest.mark.parametrize("most", [1, 2, 3, 100])
@pytest.mark.parametrize("n_groups", [1, 2])
def test_long_runs_whose_values_are_not_planned_ahead_train_with_the_same(monkeypatch, most, n_groups) -> None:
    monkeypatch.setattr("minifast.callbacks.scheduler.MAX_CHECKED", most)
    learn = toy_learner()
    if n_groups == 2:
        learn.layer_groups = [learn.model[1], learn.model[3]]
    lr = one_cycle(0.3) if n_groups == 1 else linear(np.array([0.0, 0.3]), np.array([0.3, 0.0]))
    used, notes = rates_used(learn)
    learn.fit_schedule(2, lr=lr, callbacks=[notes])
    assert used == [pytest.approx(np.broadcast_to(lr(i / 6), n_groups).tolist()) for i in range(6)]


@pytest.mark.parametrize(
    ("schedules", "error", "message"),
    [
        ({"lr": lambda p: 0.5 - p}, ValueError, r"lr at 0\.51 of the run must be at least 0, got -0\.01"),
        ({"lr": lambda p: float("nan")}, ValueError, "lr at 0 of the run must be finite, got nan"),
        ({"lr": lambda p: "x"}, TypeError, "lr at 0 of the run must be a number, got 'x' of type str"),
        ({"lr": lambda p: [0.1, 0.2]}, ValueError, "lr at 0 of the run has 2 values for 1 layer groups"),
        ({"lr": constant(0.0)}, ValueError, "lr is 0 for every layer group"),
        (
            {"lr": 0.1, "mom": linear(0.9, 1.2)},
            ValueError,
            r"mom at 0\.34 of the run must be at most 1, got 1\.002",
        ),
        ({"lr": 0.1, "wd": -1.0}, ValueError, "wd at 0 of the run must be at least 0, got -1"),
    ],
)
def test_what_a_schedule_may_not_give_is_refused_before_any_batch(schedules, error, message) -> None:
    learn = toy_learner()
    batches = []
    learn.data.train_dl.add_tfm(lambda batch: batches.append(1) or batch)
    with pytest.raises(error, match=message):
        learn.fit_schedule(1, **schedules)
    assert not batches
    assert learn.history == []


def test_a_layer_group_may_stay_at_zero_but_not_all() -> None:
    learn = toy_learner()
    learn.layer_groups = [learn.model[1], learn.model[3]]
    before = learn.model[1].weight.clone()
    learn.fit_schedule(1, lr=lambda p: np.array([0.0, 0.1]))
    assert learn.model[1].weight.equal(before)
    with pytest.raises(ValueError, match="lr is 0 for every layer group"):
        learn.fit_schedule(1, lr=lambda p: np.array([0.0, 0.0]))


def test_a_dip_of_a_single_batch_is_seen_before_it_trains() -> None:
    learn = toy_learner(n=1400)  # 70 batches, none of which a hundredth of the way falls on
    dip = 37 / 70
    with pytest.raises(ValueError, match=r"lr at 0\.5286 of the run must be at least 0, got -1"):
        learn.fit_schedule(1, lr=lambda p: -1.0 if abs(p - dip) < 1e-4 else 0.1)
    assert learn.history == []


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (lambda learn: learn.fit_schedule(1, one_cycle), "lr is one_cycle, which is not a function of progress alone"),
        (lambda learn: learn.fit_schedule(1, linear), "lr is linear, which is not a function of progress alone"),
        (lambda learn: learn.fit_one_cycle(1, one_cycle(0.1)), "must be a learning rate, got a function; fit_schedule"),
        (lambda learn: learn.fit(1, linear(0, 0.1)), "must be a learning rate, got a function; fit_schedule"),
        (lambda learn: learn.fit(1, None), "`lr` must be a learning rate, got None"),
        (
            lambda learn: learn.fit(1, learn.lr_find()),
            "must be a learning rate, got the result of lr_find; give its .suggestion",
        ),
    ],
)
def test_a_maker_a_schedule_and_a_result_are_told_from_a_rate(train, message) -> None:
    with pytest.raises(TypeError, match=message):
        train(toy_learner())


def test_a_form_without_momentum_refuses_one() -> None:
    with pytest.raises(ValueError, match=r"`moms` is \(0.9, 0.8\), but policy='two_halves' leaves the momentum alone"):
        toy_learner().fit_one_cycle(1, policy="two_halves", moms=(0.9, 0.8))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: one_cycle("1e-2"), TypeError, "`lr_max` must be a number, got '1e-2' of type str"),
        (lambda: one_cycle([0.1, "x"]), TypeError, "each of lr_max must be a number, got 'x' of type str"),
        (lambda: linear(0.1, None), TypeError, "`end` must be a number, got None of type NoneType"),
        (lambda: exponential(0.1, 0.0), ValueError, "Equal ratios never reach 0"),
        (lambda: exponential(0.1, -0.1), ValueError, "Equal ratios never reach 0"),
        (lambda: exponential(np.array([0.1, 0.0]), 0.1), ValueError, "Equal ratios never reach 0"),
        (lambda: polynomial(0.1, 0.0, -1), ValueError, "`degree` must be positive, got -1"),
        (lambda: step(0.1, 0.0, 2), ValueError, "`factor` must be positive, got 0"),
        (lambda: step(0.1, 0.5, 1.5), TypeError, r"`steps` must be an integer, got 1\.5 of type float"),
        (lambda: join(linear(0, 1)), TypeError, "`join` takes pairs of a share and a schedule"),
        (lambda: join((1, 0.1)), TypeError, r"takes pairs of a share and a schedule, such as .*, got \(1, 0.1\)"),
        (lambda: repeat(0.1, 2), TypeError, "`schedule` must be a function of progress, .* got 0.1"),
        (lambda: warm_restarts(0.1, 2, 0), ValueError, "`cycle_mult` must be positive, got 0"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_when_it_is_made(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()


def test_it_is_kept_and_taken_up_again(tmp_path) -> None:
    def learner(at=None):
        return toy_learner(path=tmp_path, callbacks=[FailsAt(at)])

    alone = learner()
    alone.fit_schedule(3, lr=one_cycle(1e-2))
    with pytest.raises(OSError, match="gone"):
        learner(5).fit_schedule(3, lr=one_cycle(1e-2), checkpoint="run", every=1)
    with pytest.raises(MinifastError, match="holds another run: its call has lr"):
        learner().fit_schedule(3, lr=one_cycle(2e-2), checkpoint="run")
    with pytest.raises(MinifastError, match="was started by fit_schedule"):
        learner().resume("run")
    again = learner()
    again.fit_schedule(3, lr=one_cycle(1e-2), checkpoint="run", every=1)
    assert again.recorder.lrs == alone.recorder.lrs
    assert again.recorder.raw_losses == alone.recorder.raw_losses


def test_schedules_are_taken_up_at_the_epoch_that_a_callback_sets() -> None:
    class Begins(Callback):
        def on_train_begin(self):
            return {"epoch": 1}

    learn = toy_learner()
    learn.fit_schedule(3, lr=linear(0.0, 0.09), callbacks=[Begins()])
    assert learn.recorder.lrs == pytest.approx([0.01 * i for i in range(3, 9)])


def test_a_schedule_does_not_see_variables_that_change_during_the_training() -> None:
    factor = [1.0]

    class Changes(Callback):
        def on_epoch_end(self, epoch):
            factor[0] = 0.1

    learn = toy_learner()
    learn.fit_schedule(2, lr=lambda p: 0.1 * factor[0], callbacks=[Changes()])
    assert factor == [0.1]
    assert set(learn.recorder.lrs) == {0.1}


# --- plans


CYCLES = [{}, {"policy": "three_phases"}, {"policy": "two_halves"}, {"warmup": "cosine", "final_div": 25e4},
          {"pct_start": 0.5, "div_factor": 5, "moms": (0.9, 0.7)}, {"tot_epochs": 4}, {"start_epoch": 1}]  # fmt: skip


@pytest.mark.parametrize("cycle", CYCLES)
def test_what_is_drawn_is_what_is_trained(cycle) -> None:
    learn = toy_learner()
    figure = learn.plot_schedule(3, 1e-2, return_fig=True, **cycle)
    assert learn.opt is None
    drawn = {ax.get_ylabel(): list(ax.lines[0].get_ydata()) for ax in figure.axes}
    learn.fit_one_cycle(3, 1e-2, **cycle)
    assert drawn["learning rate"] == learn.recorder.lrs
    assert ("momentum" in drawn) == (cycle.get("policy") != "two_halves")
    if "momentum" in drawn:
        assert drawn["momentum"] == learn.recorder.moms


def test_a_plan_of_schedules_and_of_layer_groups() -> None:
    learn = toy_learner()
    learn.fit(1, 1e-2)
    opt, lr = learn.opt, learn.opt.lr
    (ax,) = learn.plot_schedule(2, linear(0.0, 0.1), return_fig=True).axes
    learn.fit_schedule(2, lr=linear(0.0, 0.1))
    assert list(ax.lines[0].get_ydata()) == learn.recorder.lrs
    assert learn.opt is opt
    assert lr == 1e-2
    learn.layer_groups = [learn.model[1], learn.model[3]]
    rates, _ = learn.plot_schedule(2, slice(1e-3, 1e-1), return_fig=True).axes
    assert [line.get_ydata().max() for line in rates.lines] == pytest.approx([1e-3, 1e-1])
    assert [text.get_text() for text in rates.get_legend().get_texts()] == [
        "layer group 0: up to 0.001",
        "layer group 1: up to 0.1",
    ]
    with pytest.raises(TypeError, match="`max_lr` is a schedule, but pct_start belongs to the 1cycle policy"):
        learn.plot_schedule(2, linear(0.0, 0.1), pct_start=0.4)
    with pytest.raises(TypeError, match=r"plot_schedule has no argument `momss`\. Did you mean `moms`"):
        learn.plot_schedule(2, 0.1, momss=(0.9, 0.8))
    with pytest.raises(
        TypeError, match="`mom` and `wd` need a schedule as `max_lr`; the 1cycle policy takes its momentum from `moms`"
    ):
        learn.plot_schedule(2, 0.1, mom=0.9)


def test_a_list_is_a_value_for_each_layer_group() -> None:
    assert one_cycle([0.1, 1.0])(0.3).tolist() == pytest.approx([0.1, 1.0])
    assert warm_restarts([0.1, 1.0], 2)(0.0).tolist() == pytest.approx([0.1, 1.0])


def test_a_plan_of_one_batch_is_a_point() -> None:
    learn = toy_learner(n=20)
    axes = learn.plot_schedule(1, 1e-2, return_fig=True).axes
    assert [(len(ax.lines[0].get_xdata()), ax.lines[0].get_marker()) for ax in axes] == [(1, "o"), (1, "o")]


def test_an_optimizer_without_momentum_has_none_in_its_plan() -> None:
    learn = toy_learner(opt_func=torch.optim.SGD)
    (ax,) = learn.plot_schedule(2, 1e-2, return_fig=True).axes
    assert ax.get_title() == "SGD works without momentum here"
    learn.fit_one_cycle(2, 1e-2)
    assert learn.recorder.moms == [0.0] * 6


# --- the forms


def peak_of(n: int, pct: float) -> int:
    return round(whole_batches(pct, n) * n)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("pct", [0.0, 0.1, 0.25, 0.3, 0.45, 0.5])
def test_every_form_at_every_size(policy, pct) -> None:
    form = POLICIES[policy]
    for n in range(1, 51):
        share = whole_batches(pct, n)
        lr = form.lr(0.5, 25.0, share, None)
        rates = [lr(i / n) for i in range(n + 1)]
        assert np.isfinite(rates).all()
        assert min(rates) >= 0
        assert max(rates) <= 0.5 * (1 + 1e-12)
        peak = peak_of(n, pct)
        if policy != "three_phases" or peak:
            assert rates[peak] == pytest.approx(0.5)
        if peak:
            assert rates[0] == pytest.approx(0.02)
        if policy != "one_cycle" and 0 < 2 * peak < n:
            assert rates[n] == pytest.approx(0.5 / 2500)
        if form.mom:
            moms = [form.mom((0.95, 0.85), share)(i / n) for i in range(n + 1)]
            assert min(moms) >= 0.85 - 1e-12
            assert max(moms) <= 0.95 + 1e-12


def test_fit_one_cycle_chooses_the_form() -> None:
    for policy, schedule in (("three_phases", three_phases), ("two_halves", two_halves), ("one_cycle", one_cycle)):
        learn = toy_learner(n=200, bs=10)
        learn.fit_one_cycle(1, 1e-2, policy=policy)
        assert learn.recorder.lrs == pytest.approx([schedule(1e-2)(i / 20) for i in range(20)])
    with pytest.raises(
        ValueError, match="`policy` must be one of 'one_cycle', 'three_phases', 'two_halves', got 'triangle'"
    ):
        toy_learner().fit_one_cycle(1, 1e-2, policy="triangle")
    with pytest.raises(ValueError, match="`warmup` must be 'linear' with policy='two_halves', got 'cosine'"):
        toy_learner().fit_one_cycle(1, 1e-2, policy="two_halves", warmup="cosine")


@pytest.mark.parametrize(("n", "up"), [(10, 3), (20, 9), (100, 30), (99, 33)])
def test_torchs_one_cycle_where_torchs_is_right(n, up) -> None:
    """torch counts from 0 to total_steps - 1 and puts the peak at pct_start * total_steps - 1: a step of its own."""
    for three, anneal in ((False, "linear"), (False, "cos"), (True, "linear")):
        parameter = torch.nn.Parameter(torch.zeros(1))
        opt = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
        theirs = OneCycleLR(opt, 0.1, total_steps=n + 1, pct_start=(up + 1) / (n + 1), anneal_strategy=anneal,
                            div_factor=25, final_div_factor=100, three_phase=three)  # fmt: skip
        rates, moms = [], []
        for _ in range(n):
            rates.append(opt.param_groups[0]["lr"])
            moms.append(opt.param_groups[0]["momentum"])
            opt.step()
            theirs.step()
        rates.append(opt.param_groups[0]["lr"])
        if three:
            ours = three_phases(0.1, 25, up / n, final_div=2500)
        elif anneal == "cos":
            ours = one_cycle(0.1, 25, up / n, final_div=2500, warmup="cosine")
        else:
            ours = join((up, linear(0.004, 0.1)), (n - up, linear(0.1, 0.1 / 2500)))
        assert rates == pytest.approx([ours(i / n) for i in range(n + 1)], abs=1e-9)
        assert min(moms) == pytest.approx(0.85, abs=1e-9)


def test_where_torchs_one_cycle_is_not_the_formula() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    opt = torch.optim.SGD([parameter], lr=0.1)  # without momentum
    scheduler = OneCycleLR(opt, 0.1, total_steps=10, cycle_momentum=False)
    rates = []
    for _ in range(10):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        if len(rates) < 10:
            scheduler.step()
    assert rates.index(max(rates)) == 2, "torch's peak is a step early, and its last step trains at the end's rate"
    assert rates[-1] == pytest.approx(0.1 / 25 / 1e4)
    ours = [one_cycle(0.1, warmup="cosine", final_div=25e4)(i / 10) for i in range(10)]
    assert ours.index(max(ours)) == 3
    assert ours[-1] > 100 * rates[-1]


# --- other schedules


def test_flat_cosine_and_warm_restarts() -> None:
    f = flat_cosine(1.0)
    assert [f(p) for p in (0.0, 0.5, 0.75, 0.875, 1.0)] == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.0])
    assert flat_cosine(1.0, 0.5, final_div=10)(1.0) == pytest.approx(0.1)
    for mult in (1, 1.5, 2, 3):
        n_cycles = 3
        f = warm_restarts(1.0, n_cycles, mult, lr_min=0.1)
        lengths = np.cumsum([mult**k for k in range(n_cycles)])
        for end in lengths[:-1] / lengths[-1]:
            assert f(end) == pytest.approx(1.0)
            assert f(end - 1e-9) == pytest.approx(0.1, abs=1e-6)
        assert f(1.0) == pytest.approx(0.1)
    for make, message in ((lambda: warm_restarts(1.0, 0), "`n_cycles` must be at least 1, got 0"),
                          (lambda: warm_restarts(1.0, 2, 0), "`cycle_mult` must be positive, got 0"),
                          (lambda: flat_cosine(1.0, 1.5), "`pct_start` must be at most 1, got 1.5")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("n", range(1, 51))
def test_a_cycle_repeated_is_the_cycle_again_and_again(n) -> None:
    cycle = one_cycle(1.0, pct_start=whole_batches(0.3, n))
    f = repeat(cycle, 3)
    assert [f(i / (3 * n)) for i in range(3 * n)] == pytest.approx([cycle(i / n) for i in range(n)] * 3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_named_schedule_trains_within_its_bounds(name) -> None:
    named = SCHEDULES[name]
    for n in range(1, 51):
        rates = [named.lr(0.1)(i / n) for i in range(n + 1)]
        assert np.isfinite(rates).all()
        assert 0 <= min(rates) <= max(rates) <= 0.1 * (1 + 1e-12)
    assert max(named.lr(0.1)(p / 1000) for p in range(1001)) == pytest.approx(0.1, rel=1e-2)
    learn = toy_learner()
    learn.fit_schedule(1, **named.of(1e-2))
    assert learn.recorder.lrs == pytest.approx([named.lr(1e-2)(i / 3) for i in range(3)])


# --- which rate it is


def test_a_fit_without_a_rate_says_which_it_is(capsys) -> None:
    learn = toy_learner(n=200)
    learn.silent = False
    learn.fit_one_cycle(1)
    assert "The maximum learning rate is 0.003; lr_find() suggests one" in capsys.readouterr().out
    found = learn.lr_find()
    learn.fit_one_cycle(1)
    assert f"0.003; lr_find suggests {found.suggestion:.2g}." in capsys.readouterr().out
    learn.fit_one_cycle(1, 3e-3)
    assert "The highest learning rate" not in capsys.readouterr().out
