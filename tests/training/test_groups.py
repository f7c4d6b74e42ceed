"""Layer groups: splitting, freezing, and learning rates and weight decays per group."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import FailsAt, rates_used, toy_data, toy_learner
from torch import nn

from minifast import BnFreeze, Callback, DataBunch, Learner, MinifastError, accuracy, simple_ann
from minifast.training.groups import split_model


class Residual(nn.Module):
    """Layers with a parameter beside them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.first = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())
        self.second = nn.Linear(width, width)

    def forward(self, x):
        return x + self.scale * self.second(self.first(x))


BN = ["1.weight", "1.bias"]
INNER_BN = ["3.first.1.weight", "3.first.1.bias"]
MIDDLE = ["3.scale", "3.first.0.weight", "3.first.0.bias", *INNER_BN, "3.second.weight", "3.second.bias"]
LAST = ["4.weight", "4.bias"]


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 6), nn.BatchNorm1d(6), nn.ReLU(), Residual(6), nn.Linear(6, 2))


def make_learner(cuts=(3, 4), **kwargs) -> Learner:
    options = {"metrics": [accuracy], "silent": True} | kwargs
    return Learner(toy_data(), make_model(), **options).split(lambda model: [model[i] for i in cuts])


def names_of(model: nn.Module, groups: list[nn.Module]) -> list[list[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group.parameters()] for group in groups]


def trained(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def weights(learn: Learner) -> dict[str, torch.Tensor]:
    return copy.deepcopy(learn.model.state_dict())


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


# --- split


@pytest.mark.parametrize("how", ["function", "list", "tuple of a function", "any order"])
def test_a_cut_goes_before_each_module(how):
    learn = Learner(toy_data(), make_model(), silent=True)
    model = learn.model
    split_on = {
        "function": lambda m: [m[3], m[4]],
        "list": [model[3], model[4]],
        "tuple of a function": lambda m: (m[3], m[4]),
        "any order": [model[4], model[3]],
    }[how]
    assert learn.split(split_on) is learn
    wanted = [
        ["0.weight", "0.bias", *BN],
        MIDDLE,
        LAST,
    ]
    assert names_of(model, learn.layer_groups) == wanted
    assert learn.layer_groups[1][0] is model[3]


@pytest.mark.parametrize("split_on", [lambda m: m[4], lambda m: [m[0], m[4]]])
def test_one_module_and_a_cut_before_the_first_make_two_groups(split_on):
    model = make_model()
    assert [len(list(group.parameters())) for group in split_model(model, split_on)] == [11, 2]


def test_a_module_itself_can_be_named_though_modules_are_callable():
    model = make_model()
    assert len(split_model(model, model[3])) == 2


def test_a_cut_inside_a_module_leaves_what_it_holds_itself_in_front():
    model = make_model()
    groups = split_model(model, [model[3].second])
    assert names_of(model, groups)[1] == ["3.second.weight", "3.second.bias", "4.weight", "4.bias"]
    assert {name for group in names_of(model, groups) for name in group} == set(dict(model.named_parameters()))
    groups = split_model(model, [model[3].first[1]])
    assert names_of(model, groups)[0][4:] == ["3.scale", "3.first.0.weight", "3.first.0.bias"]


def test_a_module_that_is_used_twice_is_in_one_group():
    twice = nn.Linear(4, 4)
    model = nn.Sequential(twice, nn.ReLU(), twice, nn.Linear(4, 2))
    assert [len(list(group.parameters())) for group in split_model(model, [model[3]])] == [2, 2]


@pytest.mark.parametrize(
    ("split_on", "error", "message"),
    [
        ([3], TypeError, "`split_on` must contain the modules that start a new layer group, .*; got 3"),
        (lambda m: None, TypeError, "`split_on` must contain .*; got None"),
        ([nn.Linear(1, 1)], ValueError, "`split_on` contains a Linear that is not part of the model"),
        ([], ValueError, "`split_on` contains no module"),
    ],
)
def test_what_is_no_cut_is_refused(split_on, error, message):
    learn = toy_learner()
    with pytest.raises(error, match=message):
        learn.split(split_on)
    assert learn.layer_groups == [learn.model]


def test_a_parameter_in_two_groups_is_refused():
    model = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10), nn.Linear(10, 2))
    model[2].weight = model[0].weight
    with pytest.raises(ValueError, match=r"0\.weight is in two layer groups, 0 and 1, .*only one learning rate"):
        split_model(model, [model[2]])
    assert len(split_model(model, [model[3]])) == 2
    with pytest.raises(ValueError, match="is in two layer groups"):
        Learner(toy_data(), model, layer_groups=[model, model[0]])


def test_a_split_after_training_makes_a_new_optimizer():
    learn = toy_learner()
    learn.fit(1, 1e-2)
    before = learn.opt
    learn.split(lambda m: [m[3]]).fit(1, [1e-3, 1e-2])
    assert learn.opt is not before
    assert learn.opt.read("lr") == [1e-3, 1e-2]


# --- freeze


@pytest.mark.parametrize(
    ("n", "with_bn", "without"),
    [
        (0, ["0.weight", "0.bias", *BN, *MIDDLE, *LAST], ["0.weight", "0.bias", *BN, *MIDDLE, *LAST]),
        (1, [*BN, *MIDDLE, *LAST], [*MIDDLE, *LAST]),
        (-2, [*BN, *MIDDLE, *LAST], [*MIDDLE, *LAST]),
        (2, [*BN, *INNER_BN, *LAST], LAST),
        (-1, [*BN, *INNER_BN, *LAST], LAST),
        (-3, ["0.weight", "0.bias", *BN, *MIDDLE, *LAST], ["0.weight", "0.bias", *BN, *MIDDLE, *LAST]),
    ],
)
def test_groups_before_the_nth_are_frozen(n, with_bn, without):
    for train_bn, wanted in ((True, with_bn), (False, without)):
        learn = make_learner(train_bn=train_bn)
        learn.freeze()
        learn.freeze_to(n)
        assert trained(learn.model) == wanted


@pytest.mark.parametrize(("train_bn", "expected"), [(None, LAST), (False, LAST), (True, [*BN, *INNER_BN, *LAST])])
def test_freeze_and_unfreeze(train_bn, expected):
    learn = make_learner(train_bn=train_bn)
    everything = trained(learn.model)
    learn.freeze()
    assert trained(learn.model) == expected
    learn.unfreeze()
    assert trained(learn.model) == everything


@pytest.mark.parametrize(
    ("n", "error", "message"),
    [
        (3, ValueError, r"`n` must be lower than the number of layer groups \(3\), got 3; the first group is 0"),
        (-4, ValueError, "`n` must be at least -3, got -4"),
        (1.0, TypeError, "`n` must be an integer, got 1.0 of type float"),
    ],
)
def test_a_group_that_is_not_there_is_refused(n, error, message):
    learn = make_learner()
    with pytest.raises(error, match=message):
        learn.freeze_to(n)
    assert len(trained(learn.model)) == 13


def test_a_model_of_one_group_cannot_be_frozen():
    with pytest.raises(ValueError, match=r"only one layer group.*split it first, such as learn\.split"):
        toy_learner().freeze()


@pytest.mark.parametrize("opt_func", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_what_is_frozen_is_neither_stepped_nor_decayed(opt_func):
    learn = make_learner(opt_func=opt_func, wd=0.5, train_bn=False, callback_fns=[BnFreeze])
    learn.freeze_to(1)
    before = weights(learn)
    learn.fit(2, 1e-2)
    assert changed(before, weights(learn)) == {"3", "4"}


def test_batch_norms_of_frozen_groups_train_with_train_bn():
    for train_bn in (True, False):
        learn = make_learner(train_bn=train_bn)
        learn.freeze()
        before = weights(learn)
        learn.fit(1, 1e-2)
        after = weights(learn)
        assert torch.equal(before["0.weight"], after["0.weight"])
        assert torch.equal(before["1.weight"], after["1.weight"]) != train_bn
        assert not torch.equal(before["1.running_mean"], after["1.running_mean"])


def test_bn_freeze_holds_the_statistics_of_frozen_ones_only():
    learn = make_learner(train_bn=False, callbacks=[BnFreeze()])
    learn.freeze_to(1)
    before = weights(learn)
    learn.fit(2, 1e-2)
    after = weights(learn)
    assert torch.equal(before["1.running_mean"], after["1.running_mean"])
    assert not torch.equal(before["3.first.1.running_mean"], after["3.first.1.running_mean"])
    learn.unfreeze()
    learn.fit(1, 1e-2)
    assert not torch.equal(before["1.running_mean"], weights(learn)["1.running_mean"])


def test_bn_freeze_leaves_trained_ones_and_those_without_parameters_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(10), nn.BatchNorm1d(10, affine=False), nn.Linear(10, 2))
    learn = Learner(toy_data(), model, callback_fns=[BnFreeze], train_bn=True, silent=True).split([model[2]])
    learn.freeze()
    learn.fit(1, 1e-2)
    assert all(model[i].running_mean.any() for i in (0, 1))


def test_the_optimizer_keeps_its_state_over_freezing():
    learn = make_learner(train_bn=True)
    learn.fit(1, 1e-2)
    learn.freeze()
    opt = learn.opt
    learn.fit(1, 1e-2)
    assert learn.opt is opt
    steps = {name: int(opt.opt.state[p]["step"]) for name, p in learn.model.named_parameters()}
    assert {name for name, n in steps.items() if n == 6} == {*BN, *INNER_BN, *LAST}
    assert set(steps.values()) == {3, 6}


def test_freezing_drops_the_gradients_of_what_is_frozen_and_no_others():
    learn = make_learner(train_bn=False)
    for parameter in learn.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    learn.freeze()
    kept = [name for name, parameter in learn.model.named_parameters() if parameter.grad is not None]
    assert kept == LAST


def test_groups_can_be_unfrozen_one_after_the_other_inside_a_fit():
    class Gradual(Callback):
        def on_epoch_begin(self, epoch):
            learn.freeze_to(-epoch - 1)
            counts.append(len(trained(learn.model)))

    counts: list[int] = []
    learn = make_learner(train_bn=False)
    learn.fit_one_cycle(3, slice(1e-4, 1e-2), callbacks=[Gradual()])
    assert counts == [2, 9, 13]
    assert len(learn.recorder.lrs) == 9


# --- rates and decays


def test_a_slice_spreads_rates_over_groups_and_the_record_is_the_last_ones():
    learn = make_learner()
    used, notes = rates_used(learn)
    learn.fit_one_cycle(2, slice(1e-4, 1e-2), callbacks=[notes])
    assert np.max(used, axis=0).tolist() == pytest.approx([1e-4, 1e-3, 1e-2])
    assert [rates[-1] for rates in used] == learn.recorder.lrs
    assert learn.recorder.group_lrs == used
    for rates in used:
        assert rates == pytest.approx([rates[2] / 100, rates[2] / 10, rates[2]])


@pytest.mark.parametrize("method", ["fit", "fit_one_cycle"])
def test_the_default_rate_is_a_tenth_for_all_groups_but_the_last(method, capsys):
    learn = make_learner(silent=False)
    used, notes = rates_used(learn)
    getattr(learn, method)(1, callbacks=[notes])
    assert np.max(used, axis=0).tolist() == pytest.approx([3e-4, 3e-4, 3e-3])
    said = "The maximum learning rate is 0.003, a tenth of it for all layer groups but the last; lr_find()"
    assert (said in capsys.readouterr().out) == (method == "fit_one_cycle")
    alone = toy_learner()
    getattr(alone, method)(1)
    assert alone.recorder.group_lrs == []
    assert max(alone.recorder.lrs) == pytest.approx(3e-3)


def test_decays_of_groups_and_their_exemptions():
    learn = make_learner(wd=[0.1, 0.2, 0.3], bn_wd=False)
    learn.create_opt(1e-2, learn.wd)
    names = {id(parameter): name for name, parameter in learn.model.named_parameters()}
    found = {names[id(p)]: group["weight_decay"] for group in learn.opt.opt.param_groups for p in group["params"]}
    wanted = {"0.weight": 0.1, "3.first.0.weight": 0.2, "3.second.weight": 0.2, "4.weight": 0.3}
    assert found == {name: wanted.get(name, 0.0) for name in names.values()}


def test_the_finder_goes_up_in_every_group_and_leaves_what_is_frozen():
    learn = make_learner(callback_fns=[BnFreeze])
    learn.freeze()
    before, state = trained(learn.model), weights(learn)
    flags = [module.training for module in learn.model.modules()]
    used, notes = rates_used(learn)
    learn.callbacks.append(notes)
    learn.lr_find(slice(1e-7, 1e-5), 1, num_it=20, stop_div=False)
    assert used[0] == pytest.approx([1e-7, 1e-6, 1e-5])
    assert used[-1] == pytest.approx([1, 1, 1])
    assert learn.recorder.finder_result.lrs == [rates[-1] for rates in used]
    assert trained(learn.model) == before
    assert changed(state, weights(learn)) == set()
    assert [module.training for module in learn.model.modules()] == flags
    learn.lr_find(slice(1e-5), slice(1e-2, 1), num_it=20, stop_div=False)
    assert learn.recorder.group_lrs[0] == pytest.approx([1e-6, 1e-6, 1e-5])
    assert learn.recorder.group_lrs[-1] == pytest.approx([1e-2, 1e-1, 1])


# --- pictures


def labels(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()] if ax.get_legend() else []


def test_groups_have_a_line_each_and_those_with_the_same_rates_share_one():
    learn = make_learner()
    learn.fit_one_cycle(2, slice(1e-4, 1e-2))
    rates, moms = learn.recorder.plot_lr(show_moms=True, return_fig=True).axes
    assert labels(rates) == [f"layer group {i}: up to {rate}" for i, rate in enumerate(("0.0001", "0.001", "0.01"))]
    assert list(rates.lines[2].get_ydata()) == learn.recorder.lrs
    assert list(moms.lines[0].get_ydata()) == learn.recorder.moms
    planned_values, moms = learn.plot_schedule(2, slice(1e-4, 1e-2), return_fig=True).axes
    for drawn, line in zip(planned_values.lines, rates.lines, strict=True):
        assert list(drawn.get_ydata()) == list(line.get_ydata())
    assert (len(moms.lines), labels(moms)) == (1, [])
    learn.fit_one_cycle(1, slice(1e-2))
    (rates,) = learn.recorder.plot_lr(return_fig=True).axes
    assert labels(rates) == ["layer groups 0, 1: up to 0.001", "layer group 2: up to 0.01"]
    learn.fit_one_cycle(1, 1e-2)
    (rates,) = learn.recorder.plot_lr(return_fig=True, skip_start=1).axes
    assert (len(rates.lines), labels(rates)) == (1, [])


def test_a_plan_may_mix_numbers_and_values_of_groups():
    learn = make_learner()
    (ax,) = learn.plot_schedule(1, lambda p: 0.1 if p else np.array([0.1, 0.2, 0.3]), return_fig=True).axes
    assert [list(line.get_ydata()) for line in ax.lines] == [[0.1, 0.1, 0.1], [0.2, 0.1, 0.1], [0.3, 0.1, 0.1]]


# --- runs that are kept


def test_a_frozen_run_that_was_killed_goes_on_to_the_bit(tmp_path):
    def begin(path, at=None):
        learn = make_learner(path=path, callbacks=[FailsAt(at)], callback_fns=[BnFreeze], train_bn=False)
        learn.freeze_to(1)
        learn.fit_one_cycle(2, slice(1e-4, 1e-2), checkpoint="head", every=1)
        learn.callbacks[0].at = None if at is None else at - 6
        learn.unfreeze()
        learn.fit_one_cycle(2, slice(1e-4, 1e-2), checkpoint="all", every=1)
        return learn

    alone = begin(tmp_path / "alone")
    for at in (4, 4 + 6):
        with pytest.raises(OSError, match="gone"):
            begin(tmp_path, at)
    resumed = begin(tmp_path)
    assert changed(weights(alone), weights(resumed)) == set()
    assert resumed.recorder.group_lrs == alone.recorder.group_lrs
    assert trained(resumed.model) == trained(alone.model)


def test_a_run_with_other_parts_frozen_is_another_run(tmp_path):
    learn = make_learner(path=tmp_path)
    learn.freeze()
    learn.fit(1, 1e-2, checkpoint="run")
    learn.unfreeze()
    before = weights(learn)
    message = r"its model has frozen = \['0.weight', '0.bias'.*\], and this run has \[\].*freeze_to, unfreeze"
    with pytest.raises(MinifastError, match=message):
        learn.fit(1, 1e-2, checkpoint="run")
    assert len(trained(learn.model)) == 13
    assert changed(before, weights(learn)) == set()
    fresh = make_learner(path=tmp_path)
    fresh.freeze()
    fresh.resume("run")
    assert changed(before, weights(fresh)) == set()


def test_a_saved_model_loads_with_its_optimizer_whatever_is_frozen(tmp_path):
    learn = make_learner(path=tmp_path)
    learn.freeze()
    learn.fit(1, 1e-2)
    learn.save("frozen")
    fresh = make_learner(path=tmp_path).load("frozen")
    assert changed(weights(learn), weights(fresh)) == set()
    fresh.fit(1, 1e-2)
    assert len(trained(fresh.model)) == 13


def test_groups_go_with_data_of_any_kind():
    items = [(torch.randn(8, 10), torch.randn(8, 1))] * 3
    learn = Learner(DataBunch(items, device="cpu"), simple_ann(10, 1), loss_func=nn.MSELoss(), silent=True)
    learn.split(lambda model: model[3]).freeze()
    learn.fit(1, 1e-2)
    assert trained(learn.model) == ["3.weight", "3.bias"]
