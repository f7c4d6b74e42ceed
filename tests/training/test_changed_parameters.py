"""The optimizer trains the parameters that the model and the loss have when a fit starts, as plain torch would."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from conftest import FailsAt, slow, toy_learner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minifast import AccumulateScheduler, Callback, DataBunch, Learner, LearnerCallback, OptimWrapper
from minifast.training.groups import regroup, split_model, split_no_decay

optim = torch.optim
OPTIMIZERS = {
    "SGD": optim.SGD,
    "momentum": partial(optim.SGD, momentum=0.9),
    "nesterov": partial(optim.SGD, momentum=0.9, nesterov=True, dampening=0.0),
    "Adam": partial(optim.Adam, betas=(0.8, 0.95)),
    "AdamW": optim.AdamW,
    "RMSprop": partial(optim.RMSprop, momentum=0.5, alpha=0.9),
    "NAdam": optim.NAdam,
    "Adagrad": partial(optim.Adagrad, lr_decay=0.1),
}
CHANGES = ["head", "layer", "weight", "more", "fewer"]
few_examples = settings(deadline=None, max_examples=25)


def batches(n: int = 3) -> list:
    generator = torch.Generator().manual_seed(7)
    return [(torch.randn(8, 4, generator=generator), torch.randint(2, (8,), generator=generator)) for _ in range(n)]


def make_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def make_learner(model: nn.Module, **options) -> Learner:
    data = DataBunch(batches(), device="cpu", classes=["a", "b"])
    return Learner(data, model, **{"loss_func": nn.CrossEntropyLoss(), "silent": True} | options)


def plain_steps(model: nn.Module, opt: optim.Optimizer, loss=None, epochs: int = 1) -> None:
    loss = loss or nn.CrossEntropyLoss()
    for _ in range(epochs):
        for x, y in batches():
            loss(model(x), y).backward()
            opt.step()
            opt.zero_grad()


def add_state(opt: optim.Optimizer, model: nn.Module) -> None:
    """Give new parameters the state that Adagrad makes when it is made; older versions of torch do not do it later."""
    if isinstance(opt, optim.Adagrad):
        for p in set(model.parameters()) - set(opt.state):
            opt.state[p] = {"step": torch.tensor(0.0), "sum": torch.zeros_like(p)}


def assert_same(model: nn.Module, other: nn.Module) -> None:
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5, msg=name)


# --- opt_func is used as it is


@few_examples
@given(st.sampled_from(sorted(OPTIMIZERS)), st.sampled_from([0.0, 5e-4, 0.1]), st.booleans())
def test_a_weight_decay_of_the_optimizer_is_applied_as_torch_does(name, weight_decay, as_function):
    opt_func = partial(OPTIMIZERS[name], weight_decay=weight_decay)
    given_func = (lambda params, lr: opt_func(params, lr=lr)) if as_function and weight_decay else opt_func
    model = make_model()
    other = copy.deepcopy(model)
    make_learner(model, opt_func=given_func).fit(2, 1e-2)
    plain_steps(other, opt_func(other.parameters(), lr=1e-2), epochs=2)
    assert_same(model, other)


class ReplaceHead(LearnerCallback):
    """Replace the last layer when an epoch begins."""

    def on_epoch_begin(self, epoch: int) -> None:
        if epoch == 1:
            torch.manual_seed(1)
            self.learn.model[2] = nn.Linear(5, 2)


@few_examples
@given(st.sampled_from(sorted(OPTIMIZERS)), st.booleans())
def test_a_layer_that_a_callback_replaces_within_a_fit_is_trained(name, split):
    model = make_model()
    other = copy.deepcopy(model)
    learn = make_learner(model, opt_func=OPTIMIZERS[name], wd=0.0, callbacks=ReplaceHead())
    if split:
        learn.split(lambda model: [model[2]])
    learn.fit(3, 1e-2)
    opt = OPTIMIZERS[name](other.parameters(), lr=1e-2, weight_decay=0.0)
    plain_steps(other, opt)
    torch.manual_seed(1)
    other[2] = nn.Linear(5, 2)
    opt.param_groups[0]["params"][2:] = []
    opt.add_param_group({"params": list(other[2].parameters())})
    add_state(opt, other)
    plain_steps(other, opt, epochs=2)
    assert_same(model, other)


@few_examples
@given(st.sampled_from(sorted(OPTIMIZERS)), st.sampled_from([0.0, 0.01, 0.3]))
def test_a_weight_decay_of_the_learner_is_decoupled(name, wd):
    model = make_model()
    other = copy.deepcopy(model)
    make_learner(model, opt_func=OPTIMIZERS[name], wd=wd).fit(1, 1e-2)
    opt = OPTIMIZERS[name](other.parameters(), lr=1e-2, weight_decay=0.0)
    for x, y in batches():
        nn.functional.cross_entropy(other(x), y).backward()
        with torch.no_grad():
            for p in other.parameters():
                p.mul_(1 - 1e-2 * wd)
        opt.step()
        opt.zero_grad()
    assert_same(model, other)


@pytest.mark.parametrize("fit", [lambda learn: learn.fit(1), lambda learn: learn.lr_find(num_it=3)])
def test_a_weight_decay_of_the_learner_that_differs_is_a_contradiction(fit):
    for options in ({"wd": 0.01}, {"wd": 0.0}):
        learn = make_learner(make_model(), opt_func=partial(optim.SGD, weight_decay=5e-4), **options)
        with pytest.raises(ValueError, match=r"`wd` is .*, but the optimizer was made with weight_decay=0\.0005"):
            fit(learn)
    fit(make_learner(make_model(), opt_func=partial(optim.SGD, weight_decay=5e-4), wd=5e-4))
    with pytest.raises(ValueError, match=r"`wd` is 0\.1, but"):
        make_learner(make_model(), opt_func=partial(optim.SGD, weight_decay=5e-4)).fit(1, wd=0.1)


@pytest.mark.parametrize("opt_func", [partial(optim.SGD, lr=0.1), lambda params, lr: optim.SGD(params, lr=0.1)])
def test_a_learning_rate_of_the_optimizer_is_a_contradiction(opt_func):
    with pytest.raises(ValueError, match=r"`opt_func` sets lr=0\.1, but the fit sets the learning rate to 0\.5"):
        make_learner(make_model(), opt_func=opt_func).fit(1, 0.5)
    make_learner(make_model(), opt_func=opt_func).fit(1, 0.1)


def test_bn_wd_false_exempts_groups_of_a_given_weight_decay():
    learn = make_learner(make_model(), opt_func=partial(optim.SGD, weight_decay=0.5), bn_wd=False)
    learn.fit(1)
    learn.fit(1)
    assert [group["weight_decay"] for group in learn.opt.opt.param_groups] == [0.5, 0.0]
    assert learn.opt.wd == 0.5


class Free(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.lstm = nn.LSTM(4, 4)
        self.bilinear = nn.Bilinear(4, 4, 4)
        self.norm = nn.RMSNorm((3, 4)) if hasattr(nn, "RMSNorm") else nn.LayerNorm((3, 4))
        self.wide = nn.LayerNorm((3, 4))
        self.bias = nn.Parameter(torch.zeros(1, 4, 1))
        self.scale = nn.Parameter(torch.ones(()))


def test_exempt_are_biases_norms_and_all_of_fewer_than_two_dimensions():
    model = Free()
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {names[id(p)] for p in split_no_decay(model)[0]}
    assert decayed == {
        "attention.in_proj_weight", "attention.out_proj.weight", "attention.bias_k", "attention.bias_v",
        "lstm.weight_ih_l0", "lstm.weight_hh_l0", "bilinear.weight",
    } - {"attention.bias_k", "attention.bias_v"}  # fmt: skip


# --- parameters that join, leave or are replaced


@few_examples
@given(
    st.sampled_from(sorted(OPTIMIZERS)), st.sampled_from(["head", "layer", "weight", "more", "fewer"]), st.booleans()
)
def test_a_changed_model_trains_as_with_plain_torch_and_what_stays_keeps_its_state(name, change, bn_wd):
    def changed(model: nn.Sequential) -> None:
        torch.manual_seed(1)
        if change == "head":
            model[2] = nn.Linear(5, 2)
        elif change == "layer":
            model[0] = nn.Linear(4, 5)
        elif change == "weight":
            model[2].weight = nn.Parameter(torch.randn(2, 5))
        elif change == "more":
            model.append(nn.Linear(2, 2))
        else:
            model[0] = nn.Linear(4, 5, bias=False)

    model = make_model()
    other = copy.deepcopy(model)
    opt_func = partial(OPTIMIZERS[name], weight_decay=0.0)
    learn = make_learner(model, opt_func=opt_func, bn_wd=bn_wd)
    learn.fit(1, 1e-2)
    opt = opt_func(other.parameters(), lr=1e-2)
    plain_steps(other, opt)
    changed(model)
    changed(other)
    learn.fit(1, 1e-2)
    present = set(other.parameters())
    for p in [p for p in opt.state if p not in present]:
        del opt.state[p]
    opt.param_groups[0]["params"] = list(other.parameters())
    add_state(opt, other)
    plain_steps(other, opt)
    assert_same(model, other)


@pytest.mark.parametrize("trained", [False, True])
def test_a_model_put_in_place_is_trained(trained):
    learn = make_learner(make_model())
    if trained:
        learn.fit(1)
    learn.model = nn.Linear(4, 2)
    other = copy.deepcopy(learn.model)
    learn.fit(1, 1e-2)
    assert not torch.equal(learn.model.weight, other.weight)
    assert learn.layer_groups == [learn.model]


def grouped(model: nn.Module) -> Learner:
    return make_learner(model, opt_func=optim.SGD, wd=0.0).split(lambda model: [model[2]])


def test_a_new_head_has_the_learning_rate_of_its_layer_group():
    learn = grouped(make_model())
    learn.fit(1, slice(1e-3, 1e-1))
    torch.manual_seed(3)
    learn.model[2] = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2))
    learn.fit(1, slice(1e-3, 1e-1))
    rates = {id(p): group["lr"] for group in learn.opt.opt.param_groups for p in group["params"]}
    assert {name: rates[id(p)] for name, p in learn.model.named_parameters()} == {
        "0.weight": 1e-3, "0.bias": 1e-3, "2.0.weight": 1e-1, "2.0.bias": 1e-1, "2.1.weight": 1e-1, "2.1.bias": 1e-1,
    }  # fmt: skip
    learn.freeze()
    assert [p.requires_grad for p in learn.model.parameters()] == [False] * 2 + [True] * 4


def test_an_adapter_joins_the_layer_group_around_it():
    learn = grouped(make_model())
    learn.model[0].adapter = nn.Linear(4, 4)
    learn.fit(1, slice(1e-3, 1e-1))
    assert [len(list(group.parameters())) for group in learn.layer_groups] == [4, 2]


def test_a_model_of_the_same_names_keeps_the_layer_groups_and_another_is_refused():
    learn = grouped(make_model())
    learn.model = make_model(1)
    learn.fit(1, slice(1e-3, 1e-1))
    assert [len(list(group.parameters())) for group in learn.layer_groups] == [2, 2]
    learn.model = nn.Linear(4, 2)
    before = learn.model.weight.detach().clone()
    with pytest.raises(ValueError, match=r"match none of the 2 layer groups; call learn\.split"):
        learn.fit(1)
    assert torch.equal(before, learn.model.weight)


def test_a_layer_that_left_leaves_its_group_empty():
    learn = grouped(nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 2)))
    learn.fit(1)
    learn.model[2] = nn.Identity()
    learn.fit(1)
    assert [len(list(group.parameters())) for group in learn.layer_groups] == [2, 0]
    assert len(learn.opt.opt.param_groups) == 1


def test_groups_that_did_not_change_stay_the_same_objects():
    model = make_model()
    groups = split_model(model, [model[2]])
    assert regroup(model, groups, {}) is groups


def test_an_optimizer_of_your_own_that_lacks_parameters_is_refused():
    learn = make_learner(make_model())
    learn.opt = OptimWrapper(optim.SGD(learn.model[2].parameters(), lr=0.1))
    with pytest.raises(ValueError, match="does not have 2 of the parameters to train"):
        learn.fit(1)
    learn.model[0].requires_grad_(False)
    learn.fit(1)


def test_hooks_and_own_attributes_stay_when_parameters_change():
    learn, steps = make_learner(make_model()), []
    learn.create_opt(1e-2)
    learn.opt.opt.register_step_post_hook(lambda *_: steps.append(1))
    learn.model[2] = nn.Linear(5, 2)
    learn.fit(1)
    assert len(steps) == 3


# --- parameters of the loss function


class Weighted(nn.Module):
    """A loss with a learned scale."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.5]))
        self.frozen = nn.Parameter(torch.tensor([1.0]), requires_grad=False)

    def forward(self, output, target):
        return nn.functional.cross_entropy(output * self.scale, target) + self.scale.square().sum() * self.frozen.sum()


@pytest.mark.parametrize("wrap", [lambda loss: loss, lambda loss: loss.forward, lambda loss: partial(loss)])
def test_parameters_of_the_loss_are_trained_as_with_plain_torch(wrap):
    model, loss = make_model(), Weighted()
    other, other_loss = copy.deepcopy((model, loss))
    make_learner(model, loss_func=wrap(loss), opt_func=optim.Adam, wd=0.0).fit(2, 1e-2)
    plain_steps(other, optim.Adam([*other.parameters(), other_loss.scale], lr=1e-2), other_loss, epochs=2)
    assert_same(model, other)
    torch.testing.assert_close(loss.scale, other_loss.scale)
    assert loss.frozen.item() == 1.0


def test_lr_find_saves_and_resumed_runs_hold_the_parameters_of_the_loss(tmp_path):
    def learner() -> Learner:
        return make_learner(make_model(), loss_func=Weighted(), path=tmp_path)

    learn = learner()
    learn.fit(1, 1e-2)
    before = learn.loss_func.scale.item()
    learn.lr_find(num_it=5)
    learn.check()
    assert learn.loss_func.scale.item() == before != 1.5
    for with_opt in (True, False):
        learn.save("model", with_opt=with_opt)
        fresh = learner()
        fresh.load("model")
        assert fresh.loss_func.scale.item() == before
    whole = learner()
    whole.fit(2, 1e-2)
    part = learner()

    class Stops(Callback):
        _order = 10_000
        armed = True

        def on_batch_end(self, epoch, num_batch, train):
            if Stops.armed and epoch == 1 and num_batch == 1:
                raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        part.fit(2, 1e-2, checkpoint="run", every=1, callbacks=Stops())
    Stops.armed = False
    resumed = learner()
    resumed.fit(2, 1e-2, checkpoint="run", every=1, callbacks=Stops())
    assert torch.equal(resumed.loss_func.scale, whole.loss_func.scale)
    assert_same(resumed.model, whole.model)


def scale_after(loss_func, sizes, **options) -> float:
    """Train on batches of these sizes and return the scale of the loss."""
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    model = make_model()
    data = DataBunch(list(zip(x.split(sizes), y.split(sizes), strict=True)), device="cpu", classes=["a", "b"])
    learn = Learner(data, model, optim.SGD, loss_func=loss_func, wd=0.0, silent=True)
    learn.fit(1, 0.1, **options)
    return loss_func.scale.item()


def test_an_accumulated_step_of_the_losss_parameters_is_that_of_one_batch():
    several = scale_after(Weighted(), [3, 8, 13], callbacks=AccumulateScheduler(n_step=3))
    assert several == pytest.approx(scale_after(Weighted(), [24]), rel=1e-5)


def test_the_norm_that_is_clipped_includes_the_losss_parameters():
    model, loss = make_model(), Weighted()
    x, y = batches()[0]
    loss(model(x), y).backward()
    norm = nn.utils.clip_grad_norm_([*model.parameters(), loss.scale], 0.01)
    assert norm > 0.1
    expected = 1.5 - 0.1 * loss.scale.grad.item()
    learn = Learner(
        DataBunch([(x, y)], device="cpu"), make_model(), optim.SGD, loss_func=Weighted(), wd=0.0, silent=True
    )
    learn.clip_grad(0.01).fit(1, 0.1)
    assert learn.loss_func.scale.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("wrap", [lambda loss: loss, *slow(lambda loss: loss.forward)])
@pytest.mark.parametrize("at", [1, *slow(2, 4)])
def test_a_resumed_run_has_the_accumulated_gradients_of_model_and_loss(tmp_path, at, wrap):
    def run(path, fails_at, **options) -> list[float]:
        loss = Weighted()
        data = DataBunch(batches(3), device="cpu", classes=["a", "b"])
        learn = Learner(data, make_model(), loss_func=wrap(loss), path=path, silent=True)
        learn.fit(2, 1e-2, callbacks=[AccumulateScheduler(n_step=2), FailsAt(fails_at)], **options)
        return [loss.scale.item(), *learn.recorder.raw_losses, *learn.model[0].bias.tolist()]

    plain = run(tmp_path / "plain", None)
    with pytest.raises(OSError, match="gone"):
        run(tmp_path, at, checkpoint="run", every=1)
    assert run(tmp_path, None, checkpoint="run", every=1) == plain


def test_restoring_after_nan_restores_the_losss_parameters():
    class Breaks(Callback):
        def on_backward_begin(self, epoch, num_batch, last_loss):
            if epoch == 1 and num_batch == 2:
                return {"last_loss": last_loss * float("nan")}
            return None

    whole = make_learner(make_model(), loss_func=Weighted())
    whole.fit(1, 1e-2)
    broken = make_learner(make_model(), loss_func=Weighted())
    with pytest.warns(UserWarning, match="are restored"):
        broken.fit(2, 1e-2, callbacks=Breaks(), on_nan="restore")
    assert broken.loss_func.scale.item() == whole.loss_func.scale.item()


# --- lazy modules


def lazy() -> nn.Sequential:
    return nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Dropout(0.2), nn.LazyLinear(2))


@pytest.mark.parametrize(
    "first",
    [
        lambda learn: learn.lr_find(num_it=5),
        lambda learn: learn.check(),
        lambda learn: learn.create_opt(1e-2),
        lambda learn: learn.summary(),
    ],
)
def test_lazy_modules_train_the_same_whatever_came_before(first, tmp_path):
    def learner() -> Learner:
        torch.manual_seed(0)
        return make_learner(lazy(), path=tmp_path)

    plain = learner()
    plain.fit(1, 1e-2)
    learn = learner()
    state = torch.get_rng_state()
    first(learn)
    assert torch.equal(state, torch.get_rng_state())
    learn.fit(1, 1e-2, checkpoint="lazy", resume=False, on_nan="restore")
    assert_same(learn.model, plain.model)


def test_layer_groups_of_lazy_modules_are_frozen_before_the_first_batch():
    learn = make_learner(lazy()).split(lambda model: [model[3]]).freeze()
    before = learn.model[0].weight.clone()
    head = learn.model[3].weight.clone()
    learn.fit(1, slice(1e-3, 1e-2))
    assert torch.equal(learn.model[0].weight, before)
    assert not torch.equal(learn.model[3].weight, head)
    assert learn.opt.read("lr") == [1e-3, 1e-2]
    learn.unfreeze().fit(1, 1e-2)
    assert not torch.equal(learn.model[0].weight, before)


def test_lazy_modules_are_initialized_and_saved_before_the_first_batch(tmp_path):
    learn = make_learner(lazy(), path=tmp_path).init(nn.init.ones_)
    assert (learn.model[0].weight == 1).all()
    other = make_learner(lazy(), path=tmp_path)
    other.save("model")
    learn.load("model")
    assert_same(learn.model, other.model)


def test_a_file_is_loaded_into_lazy_modules(tmp_path):
    learn = make_learner(lazy(), path=tmp_path)
    learn.fit(1)
    learn.save("model")
    fresh = make_learner(lazy(), path=tmp_path)
    fresh.load("model")
    assert_same(fresh.model, learn.model)
    fresh.fit(1)


# --- loading does not bring a schedule along


@pytest.mark.parametrize("fresh", [False, True])
def test_the_momentum_of_a_schedule_does_not_ride_along(tmp_path, fresh):
    class Saves(Callback):
        def on_batch_end(self, num_batch, train):
            if num_batch == 1:
                learn.save("middle")

    learn = make_learner(make_model(), opt_func=partial(optim.SGD, momentum=0.9), path=tmp_path, callbacks=[Saves()])
    learn.fit_one_cycle(1, 1e-2)
    assert torch.load(tmp_path / "models" / "middle.pth")["opt"]["opt"]["param_groups"][0]["momentum"] != 0.9
    if fresh:
        learn = make_learner(make_model(), opt_func=partial(optim.SGD, momentum=0.9), path=tmp_path)
    learn.load("middle")
    assert learn.opt.mom == 0.9
    learn.callbacks = []
    learn.fit(1)
    assert learn.recorder.moms == [0.9] * 3


def test_settings_of_a_torch_scheduler_are_not_saved():
    learn = toy_learner()
    learn.create_opt(1e-2)
    torch.optim.lr_scheduler.StepLR(learn.opt.opt, 1)
    assert "initial_lr" in learn.opt.opt.param_groups[0]
    assert "initial_lr" not in learn.opt.state_dict()["opt"]["param_groups"][0]


def test_a_copy_does_not_share_what_the_optimizer_counts():
    class Counting(optim.SGD):
        def __init__(self, params, lr):
            super().__init__(params, lr=lr)
            self.counts = {"steps": 0}
            self.first = [self.param_groups[0]["params"][0]]

        def step(self, closure=None):
            self.counts["steps"] += 1
            return super().step(closure)

    learn = make_learner(make_model(), opt_func=Counting)
    learn.fit(1)
    learn.lr_find(num_it=5)
    assert learn.opt.opt.counts == {"steps": 3}
    assert learn.opt.copy().opt.first[0] is learn.model[0].weight


@few_examples
@given(st.sampled_from(sorted(OPTIMIZERS)))
def test_layers_that_are_unfrozen_later_train_as_with_plain_torch(name):
    model = make_model()
    other = copy.deepcopy(model)
    opt_func = partial(OPTIMIZERS[name], weight_decay=0.0)
    learn = make_learner(model, opt_func=opt_func)
    opt = opt_func(other.parameters(), lr=1e-2)
    for one in (model, other):
        one[0].requires_grad_(False)
    learn.fit(1, 1e-2)
    plain_steps(other, opt)
    for one in (model, other):
        one[0].requires_grad_(True)
    learn.fit(1, 1e-2)
    plain_steps(other, opt)
    assert_same(model, other)
