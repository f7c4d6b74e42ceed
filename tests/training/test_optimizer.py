"""OptimWrapper: lr, mom and wd per layer group, around every torch optimizer."""

from __future__ import annotations

import io
from functools import partial

import numpy as np
import pytest
import torch
from conftest import toy_data, toy_learner
from torch import nn

from minifast import AdamW, Learner, OptimWrapper, simple_ann
from minifast.training.groups import per_group, split_no_decay, spread

SGD, Adam = torch.optim.SGD, torch.optim.Adam
MOMENTUM_SGD = partial(SGD, momentum=0.9)
OPTIMIZERS = {
    "SGD": SGD,
    "SGD with momentum": MOMENTUM_SGD,
    "RMSprop": torch.optim.RMSprop,
    "Adagrad": torch.optim.Adagrad,
    "Adadelta": torch.optim.Adadelta,
    "Adam": Adam,
    "Adamax": torch.optim.Adamax,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "AdamW": AdamW,
    "torch's AdamW": torch.optim.AdamW,
    "Rprop": torch.optim.Rprop,
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(4, 3)


def three_groups() -> list[nn.Module]:
    return [nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)]


def give_gradients(model: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


# --- reading and setting


@every_optimizer
def test_lr_and_wd_are_read_and_set(name) -> None:
    opt = OptimWrapper.create(OPTIMIZERS[name], 0.1, three_groups(), wd=0.02)
    assert (opt.lr, opt.wd) == (0.1, 0.02)
    opt.lr, opt.wd = 0.3, 0.04
    assert (opt.lr, opt.wd) == (0.3, 0.04)
    assert opt.read("lr") == [0.3] * 3
    assert opt.read("wd") == [0.04] * 3
    assert all(group["lr"] == 0.3 for group in opt.opt.param_groups)


def test_a_value_per_layer_group_is_set_and_the_last_one_read() -> None:
    opt = OptimWrapper.create(AdamW, [0.1, 0.2, 0.3], three_groups(), wd=[0.0, 0.1, 0.2])
    assert opt.read("lr") == [0.1, 0.2, 0.3]
    assert opt.lr == 0.3
    assert opt.read("wd") == [0.0, 0.1, 0.2]
    opt.lr = np.array([1.0, 2.0, 3.0])
    opt.mom = (0.7, 0.8, 0.9)
    assert opt.read("lr") == [1.0, 2.0, 3.0]
    assert opt.read("mom") == [0.7, 0.8, 0.9]
    assert opt.mom == 0.9
    assert [group["betas"] for group in opt.opt.param_groups] == [(0.7, 0.99), (0.8, 0.99), (0.9, 0.99)]


@pytest.mark.parametrize("name", ["lr", "mom", "wd"])
@pytest.mark.parametrize("values", [[0.1], [0.1, 0.2], [0.1] * 4])
def test_another_number_of_values_than_layer_groups_is_refused(name, values) -> None:
    opt = OptimWrapper.create(AdamW, 0.1, three_groups())
    with pytest.raises(ValueError, match=f"{name} has {len(values)} values for 3 layer groups"):
        opt.write(name, values)


@pytest.mark.parametrize("value", ["0.1", None, [0.1, "0.2", 0.3], True])
def test_what_is_no_number_is_refused(value) -> None:
    opt = OptimWrapper.create(AdamW, 0.1, three_groups())
    with pytest.raises(TypeError, match="must be a number, got"):
        opt.lr = value


@pytest.mark.parametrize("name", ["lr", "mom", "wd"])
def test_what_is_not_finite_is_refused(name) -> None:
    opt = OptimWrapper.create(AdamW, 0.1, three_groups())
    for value in ([0.1, float("nan"), 0.1], float("nan"), float("inf"), np.float64("nan")):
        with pytest.raises(ValueError, match=f"`{name}` must be finite, got .*"):
            opt.write(name, value)


@pytest.mark.parametrize(
    ("name", "mom", "works"),
    [
        ("AdamW", 0.9, True),
        ("Adam", 0.9, True),
        ("Adamax", 0.9, True),
        ("NAdam", 0.9, True),
        ("RAdam", 0.9, True),
        ("SGD with momentum", 0.9, True),
        ("SGD", 0.0, False),
        ("RMSprop", 0.0, False),
        ("Adagrad", 0.0, False),
        ("Adadelta", 0.0, False),
        ("Rprop", 0.0, False),
    ],
)
def test_momentum_is_betas_or_momentum_or_none(name, mom, works) -> None:
    opt = OptimWrapper.create(OPTIMIZERS[name], 0.1, [linear()])
    assert (opt.mom, opt.has_momentum) == (mom, works)
    if works:
        opt.mom = 0.85
        assert opt.mom == 0.85
        group = opt.opt.param_groups[0]
        assert (group["betas"][0] if "betas" in group else group["momentum"]) == 0.85


@pytest.mark.parametrize("name", ["Adagrad", "Adadelta", "Rprop"])
def test_momentum_cannot_be_set_where_there_is_none(name) -> None:
    opt = OptimWrapper.create(OPTIMIZERS[name], 0.1, [linear()])
    with pytest.raises(ValueError, match=f"{name} has no momentum to set; use SGD"):
        opt.mom = 0.9
    assert "momentum" not in opt.opt.param_groups[0]


def test_a_layer_group_without_parameters_keeps_its_place() -> None:
    groups = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)]
    opt = OptimWrapper.create(AdamW, [0.1, 0.2, 0.3], groups)
    assert opt.lr == 0.3
    before = opt.read("lr")
    opt.lr = [1.0, 2.0, 3.0]
    opt.write("lr", before)  # what was read can be written back
    assert [group["lr"] for group in opt.opt.param_groups] == [0.1, 0.3]


def test_training_with_a_layer_group_without_parameters() -> None:
    model = simple_ann(10, 2, 8)  # flatten, linear, ReLU, linear
    learn = Learner(toy_data(), model, layer_groups=list(model), silent=True)
    learn.fit_one_cycle(1, slice(1e-3, 1e-2))
    assert len(learn.recorder.lrs) == 3


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameters to train"):
        OptimWrapper.create(AdamW, 0.1, [nn.ReLU()])


@pytest.mark.parametrize(
    ("lr", "n", "rates"),
    [
        (0.1, 3, 0.1),
        (1, 3, 1.0),
        (slice(1e-4, 1e-2), 3, [1e-4, 1e-3, 1e-2]),
        (slice(1e-4, 1e-2), 1, 1e-2),
        (slice(1.0), 3, [0.1, 0.1, 1.0]),
        (slice(1.0), 1, 1.0),
        ([0.1, 0.2], 2, [0.1, 0.2]),
        (np.array([0.1, 0.2]), 2, [0.1, 0.2]),
        (np.float32(0.5), 2, 0.5),
    ],
)
def test_rates_are_spread_over_layer_groups(lr, n, rates) -> None:
    assert spread(lr, n) == pytest.approx(rates)


@pytest.mark.parametrize(
    ("lr", "error", "message"),
    [
        (0, ValueError, "`lr` must be positive, got 0"),
        (-1e-3, ValueError, "`lr` must be positive, got -0.001"),
        (float("nan"), ValueError, "`lr` must be finite, got nan"),
        ("1e-3", TypeError, "`lr` must be a number, got '1e-3' of type str"),
        (None, TypeError, "`lr` must be a learning rate, got None"),
        (True, TypeError, "`lr` must be a number, got True of type bool"),
        (slice(None), TypeError, "`lr` must be a number, got None of type NoneType"),
        (slice(0, 1), ValueError, "`lr` must be positive, got 0"),
        (slice(1e-3, "x"), TypeError, "`lr` must be a number, got 'x' of type str"),
        ([0.1], ValueError, "lr has 1 values for 2 layer groups"),
        ([0.1, -0.1], ValueError, r"`lr` must be at least 0, got -0\.1"),
        ([0.1, "x"], TypeError, "`lr` must be a number, got 'x' of type str"),
    ],
)
def test_rates_that_are_none_are_refused(lr, error, message) -> None:
    with pytest.raises(error, match=message):
        spread(lr, 2)


# --- weight decay


def net_with_norms() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 2)
    )


def test_what_is_exempt_from_decay_are_norms_and_the_biases_of_linear_and_conv() -> None:
    net = net_with_norms()
    decayed, exempt = split_no_decay(net)
    assert {id(p) for p in decayed} == {id(net[0].weight), id(net[5].weight)}
    assert len(decayed) + len(exempt) == len(list(net.parameters()))


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adam"])
@pytest.mark.parametrize("bn_wd", [True, False])
def test_bn_wd_false_decays_weights_only(name, bn_wd) -> None:
    net = net_with_norms()
    for p in net.parameters():
        nn.init.ones_(p)
    opt = OptimWrapper.create(OPTIMIZERS[name], 0.1, [net], wd=0.5, bn_wd=bn_wd)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    decayed, exempt = split_no_decay(net)
    assert opt.wd == 0.5
    assert all(torch.allclose(p, torch.tensor(0.95)) for p in decayed)
    assert all(torch.allclose(p, torch.tensor(0.95 if bn_wd else 1.0)) for p in exempt)


def test_bn_wd_false_keeps_one_value_a_layer_group() -> None:
    groups = [net_with_norms(), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False)]
    opt = OptimWrapper.create(AdamW, [0.1, 0.2, 0.3], groups, wd=[0.01, 0.02, 0.03], bn_wd=False)
    assert opt.read("lr") == [0.1, 0.2, 0.3]
    opt.lr = [1.0, 2.0, 3.0]
    assert [group["lr"] for group in opt.opt.param_groups] == [1.0, 1.0, 2.0, 3.0]
    assert [group["weight_decay"] for group in opt.opt.param_groups] == [0.01, 0.0, 0.0, 0.03]


@pytest.mark.parametrize("name", ["SGD", "SGD with momentum", "RMSprop", "Adagrad", "Adam", "NAdam", "RAdam", "Adamax"])
def test_decay_is_decoupled_for_every_optimizer(name) -> None:
    lr, wd = 0.1, 0.3
    ours, plain = linear(), linear()
    opt = OptimWrapper.create(OPTIMIZERS[name], lr, [ours], wd=wd)
    reference = OPTIMIZERS[name](plain.parameters(), lr=lr)
    for i in range(3):
        give_gradients(ours, i)
        give_gradients(plain, i)
        with torch.no_grad():
            for p in plain.parameters():
                p.mul_(1 - lr * wd)
        opt.step()
        reference.step()
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-7)


def test_the_default_is_torchs_adamw() -> None:
    ours, plain = linear(), linear()
    opt = OptimWrapper.create(AdamW, 1e-2, [ours], wd=0.1)
    reference = torch.optim.AdamW(plain.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1, foreach=False)
    for i in range(5):
        give_gradients(ours, i)
        give_gradients(plain, i)
        opt.step()
        reference.step()
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-7)


def test_one_step_of_the_default_by_hand() -> None:
    layer = linear()
    lr, wd, eps = 1e-2, 0.1, 1e-8
    opt = OptimWrapper.create(AdamW, lr, [layer], wd=wd)
    give_gradients(layer)
    before, gradient = layer.weight.detach().clone(), layer.weight.grad.clone()
    opt.step()
    mean = 0.1 * gradient / (1 - 0.9)
    square = 0.01 * gradient**2 / (1 - 0.99)
    by_hand = before * (1 - lr * wd) - lr * mean / (square.sqrt() + eps)
    assert torch.allclose(layer.weight, by_hand, atol=1e-7)


def test_two_different_weight_decays_are_a_contradiction() -> None:
    with pytest.raises(ValueError, match=r"`wd` is 0.5, but the optimizer was made with weight_decay=7 .*only one"):
        OptimWrapper.create(partial(SGD, weight_decay=7.0), 0.1, [linear()], wd=0.5)


def test_weights_without_a_gradient_stay_as_they_are() -> None:
    for name in ("SGD", "AdamW"):
        layer = linear()
        opt = OptimWrapper.create(OPTIMIZERS[name], 0.1, [layer], wd=0.5)
        before = layer.weight.detach().clone()
        opt.step()
        assert torch.equal(layer.weight, before)


def test_a_decay_that_is_set_later_is_used() -> None:
    for name in ("SGD", "AdamW"):
        layer = linear()
        before = layer.weight.detach().clone()
        opt = OptimWrapper.create(OPTIMIZERS[name], 0.1, [layer], wd=0.0)
        opt.wd = 0.5
        layer.weight.grad = torch.zeros_like(layer.weight)
        opt.step()
        assert torch.allclose(layer.weight, before * 0.95)


# --- the fused form


def test_the_fused_form_is_taken_where_it_is_and_left_where_told() -> None:
    assert OptimWrapper.create(AdamW, 0.1, [linear()]).opt.param_groups[0]["fused"]
    told = OptimWrapper.create(partial(AdamW, foreach=True), 0.1, [linear()]).opt.param_groups[0]
    assert told["foreach"]
    assert not told["fused"]
    assert OptimWrapper.create(partial(AdamW, fused=False), 0.1, [linear()]).opt.param_groups[0]["fused"] is False


def test_an_optimizer_that_knows_no_fused_form_is_made_without() -> None:
    class Own(torch.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(group["lr"] * p.grad)

    layer = linear()
    opt = OptimWrapper.create(Own, 0.5, [layer], wd=0.1)
    before = layer.bias.detach().clone()
    give_gradients(layer)
    opt.step()
    assert torch.allclose(layer.bias, before * 0.95 - 0.5 * layer.bias.grad)
    learn = toy_learner(opt_func=lambda params, lr: Own(params, lr))
    learn.fit_one_cycle(1, 0.1)
    assert learn.recorder.moms == [0.0] * 3


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD", "Adagrad"])
def test_the_plain_form_is_taken_where_torch_refuses_the_fused_one(name) -> None:
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.real = nn.Parameter(torch.ones(2))
            self.complex = nn.Parameter(torch.ones(2, dtype=torch.complex64))

    model = Complex()
    opt = OptimWrapper.create(OPTIMIZERS[name], 0.1, [model])
    assert not opt.opt.param_groups[0].get("fused")
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    assert (model.complex != 1).all()
    assert (model.real != 1).all()


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # torch's own, of its Adagrad
def test_sparse_gradients_train_where_the_torch_optimizer_takes_them(name) -> None:
    table = nn.Embedding(5, 3, sparse=True)
    before = table.weight.detach().clone()
    opt = OptimWrapper.create(OPTIMIZERS[name], 0.1, [table])
    table(torch.tensor([1, 3])).sum().backward()
    opt.step()
    assert (table.weight != before).any(1).tolist() == [False, True, False, True, False]


# --- plain values, state, copies


@every_optimizer
def test_the_state_holds_tensors_and_plain_values_only(name) -> None:
    groups = three_groups()
    opt = OptimWrapper.create(OPTIMIZERS[name], np.array([0.1, 0.2, 0.3]), groups, wd=np.float64(0.1))
    opt.lr = np.float64(0.5)
    opt.lr = np.float32(0.5)
    opt.lr = np.geomspace(0.1, 0.3, 3)
    opt.lr = torch.tensor([0.1, 0.2, 0.3])
    if opt.has_momentum:
        opt.mom = np.float64(0.9)
        opt.mom = np.array([0.7, 0.8, 0.9])
    opt.wd = np.array([0.1, 0.2, 0.3])
    for group in groups:
        give_gradients(group)
    opt.step()
    assert all(type(value) is float for key in ("lr", "mom", "wd") for value in opt.read(key))
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    twin = OptimWrapper.create(OPTIMIZERS[name], 1.0, groups)
    twin.load_state_dict(state)
    for key in ("lr", "mom", "wd"):
        assert twin.read(key) == opt.read(key)


def test_values_a_group_are_python_floats() -> None:
    for value in (1, 1.0, np.float64(1), np.float32(1), np.array(1.0), torch.tensor(1.0), [1, 1], np.ones(2)):
        assert per_group(value, 2, "lr") == [1.0, 1.0]
        assert all(type(one) is float for one in per_group(value, 2, "lr"))


@pytest.mark.parametrize(
    "change",
    [
        lambda group: group.update(initial_lr=0.1),  # left there by one of torch's schedulers
        lambda group: group.pop("decoupled_weight_decay", None),  # not there before torch 2.7
    ],
)
def test_a_state_with_settings_more_or_less_is_taken_as_torch_takes_it(change) -> None:
    layer = linear()
    opt = OptimWrapper.create(AdamW, 0.1, [layer], wd=0.5)
    give_gradients(layer)
    opt.step()
    state = opt.state_dict()
    for group in state["opt"]["param_groups"]:
        change(group)
    twin = OptimWrapper.create(AdamW, 0.2, [layer])
    twin.load_state_dict(state)
    assert (twin.lr, twin.wd) == (0.1, 0.5)
    give_gradients(layer)
    twin.step()


def test_the_decay_survives_saving_where_the_torch_optimizer_has_none() -> None:
    layer = linear()
    opt = OptimWrapper.create(SGD, 0.1, [layer], wd=0.5)
    twin = OptimWrapper.create(SGD, 0.1, [layer], wd=0.0)
    twin.load_state_dict(opt.state_dict())
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.zeros_like(layer.weight)
    twin.step()
    assert torch.allclose(layer.weight, before * 0.95)


def tensors(values) -> list:
    return [value.clone() if isinstance(value, torch.Tensor) else value for value in values]


@every_optimizer
def test_a_copy_goes_on_alike_and_leaves_the_original_alone(name) -> None:
    def trained(with_copy: bool):
        layer = linear()
        opt = OptimWrapper.create(OPTIMIZERS[name], 0.1, [layer], wd=0.1)
        give_gradients(layer, 1)
        opt.step()
        used = opt.copy() if with_copy else opt
        kept = {p: tensors(opt.opt.state[p].values()) for p in layer.parameters()} if with_copy else {}
        used.lr = 0.2
        used.wd = 0.3
        if used.has_momentum:
            used.mom = 0.5
        give_gradients(layer, 2)
        used.step()
        used.zero_grad()
        return layer, opt, used, kept

    plain, _, _, _ = trained(with_copy=False)
    layer, opt, used, kept = trained(with_copy=True)
    assert torch.equal(plain.weight, layer.weight), "the copy steps as the original would have"
    assert (opt.lr, opt.wd) == (0.1, 0.1)
    assert opt.mom == OptimWrapper.create(OPTIMIZERS[name], 0.1, [layer]).mom
    assert used.lr == 0.2
    assert type(used.opt) is type(opt.opt)
    for p, values in kept.items():
        now = opt.opt.state[p].values()
        assert all(
            torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(values, now, strict=True)
        )


def test_a_copy_of_an_optimizer_that_a_torch_scheduler_bound() -> None:
    layer = linear()
    opt = OptimWrapper.create(MOMENTUM_SGD, 0.1, [layer])
    torch.optim.lr_scheduler.StepLR(opt.opt, 1)
    twin = opt.copy()
    give_gradients(layer)
    before = layer.weight.detach().clone()
    twin.step()
    assert not torch.equal(layer.weight, before)
    assert not opt.opt.state
    assert twin.opt.state


def test_a_copy_before_the_first_step_has_no_state_and_gives_none() -> None:
    layer = linear()
    opt = OptimWrapper.create(AdamW, 0.1, [layer])
    twin = opt.copy()
    give_gradients(layer)
    twin.step()
    assert len(twin.opt.state) == 2
    assert len(opt.opt.state) == 0


def test_zero_grad_lets_go_of_gradients() -> None:
    layer = linear()
    give_gradients(layer)
    OptimWrapper.create(AdamW, 0.1, [layer]).zero_grad()
    assert layer.weight.grad is None


def test_it_says_what_it_is() -> None:
    assert "AdamW" in repr(OptimWrapper.create(AdamW, 0.1, [linear()]))
