"""Schedulers of Keras, torch and fastai v1's phases: the learning rate of each batch, and what they restore."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import FailsAt, rates_used, slow, toy_learner

from minifast import (
    AccumulateScheduler,
    Callback,
    GeneralScheduler,
    Learner,
    LearningRateScheduler,
    MinifastError,
    OneCycleScheduler,
    TorchScheduler,
    TrainingPhase,
    annealing_cos,
    create_one_cycle_lr_schedule,
)

SGD = torch.optim.SGD


def fitted(epochs: int, *callbacks: Callback, **options) -> Learner:
    learn = toy_learner(**options)
    learn.fit(epochs, 1e-2, callbacks=list(callbacks))
    return learn


# --- Keras


def test_by_epoch_the_index_is_the_epoch() -> None:
    learn = fitted(3, LearningRateScheduler(lambda epoch: 0.1 / (1 + epoch)))
    assert learn.recorder.lrs == pytest.approx([0.1] * 3 + [0.05] * 3 + [0.1 / 3] * 3)
    assert learn.opt.lr == 1e-2, "what was before is put back"


def test_by_batch_the_index_is_counted_over_the_fit() -> None:
    learn = fitted(2, LearningRateScheduler(lambda step: 0.1 * (step + 1), by="batch"))
    assert learn.recorder.lrs == pytest.approx([0.1 * (i + 1) for i in range(6)])


@pytest.mark.parametrize("by", ["epoch", "batch"])
def test_a_schedule_may_take_the_rate_before(by) -> None:
    learn = fitted(3, LearningRateScheduler(lambda index, lr: lr * 0.5 if index else lr, by=by))
    n = 3 if by == "epoch" else 1
    assert learn.recorder.lrs == pytest.approx([1e-2 * 0.5 ** (i // n) for i in range(9)])


def test_an_argument_with_a_default_is_the_schedules_own() -> None:
    learn = fitted(1, LearningRateScheduler(lambda step, factor=0.5: 0.1 * factor**step, by="batch"))
    assert learn.recorder.lrs == pytest.approx([0.1, 0.05, 0.025])
    learn = fitted(2, LearningRateScheduler(lambda epoch, lr=1.0: lr / 2))
    assert learn.recorder.lrs == pytest.approx([5e-3] * 3 + [2.5e-3] * 3)


def test_the_schedule_of_the_keras_project() -> None:
    schedule = create_one_cycle_lr_schedule(0.1, 12, div_factor=10)
    learn = fitted(4, LearningRateScheduler(schedule, by="batch"))
    up = [0.01 + 0.09 * i / 6 for i in range(7)]
    down = [0.1 + (1e-4 - 0.1) * i / 6 for i in range(1, 6)]
    assert learn.recorder.lrs == pytest.approx(up + down)
    assert schedule(12) == schedule(100) == pytest.approx(1e-4)
    for n in range(1, 51):
        rates = [create_one_cycle_lr_schedule(1.0, n)(i) for i in range(n + 1)]
        assert max(rates) == 1.0
        assert rates[-1] == pytest.approx(1 / 2500)


def test_one_scheduler_serves_several_learners_in_turn() -> None:
    scheduler = LearningRateScheduler(lambda epoch, lr: lr * 0.5)
    for _ in range(2):
        assert fitted(2, scheduler).recorder.lrs == pytest.approx([5e-3] * 3 + [2.5e-3] * 3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LearningRateScheduler(0.1), TypeError, "`schedule` must be callable, got 0.1"),
        (lambda: LearningRateScheduler(lambda: 0.1), TypeError, "`schedule` must take the index.*takes 0 arguments"),
        (lambda: LearningRateScheduler(lambda a, b, c: 0.1), TypeError, "takes 3 arguments"),
        (
            lambda: LearningRateScheduler(lambda a: 0.1, by="step"),
            ValueError,
            "`by` must be one of .*, got 'step'",
        ),
        (lambda: TorchScheduler(None), TypeError, "`make` must be callable, got None"),
        (lambda: TorchScheduler(id, by="steps"), ValueError, "`by` must be one of 'batch', 'epoch', got 'steps'"),
        (lambda: TrainingPhase(0), ValueError, "`length` must be at least 1, got 0"),
        (lambda: TrainingPhase(2).schedule_hp("lr", 1, 5), TypeError, "`anneal` must be callable, got 5"),
        (lambda: GeneralScheduler(toy_learner(), []), ValueError, "`phases` must have at least one TrainingPhase"),
    ],
)
def test_what_is_wrong_is_refused_when_it_is_made(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("bad", [float("nan"), -0.1])
def test_a_rate_that_is_none_is_refused(bad) -> None:
    with pytest.raises(ValueError, match=r"`schedule\(1\)` must be"):
        fitted(2, LearningRateScheduler(lambda epoch: bad if epoch else 0.1))


# --- torch


def by_torch(make, epochs: int, by: str, opt_func=SGD) -> list[float]:
    """The rates of a loop by hand."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    opt = opt_func([parameter], lr=1e-2)
    scheduler = make(opt)
    rates = []
    for _ in range(epochs):
        for _ in range(3):
            rates.append(opt.param_groups[0]["lr"])
            opt.step()
            if by == "batch":
                scheduler.step()
        if by == "epoch":
            scheduler.step()
    return rates


SCHEDULERS = {
    "step": lambda opt: torch.optim.lr_scheduler.StepLR(opt, 2, 0.5),
    "several steps": lambda opt: torch.optim.lr_scheduler.MultiStepLR(opt, [1, 2, 2], 0.5),
    "exponential": lambda opt: torch.optim.lr_scheduler.ExponentialLR(opt, 0.9),
    "cosine": lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, 9),
    "lambda": lambda opt: torch.optim.lr_scheduler.LambdaLR(opt, lambda i: 1 / (1 + i)),
}


@pytest.mark.parametrize("by", ["batch", "epoch"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_torchs_schedulers_give_what_they_give_in_a_loop_by_hand(name, by) -> None:
    learn = toy_learner(opt_func=SGD)
    learn.fit(3, 1e-2, callbacks=[TorchScheduler(SCHEDULERS[name], by=by)])
    assert learn.recorder.lrs == by_torch(SCHEDULERS[name], 3, by)


def test_the_optimizer_is_as_before() -> None:
    learn = toy_learner()
    learn.fit(1, 1e-2)
    opt = learn.opt.opt
    before = dict(vars(opt)), [dict(group) for group in opt.param_groups]
    one_cycle = TorchScheduler(lambda opt: torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=7))
    learn.fit(2, 1e-2, callbacks=[one_cycle])
    assert max(learn.recorder.lrs) > 0.05
    assert min(learn.recorder.moms) < 0.9
    assert vars(opt).keys() == before[0].keys()
    assert [dict(group) for group in opt.param_groups] == before[1]


def test_a_scheduler_that_watches_is_given_the_validation_loss() -> None:
    seen = []

    class Watches(torch.optim.lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics, epoch=None):
            seen.append(metrics)
            super().step(metrics)

    learn = fitted(2, TorchScheduler(lambda opt: Watches(opt), by="epoch"))
    assert seen == learn.recorder.val_losses


def test_it_steps_where_the_optimizer_stepped() -> None:
    halving = TorchScheduler(lambda opt: torch.optim.lr_scheduler.ExponentialLR(opt, 0.5))
    learn = fitted(2, AccumulateScheduler(n_step=2), halving)
    assert learn.recorder.lrs == pytest.approx([1e-2, 1e-2, 5e-3, 2.5e-3, 2.5e-3, 1.25e-3])


def in_turn(opt):
    """A scheduler of schedulers, one of which has a counter deep inside."""
    parts = [torch.optim.lr_scheduler.ConstantLR(opt), torch.optim.lr_scheduler.MultiStepLR(opt, [1, 3])]
    return torch.optim.lr_scheduler.SequentialLR(opt, parts, milestones=[4])


# SequentialLR itself raises this warning at its milestones, in any loop, before torch 2.10.
@pytest.mark.filterwarnings(r"ignore:The epoch parameter in `scheduler.step\(\)` was not necessary:UserWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: LearningRateScheduler(lambda step, lr: lr * 0.7, by="batch"),
        lambda: TorchScheduler(in_turn),
        lambda: TorchScheduler(lambda opt: torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=0), by="epoch"),
        *slow(
            lambda: LearningRateScheduler(lambda epoch, lr: lr * 0.7),
            *(lambda name=name: TorchScheduler(SCHEDULERS[name]) for name in SCHEDULERS),
            lambda: TorchScheduler(lambda opt: torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=13)),
            lambda: TorchScheduler(lambda opt: torch.optim.lr_scheduler.CyclicLR(opt, 0.01, 0.1, 3)),
        ),
    ],
)
def test_a_run_taken_up_again_has_the_same_rates(make, tmp_path) -> None:
    def begin(name, at=None):
        learn = toy_learner(path=tmp_path)
        learn.fit(4, 1e-2, callbacks=[make(), FailsAt(at)], checkpoint=name, every=1)
        return learn

    alone = begin("alone")
    with pytest.raises(OSError, match="gone"):
        begin("run", 7)
    assert begin("run").recorder.lrs == alone.recorder.lrs


def test_a_kept_run_goes_on_with_its_own_kind_of_scheduler_only(tmp_path) -> None:
    def begin(name, at=None):
        learn = toy_learner(path=tmp_path)
        learn.fit(2, callbacks=[TorchScheduler(SCHEDULERS[name]), FailsAt(at)], checkpoint="run", every=1)

    one, other = list(SCHEDULERS)[:2]
    with pytest.raises(OSError, match="gone"):
        begin(one, 3)
    with pytest.raises(MinifastError, match=r"The checkpointed run used the scheduler .*, but this is"):
        begin(other)


def test_a_momentum_that_is_meant_and_cannot_be_is_warned_of() -> None:
    learn = toy_learner(opt_func=SGD)
    with pytest.warns(UserWarning, match="SGD works without momentum here; the schedule of the momentum is ignored"):
        learn.fit_schedule(1, 0.1, mom=0.9)
    with pytest.warns(UserWarning, match="SGD works without momentum here"):
        learn.fit_one_cycle(1, 0.1, moms=(0.9, 0.8))
    learn.fit_one_cycle(1, 0.1)  # of the default nothing is said, but in the plots


def test_layer_groups_keep_their_share_of_the_rate() -> None:
    learn = toy_learner()
    learn.layer_groups = [learn.model[1], learn.model[3]]
    used, notes = rates_used(learn)
    learn.fit(1, slice(1e-3, 1e-1), callbacks=[LearningRateScheduler(lambda i: 0.1 / (1 + i), by="batch"), notes])
    assert used == [pytest.approx([0.001 / (1 + i), 0.1 / (1 + i)]) for i in range(3)]


def plateau(opt):
    return torch.optim.lr_scheduler.ReduceLROnPlateau(opt)


def test_a_scheduler_that_watches_needs_a_loss_to_watch() -> None:
    learn = toy_learner()
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau monitors the validation loss.*by='epoch'"):
        learn.fit(1, callbacks=[TorchScheduler(plateau)])
    learn.data.valid_dl = None
    with pytest.raises(ValueError, match="ReduceLROnPlateau monitors the validation loss; give the data a valid_dl"):
        learn.fit(1, callbacks=[TorchScheduler(plateau, by="epoch")])
    assert not learn.recorder.lrs


def test_a_rate_that_a_torch_scheduler_may_not_set_ends_the_fit_before_it_trains() -> None:
    below = TorchScheduler(lambda opt: torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 1 - step))
    learn = toy_learner()
    with pytest.raises(ValueError, match=r"The learning rate set by LambdaLR must be at least 0, got -0.01"):
        learn.fit(1, 1e-2, callbacks=[below])
    assert learn.recorder.lrs == [1e-2, 0.0]


@pytest.mark.parametrize(
    "other",
    [
        LearningRateScheduler(lambda epoch: 0.1),
        TorchScheduler(lambda opt: torch.optim.lr_scheduler.StepLR(opt, 1)),
        GeneralScheduler(toy_learner(), [TrainingPhase(3).schedule_hp("lr", 0.1)]),
    ],
)
def test_two_that_set_the_rate_are_refused_and_the_finder_goes_without_others(other) -> None:
    learn = toy_learner(callbacks=[other])
    with pytest.raises(ValueError, match=f"{type(other).__name__} and OneCycleScheduler both set lr"):
        learn.fit_one_cycle(1, 0.1)
    found = learn.lr_find(num_it=20, stop_div=False)
    assert found.lrs == pytest.approx(list(np.geomspace(1e-7, 10, 20)))


# --- fastai v1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: TrainingPhase(3).schedule_hp(3, 0.1),
            TypeError,
            "`name` must be the name of a hyperparameter, .* got 3",
        ),
        (lambda: TrainingPhase(3).schedule_hp("lr", (1, 2, 3)), ValueError, r"`vals` of lr must be .* got \(1, 2, 3\)"),
        (
            lambda: TrainingPhase(3).schedule_hp("lr", "x"),
            TypeError,
            "a value of lr must be a number, got 'x' of type str",
        ),
        (lambda: GeneralScheduler(toy_learner(), [3]), TypeError, "`phases` must contain TrainingPhase.*got 3"),
        (
            lambda: fit_phase("lr", (0.1, -0.1)),
            ValueError,
            r"lr at 0\.6667 of the run must be at least 0, got -0\.0333333",
        ),
        (lambda: fit_phase("mom", (0.9, 1.5)), ValueError, r"mom at 0\.3333 of the run must be at most 1, got 1\.1"),
    ],
)
def test_phases_that_cannot_be_are_refused_before_any_batch(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()


def fit_phase(name, values) -> None:
    learn = toy_learner()
    learn.fit(1, 1e-3)
    before = learn.recorder
    try:
        learn.fit(1, 1e-2, callbacks=[GeneralScheduler(learn, [TrainingPhase(3).schedule_hp(name, values)])])
    finally:  # a run that is refused changes nothing
        assert learn.recorder is before
        assert learn.history == [before]
        assert learn.opt.lr == 1e-3


def test_a_start_after_the_end_is_refused() -> None:
    learn = toy_learner()
    phase = TrainingPhase(3).schedule_hp("lr", 0.1)
    with pytest.raises(ValueError, match="`start_epoch` must be lower than the number of epochs \\(1\\), got 1"):
        learn.fit(1, callbacks=[GeneralScheduler(learn, [phase], start_epoch=1)])


def test_the_finder_goes_without_schedules_of_other_things() -> None:
    learn = toy_learner()
    learn.callbacks = [GeneralScheduler(learn, [TrainingPhase(3).schedule_hp("mom", (0.9, 0.8))])]
    assert len(learn.lr_find(num_it=20, stop_div=False).lrs) == 20


def test_schedules_begin_at_the_epoch_that_a_callback_sets() -> None:
    class Jumps(Callback):
        def on_train_begin(self):
            return {"epoch": 1}

    for by, expected in (("epoch", [0.05] * 3), ("batch", [0.1 / (1 + i) for i in (3, 4, 5)])):
        learn = fitted(2, LearningRateScheduler(lambda i: 0.1 / (1 + i), by=by), Jumps())
        assert learn.recorder.lrs == pytest.approx(expected)


def test_what_a_scheduler_left_when_it_could_not_be_made_is_taken_away() -> None:
    def make(opt):
        opt.param_groups[0]["initial_lr"] = 1.0
        raise RuntimeError("no")

    learn = toy_learner()
    learn.fit(1)
    with pytest.raises(RuntimeError, match="no"):
        learn.fit(1, callbacks=[TorchScheduler(make)])
    assert "initial_lr" not in learn.opt.opt.param_groups[0]


def test_a_scheduler_of_rates_goes_with_one_of_momentum() -> None:
    learn = toy_learner()
    phase = TrainingPhase(3).schedule_hp("mom", 0.5)
    halving = TorchScheduler(lambda opt: torch.optim.lr_scheduler.ExponentialLR(opt, 0.5))
    learn.fit(1, 1e-2, callbacks=[GeneralScheduler(learn, [phase]), halving])
    assert (learn.recorder.lrs, learn.recorder.moms) == ([1e-2, 5e-3, 2.5e-3], [0.5] * 3)


def test_other_values_of_a_scheduler_among_callbacks_are_not_taken_up(tmp_path) -> None:
    def begin(rate, at=None):
        learn = toy_learner(path=tmp_path)
        learn.fit(2, callbacks=[OneCycleScheduler(learn, rate), FailsAt(at)], checkpoint="run", every=1)

    with pytest.raises(OSError, match="gone"):
        begin(0.1, 3)
    with pytest.raises(MinifastError, match="started with other values of OneCycleScheduler"):
        begin(0.5)


def test_a_kept_run_goes_on_with_its_own_phases_only(tmp_path) -> None:
    def begin(rate, at=None, anneal=None):
        learn = toy_learner(path=tmp_path)
        phases = [TrainingPhase(4).schedule_hp("lr", (rate, 1e-1), anneal), TrainingPhase(2).schedule_hp("lr", 1e-3)]
        learn.fit(2, callbacks=[GeneralScheduler(learn, phases), FailsAt(at)], checkpoint="run", every=1)
        return learn.recorder.lrs

    with pytest.raises(OSError, match="gone"):
        begin(1e-2, 3)
    with pytest.raises(MinifastError, match="started with other values of GeneralScheduler"):
        begin(2e-2)
    with pytest.raises(MinifastError, match="started with other values of GeneralScheduler"):
        begin(1e-2, anneal=annealing_cos)  # which has the same ends and the same middle
    assert begin(1e-2) == pytest.approx([1e-2, 3.25e-2, 5.5e-2, 7.75e-2, 1e-3, 1e-3])


def test_phases_follow_one_another_and_the_training_ends_with_the_last() -> None:
    learn = toy_learner(opt_func=lambda params, lr: SGD(params, lr, momentum=0.8))
    phases = [
        TrainingPhase(4).schedule_hp("lr", (0.1, 0.5)),
        TrainingPhase(3).schedule_hp("lr", (0.5, 0.1), anneal=annealing_cos).schedule_hp("mom", 0.9),
        TrainingPhase(1),
    ]
    learn.fit(9, 1e-2, callbacks=[GeneralScheduler(learn, phases)])
    down = [0.1 + 0.2 * (1 + math.cos(math.pi * i / 3)) for i in range(3)]
    assert learn.recorder.lrs == pytest.approx([0.1, 0.2, 0.3, 0.4, *down, 0.1])
    assert learn.recorder.moms == pytest.approx([0.8] * 4 + [0.9] * 4), "nothing is touched before its phase"
    assert (learn.opt.lr, learn.opt.mom) == (1e-2, 0.8)


def test_a_phase_may_schedule_whatever_the_optimizer_has() -> None:
    learn = toy_learner()
    used = []

    class Looks(Callback):
        def on_backward_end(self):
            used.append((learn.opt.opt.param_groups[0]["eps"], learn.opt.wd))

    phase = TrainingPhase(3).schedule_hp("eps", (1e-8, 4e-8)).schedule_hp("wd", (0.3, 0.0))
    learn.fit(1, callbacks=[GeneralScheduler(learn, [phase]), Looks()])
    assert used == [pytest.approx(pair) for pair in ((1e-8, 0.3), (2e-8, 0.2), (3e-8, 0.1))]
    with pytest.raises(ValueError, match="AdamW has no sped to schedule; it has lr, mom, wd, eps"):
        learn.fit(1, callbacks=[GeneralScheduler(learn, [TrainingPhase(3).schedule_hp("sped", 1)])])


def test_phases_of_layer_groups_and_from_an_epoch_on() -> None:
    learn = toy_learner()
    learn.layer_groups = [learn.model[1], learn.model[3]]
    used, notes = rates_used(learn)
    phase = TrainingPhase(6).schedule_hp("lr", (np.array([0.0, 0.6]), np.array([0.6, 0.0])))
    learn.fit(2, callbacks=[GeneralScheduler(learn, [phase], start_epoch=1), notes])
    assert used == [pytest.approx(pair) for pair in ([0.3, 0.3], [0.4, 0.2], [0.5, 0.1])]


def test_a_momentum_that_begins_at_zero_is_scheduled_and_put_back() -> None:
    learn = toy_learner(opt_func=lambda params, lr: SGD(params, lr, momentum=0.9))
    phase = TrainingPhase(3).schedule_hp("mom", (0.0, 0.9))
    learn.fit(1, 1e-2, callbacks=[GeneralScheduler(learn, [phase])])
    assert learn.recorder.moms == pytest.approx([0.0, 0.3, 0.6])
    assert learn.opt.mom == 0.9


@pytest.mark.parametrize(("lr", "expected"), [([1e-3, 0.0], [1.0, 0.0]), ([0.0, 1e-3], [0.0, 1.0])])
def test_a_layer_group_with_a_learning_rate_of_0_keeps_it(lr, expected):
    learn = toy_learner().split(lambda model: [model[3]])
    seen = []

    class Sees(Callback):
        def on_batch_begin(self, train):
            if train:
                seen.append(learn.opt.read("lr"))

    learn.fit(1, lr, callbacks=[LearningRateScheduler(lambda epoch, lr: 2 * lr), Sees()])
    assert seen[0] == [2e-3 * ratio for ratio in expected]


def test_a_torch_scheduler_leaves_attributes_of_the_optimizer_alone():
    class Own(torch.optim.SGD):
        def step(self, closure=None):
            self.steps = getattr(self, "steps", 0) + 1
            return super().step(closure)

    learn = toy_learner(opt_func=Own)
    for steps in (3, 6):
        learn.fit(1, callbacks=TorchScheduler(lambda opt: torch.optim.lr_scheduler.StepLR(opt, 1)))
        assert learn.opt.opt.steps == steps
        assert "step" not in vars(learn.opt.opt)
        assert "_opt_called" not in vars(learn.opt.opt)
        assert "initial_lr" not in learn.opt.opt.param_groups[0]
