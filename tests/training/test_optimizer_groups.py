"""Optimizers that make their own parameter groups, have modes, or evaluate the loss again."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from conftest import FailsAt, slow, toy_data
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minifast import Callback, DataBunch, Learner, TorchScheduler

torch.set_num_threads(1)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).double()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return list(zip(x.split(16), (x[:, 0] > 0).long().split(16), strict=True))


def learner(net: nn.Module, opt_func, **kwargs) -> Learner:
    data = DataBunch(batches(), batches(), device="cpu", loss_func=nn.functional.cross_entropy)
    return Learner(data, net, opt_func=opt_func, silent=True, **kwargs)


def layer_wise(net: nn.Sequential, factors=(0.1, 1.0), cls=torch.optim.AdamW, **kwargs):
    def opt_func(parameters, lr):
        layers = (net[0], net[2])
        groups = [
            {"params": layer.parameters(), "lr": factor * lr, **kwargs}
            for layer, factor in zip(layers, factors, strict=True)
        ]
        return cls(groups, lr=lr)

    return opt_func


def state(learn: Learner) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in learn.model.parameters()]


def assert_same(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- parameter groups of its own


@settings(max_examples=20, deadline=None)
@given(
    factors=st.tuples(st.floats(1e-3, 10), st.floats(1e-3, 10)),
    lr=st.floats(1e-4, 1e-1),
    cls=st.sampled_from([torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW]),
)
def test_training_equals_a_hand_written_loop(factors, lr, cls) -> None:
    ours, theirs = model(), model()
    learn = learner(ours, layer_wise(ours, factors, cls))
    learn.fit(2, lr)
    optimizer = layer_wise(theirs, factors, cls)(None, lr)
    for _ in range(2):
        for x, y in batches():
            nn.functional.cross_entropy(theirs(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, reference, rtol=1e-9, atol=1e-12)


def without_decay_of_biases(params, lr):
    params = list(params)
    matrices, others = [p for p in params if p.ndim > 1], [p for p in params if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr)


def in_halves(params, lr):
    params = list(params)
    return torch.optim.SGD([{"params": params[:2], "lr": 0.1 * lr}, {"params": params[2:]}], lr=lr, momentum=0.9)


def by_the_first(params, lr):
    params = list(params)
    return torch.optim.Adam(params, lr=lr if params[0].ndim == 2 else 0.0, weight_decay=0.01)


def of_groups(groups, lr):
    return torch.optim.SGD([{**group, "weight_decay": 0.1} for group in groups], lr=lr)


def of_copied_groups(groups, lr):
    return torch.optim.SGD([dict(group, weight_decay=0.1) for group in groups], lr=lr)


def of_groups_that_are_asked(groups, lr):
    decays = [0.0 if "weight_decay" in group else 0.1 for group in groups]
    return torch.optim.SGD(
        [group | {"weight_decay": decay} for group, decay in zip(groups, decays, strict=True)], lr=lr
    )


OF_GROUPS = (of_groups, of_copied_groups, of_groups_that_are_asked)


@pytest.mark.parametrize("opt_func", [without_decay_of_biases, in_halves, by_the_first, *OF_GROUPS])
def test_a_function_gets_what_torch_s_optimizers_take(opt_func) -> None:
    ours, theirs = model(), model()
    learn = learner(ours, opt_func)
    learn.fit(2, 1e-2)
    parameters = list(theirs.parameters())
    optimizer = opt_func([{"params": parameters}] if opt_func in OF_GROUPS else theirs.parameters(), lr=1e-2)
    for _ in range(2):
        for x, y in batches():
            nn.functional.cross_entropy(theirs(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_same(state(learn), parameters)


@pytest.mark.parametrize(
    ("options", "groups"),
    [({"split": True}, 2), ({"bn_wd": False}, 2), ({"split": True, "bn_wd": False}, 4)],
    ids=["layer groups", "bn_wd", "both"],
)
@pytest.mark.parametrize("opt_func", [without_decay_of_biases, in_halves, by_the_first])
def test_a_function_of_parameters_says_what_it_gets_for_several_groups(opt_func, options, groups) -> None:
    net = model()
    learn = learner(net, opt_func, bn_wd=options.get("bn_wd", True))
    if "split" in options:
        learn.split(lambda net: [net[2]])
    before = state(learn)
    with pytest.raises(TypeError, match=rf"^`opt_func` takes parameter groups for parameters .*dict.* here {groups}, "):
        learn.fit(1, 1e-2)
    assert_same(before, state(learn))


def test_a_function_of_parameters_that_drops_some_raises_instead_of_training_all() -> None:
    with pytest.raises(ValueError, match=r"^`opt_func` leaves out 2 of the parameters to train; put them into"):
        learner(model(), lambda params, lr: torch.optim.SGD(params[:2], lr=lr)).fit(1, 1e-2)


def test_an_error_of_a_function_is_raised_as_it_is() -> None:
    with pytest.raises(AttributeError, match="'Parameter' object has no attribute 'dims'"):
        learner(model(), lambda params, lr: torch.optim.SGD([p for p in params if p.dims], lr=lr)).fit(1, 1e-2)
    with pytest.raises(ValueError, match="Invalid momentum value: -1"):
        learner(model(), lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=-1)).fit(1, 1e-2)


def test_a_schedule_scales_the_learning_rate_of_each_group() -> None:
    net = model()
    seen = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    learn = learner(net, layer_wise(net, (0.01, 2.0), Spy))
    recorder = learn.fit_one_cycle(2, 1e-2)
    assert recorder.lrs == pytest.approx([second / 2 for _, second in seen])
    assert [first for first, _ in seen] == pytest.approx([0.01 * lr for lr in recorder.lrs])


def test_weight_decay_of_each_group_stays_as_it_was_made() -> None:
    net = model()
    learn = learner(net, layer_wise(net, weight_decay=0.3))
    learn.opt_func = lambda parameters, lr: torch.optim.AdamW(
        [{"params": net[0].parameters(), "weight_decay": 0.0}, {"params": net[2].parameters(), "weight_decay": 0.3}],
        lr=lr,
    )
    learn.fit_one_cycle(1, 1e-2)
    learn.fit(1, 1e-3)
    assert [group["weight_decay"] for group in learn.opt.opt.param_groups] == [0.0, 0.3]


def test_what_the_groups_cannot_follow_raises_before_training() -> None:
    net = model()
    before = [p.clone() for p in net.parameters()]
    one = lambda parameters, lr: torch.optim.SGD(list(net.parameters()), lr=lr)  # noqa: E731
    for opt_func, options, arguments, message in (
        (layer_wise(net), {"wd": 0.1}, (1,), "makes its own parameter groups; set it in each"),
        (layer_wise(net), {"bn_wd": False}, (1,), "bn_wd=False has no effect"),
        (
            lambda parameters, lr: torch.optim.SGD(net[0].parameters(), lr=lr),
            {},
            (1,),
            "leaves out 2 of the param",
        ),
        (
            lambda parameters, lr: torch.optim.SGD([{"params": p, "lr": 1e-3} for p in net.parameters()], lr=lr),
            {},
            (1,),
            "gives parameter group 0 the learning rate 0.001, whatever `lr`",
        ),
        (one, {"layer_groups": [net[0], net[2]]}, (1, slice(1e-3, 1e-2)), "layer groups 0, 1 into one parameter group"),
    ):
        with pytest.raises(ValueError, match=message):
            learner(net, opt_func, **options).fit(*arguments)
    assert_same(before, list(net.parameters()))


def test_one_learning_rate_trains_layer_groups_that_share_a_parameter_group() -> None:
    net = model()
    learn = learner(
        net, lambda parameters, lr: torch.optim.SGD(list(net.parameters()), lr=lr), layer_groups=[net[0], net[2]]
    )
    learn.fit(1, 1e-2)
    assert learn.opt.read("lr") == [1e-2, 1e-2]


def test_lr_find_leaves_no_trace_of_its_own_groups() -> None:
    plain, net = model(), model()
    learn, other = learner(net, layer_wise(net)), learner(plain, layer_wise(plain))
    learn.lr_find()
    learn.fit(1, 1e-2)
    other.fit(1, 1e-2)
    assert_same(state(learn), state(other))


def test_momentum_of_each_group_is_scheduled_by_its_own_name() -> None:
    net = model()

    class Two(torch.optim.Optimizer):
        """Momentum for matrices, betas for the rest, as of Muon with AdamW."""

        def __init__(self, parameters, lr):
            flat = [p for group in parameters for p in group["params"]]
            groups = [
                {"params": [p for p in flat if p.ndim > 1], "momentum": 0.95},
                {"params": [p for p in flat if p.ndim < 2], "betas": (0.9, 0.99), "lr": 0.1 * lr},
            ]
            super().__init__(groups, {"lr": lr})

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(group["lr"] * p.grad)

    seen = []

    class Spy(Callback):
        def on_step_end(self):
            first, second = learn.opt.opt.param_groups
            assert ("betas" in first, "momentum" in second) == (False, False)
            seen.append((first["momentum"], second["betas"][0]))

    learn = learner(net, Two, callbacks=[Spy()])
    recorder = learn.fit_one_cycle(2, 1e-2, moms=(0.95, 0.85))
    assert [one for one, _ in seen] == [other for _, other in seen] == recorder.moms
    assert len(set(recorder.moms)) > 3


# --- training and evaluation weights


class Averaged(torch.optim.SGD):
    """SGD that validates with the mean of all weights so far, as schedule-free optimizers do."""

    def __init__(self, parameters, lr=1e-3):
        super().__init__(parameters, lr=lr)
        for group in self.param_groups:
            group |= {"train_mode": False, "k": 0}

    def _swap(self, mode: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] is not mode:
                for p in group["params"]:
                    if "other" in self.state[p]:
                        kept = p.detach().clone()
                        p.data.copy_(self.state[p]["other"])
                        self.state[p]["other"] = kept
                group["train_mode"] = mode

    def train(self):
        self._swap(True)

    def eval(self):
        self._swap(False)

    @torch.no_grad()
    def step(self, closure=None):
        assert self.param_groups[0]["train_mode"], "the optimizer is not in training mode"
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad)
                mean = self.state[p].setdefault("other", p.detach().clone())
                mean.lerp_(p, 1 / group["k"])


def test_an_optimizer_with_modes_validates_and_ends_with_evaluation_weights() -> None:
    learn, net = learner(model(), Averaged, wd=0.0), model()
    recorder = learn.fit(2, 1e-1)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-1)
    means = [torch.zeros_like(p) for p in net.parameters()]
    for step in range(8):
        x, y = batches()[step % 4]
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        means = [mean.lerp(p.detach(), 1 / (step + 1)) for mean, p in zip(means, net.parameters(), strict=True)]
    assert all(torch.allclose(p, mean, rtol=1e-9) for p, mean in zip(state(learn), means, strict=True))
    assert learn.validate()[0] == recorder.val_losses[-1]


@pytest.mark.parametrize("stop", [5, *slow(1, 7)])
def test_a_run_with_modes_resumes_bit_for_bit(tmp_path, stop) -> None:
    class Stop(Callback):
        armed = True

        def on_batch_end(self, iteration, train):
            if self.armed and train and iteration == stop:
                raise RuntimeError("power cut")

    whole = learner(model(), Averaged, path=tmp_path / "whole")
    whole.fit(3, 1e-1)
    broken = learner(model(), Averaged, path=tmp_path / "broken", callbacks=[Stop()])
    with pytest.raises(RuntimeError, match="power cut"):
        broken.fit(3, 1e-1, checkpoint="run", every=1)
    Stop.armed = False
    resumed = learner(model(), Averaged, path=tmp_path / "broken", callbacks=[Stop()])
    resumed.fit(3, 1e-1, checkpoint="run")
    assert_same(state(resumed), state(whole))
    assert resumed.validate() == whole.validate()


def test_the_momentum_of_an_optimizer_with_modes_stays() -> None:
    class WithBetas(Averaged):
        def __init__(self, parameters, lr=1e-3):
            super().__init__(parameters, lr)
            for group in self.param_groups:
                group["betas"] = (0.9, 0.99)

    learn = learner(model(), WithBetas)
    learn.fit_one_cycle(1, 1e-2)
    assert learn.opt.opt.param_groups[0]["betas"] == (0.9, 0.99)
    assert learn.opt.without_momentum == "WithBetas keeps its own momentum"


# --- a loss that is evaluated again


def test_lbfgs_equals_a_hand_written_loop() -> None:
    ours, theirs = model(), model()
    learn = learner(ours, torch.optim.LBFGS)
    learn.fit(2, 0.1)
    optimizer = torch.optim.LBFGS(theirs.parameters(), lr=0.1)
    for _ in range(2):
        for x, y in batches():

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(theirs(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, reference, rtol=1e-9, atol=1e-12)


def test_callbacks_that_change_gradients_cannot_follow_a_closure() -> None:
    learn = learner(model(), torch.optim.LBFGS).clip_grad(0.1)
    before = state(learn)
    with pytest.raises(ValueError, match="several times in a step, which GradientClipping cannot follow"):
        learn.fit(1, 0.1)
    assert_same(before, state(learn))
    with pytest.raises(ValueError, match="takes no weight decay"):
        learner(model(), torch.optim.LBFGS, wd=0.1).fit(1, 0.1)


def test_no_weight_decay_suits_an_optimizer_without_it() -> None:
    def own_groups(parameters, lr, weight_decay):
        rest = list(parameters)
        return torch.optim.SGD([{"params": rest[:1], "weight_decay": weight_decay}, {"params": rest[1:]}], lr)

    for opt_func in (torch.optim.LBFGS, partial(own_groups, weight_decay=0)):
        learn = learner(model(), opt_func, wd=0)
        learn.fit(1, 0.1)
        learn.fit(1, 0.1, wd=0.0)
        with pytest.raises(ValueError, match=r"`wd` is 0\.1"):
            learn.fit(1, 0.1, wd=0.1)
    with pytest.raises(ValueError, match="`wd` is 0,"):
        learner(model(), partial(own_groups, weight_decay=0.1), wd=0).fit(1, 0.1)


# --- groups and schedulers of timm


class Scaled(torch.optim.SGD):
    """SGD with the groups of timm's layer-wise decay: the scale of each stands beside its learning rate."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        scales = [0.25, 1.0]
        groups = [{"params": part.parameters(), "lr_scale": s} for part, s in zip(model[::2], scales, strict=True)]
        super().__init__(groups, lr=lr)


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 4), nn.ReLU(), nn.Linear(4, 2))


def by_hand(model: nn.Module, lr: float, make=None) -> nn.Module:
    """Train two epochs in a loop of its own; ``make`` returns the function that steps a scheduler."""
    opt = Scaled(model, lr)
    for group in opt.param_groups:
        group["lr"] = lr * group["lr_scale"] if make is None else lr
    step, updates = (lambda epoch, updates, ends: None) if make is None else make(opt), 0
    for epoch in range(2):
        batches = list(toy_data().train_dl)
        for i, (x, y) in enumerate(batches):
            nn.functional.cross_entropy(model(x), y).backward()
            opt.step()
            opt.zero_grad()
            updates += 1
            step(epoch, updates, i == len(batches) - 1)
    return model


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(map(torch.equal, a.parameters(), b.parameters()))


def test_the_scale_of_a_group_multiplies_its_learning_rate() -> None:
    model = two_layers()
    learn = Learner(toy_data(), model, opt_func=lambda parameters, lr: Scaled(model, lr), silent=True)
    learn.fit(2, 0.1)
    assert equal(model, by_hand(two_layers(), 0.1))
    assert [group["lr"] for group in learn.opt.opt.param_groups] == [0.025, 0.1]
    learn.fit_one_cycle(1, 0.2)
    assert max(learn.recorder.lrs) == pytest.approx(0.2)


@pytest.mark.slow  # importing timm takes seconds
@pytest.mark.parametrize("in_epochs", [False, True])
@pytest.mark.parametrize("warmup", [0, 1])
def test_a_scheduler_of_timm_equals_a_loop_with_it(in_epochs, warmup) -> None:
    scheduler = pytest.importorskip("timm.scheduler", reason="its schedulers are in timm")
    options = {"t_initial": 2 if in_epochs else 6, "lr_min": 1e-3, "t_in_epochs": in_epochs}
    options |= {"warmup_t": warmup, "warmup_lr_init": 1e-2}

    def make(opt):
        own = scheduler.CosineLRScheduler(opt, **options)
        if not warmup:  # timm sets no scaled learning rate before the first step
            own.update_groups(own.base_values)

        def step(epoch, updates, ends):
            own.step_update(updates)
            if ends:
                own.step(epoch + 1)

        return step

    model = two_layers()
    schedule = TorchScheduler(lambda opt: scheduler.CosineLRScheduler(opt, **options))
    learn = Learner(toy_data(), model, opt_func=lambda parameters, lr: Scaled(model, lr), silent=True)
    learn.fit(2, 0.1, callbacks=[schedule])
    assert equal(model, by_hand(two_layers(), 0.1, make))
    assert len({round(lr, 6) for lr in learn.recorder.lrs}) > 1


@pytest.mark.slow
def test_a_run_with_a_scheduler_of_timm_resumes(tmp_path) -> None:
    scheduler = pytest.importorskip("timm.scheduler", reason="its schedulers are in timm")

    def fit(at: int | None, checkpoint: str | None) -> nn.Module:
        model = two_layers()
        learn = Learner(toy_data(), model, opt_func=torch.optim.SGD, path=tmp_path, silent=True)
        schedule = TorchScheduler(lambda opt: scheduler.CosineLRScheduler(opt, 6, t_in_epochs=False))
        learn.fit(2, 0.1, checkpoint=checkpoint, every=checkpoint and 1, callbacks=[schedule, FailsAt(at)])
        return model

    with pytest.raises(OSError, match="gone"):
        fit(4, "run")
    assert equal(fit(None, "run"), fit(None, None))


def test_an_optimizer_that_chooses_its_learning_rate_is_refused() -> None:
    class Relative(torch.optim.SGD):
        def __init__(self, params, lr):
            super().__init__(params, lr=lr)
            self.param_groups[0]["lr"] = None

    with pytest.raises(ValueError, match=r"makes an optimizer Relative with lr=None, which chooses its learning rate"):
        Learner(toy_data(), two_layers(), opt_func=Relative, silent=True).fit(1)
