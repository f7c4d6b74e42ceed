"""Torch optimizers without torch's compiler make the same steps, call all hooks and do not import it."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from minifast.training import fast_optimizer
from minifast.training.optimizer import OptimWrapper

OPTIMIZERS = {
    name: cls
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type)
    and issubclass(cls, torch.optim.Optimizer)
    and name not in ("Optimizer", "LBFGS", "SparseAdam", "Muon")  # a closure, sparse gradients, matrices only
}


def trained(make, steps=4):
    """A small model after some steps with the optimizer that ``make`` returns for its parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    opt = make(model.parameters())
    for _ in range(steps):
        model(torch.randn(8, 5)).square().mean().backward()
        opt.step()
        opt.zero_grad()
    return model.state_dict(), opt


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_equals_torchs_own_to_the_bit(name):
    theirs, opt = trained(partial(OPTIMIZERS[name], lr=1e-2))
    ours, wrapper = trained(
        lambda parameters: OptimWrapper(fast_optimizer.construct_optimizer(OPTIMIZERS[name], parameters, lr=1e-2))
    )
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    assert type(wrapper.opt) is type(opt)
    assert vars(wrapper.opt).keys() == vars(opt).keys()


def test_most_of_torchs_optimizers_are_known():
    known = [
        name
        for name, cls in OPTIMIZERS.items()
        if fast_optimizer.unwrapped_step(cls([nn.Parameter(torch.ones(2))], lr=0.1))
    ]
    assert {"SGD", "Adam", "AdamW", "RMSprop", "Adagrad"} <= set(known)


PROGRAM = """
import sys, torch
from torch.utils.data import DataLoader, TensorDataset
from minifast import *
items = TensorDataset(torch.randn(64, 3), torch.randint(2, (64,)))
for name, opt_func in (("minifast's", AdamW), ("torch's", torch.optim.SGD)):
    data = DataBunch(DataLoader(items, 16), DataLoader(items, 16), path={folder!r})
    learn = Learner(data, simple_ann(3, 2), silent=True, opt_func=opt_func)
    learn.lr_find()
    learn.fit_one_cycle(1, 1e-2, checkpoint=name)
    learn.save("model")
    learn.load("model")
    print("torch._dynamo" in sys.modules)
"""


@pytest.mark.slow
def test_training_saving_and_loading_do_not_import_the_compiler(tmp_path):
    program = PROGRAM.format(folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def one_step(opt):
    for group in opt.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    OptimWrapper(opt).step()


def adam():
    return fast_optimizer.construct_optimizer(torch.optim.Adam, [nn.Parameter(torch.ones(2))], lr=0.1)


def test_hooks_of_an_optimizer_are_called():
    opt, called = adam(), []
    opt.register_step_pre_hook(lambda *_: called.append("before"))
    opt.register_step_post_hook(lambda *_: called.append("after"))
    one_step(opt)
    assert called == ["before", "after"]


@pytest.mark.parametrize("kind", ["pre", "post"])
def test_a_hook_of_one_kind_alone_is_called(kind):
    opt, called = adam(), []
    getattr(opt, f"register_step_{kind}_hook")(lambda *_: called.append(kind))
    one_step(opt)
    assert called == [kind]


@pytest.mark.parametrize("register", [register_optimizer_step_pre_hook, register_optimizer_step_post_hook])
def test_a_hook_of_all_optimizers_of_one_kind_alone_is_called(register):
    called = []
    handle = register(lambda *_: called.append(1))
    try:
        one_step(adam())
    finally:
        handle.remove()
    assert called == [1]


def test_hooks_of_all_optimizers_are_called():
    called = []
    handle = register_optimizer_step_post_hook(lambda *_: called.append("after"))
    try:
        one_step(adam())
    finally:
        handle.remove()
    assert called == ["after"]


def test_a_profiler_sees_the_step():
    # acc_events, because torch 2.12 warns without it
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        one_step(adam())
    assert "Optimizer.step#Adam.step" in {event.key for event in profile.key_averages()}


def test_a_step_put_on_the_instance_is_called():
    opt, called = adam(), []
    opt.step = lambda: called.append("mine")
    one_step(opt)
    assert called == ["mine"]


def test_an_optimizer_of_ones_own_is_called_as_it_is():
    class Mine(torch.optim.SGD):
        calls = 0

        def step(self, closure=None):
            self.calls += 1
            return super().step(closure)

        def add_param_group(self, param_group):
            super().add_param_group(param_group)
            self.groups_added = len(self.param_groups)

    opt = fast_optimizer.construct_optimizer(Mine, [nn.Parameter(torch.ones(2))], lr=0.1)
    one_step(opt)
    assert (opt.calls, opt.groups_added) == (1, 1)
    assert torch.allclose(opt.param_groups[0]["params"][0], torch.full((2,), 0.9))


def test_a_differentiable_optimizer_keeps_its_graph():
    opt = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1, differentiable=True)
    assert fast_optimizer.unwrapped_step(opt) is None


def test_a_function_that_makes_an_optimizer_is_called():
    made = []

    def make(parameters, lr):
        made.append(lr)
        return torch.optim.SGD(parameters, lr=lr)

    assert isinstance(fast_optimizer.construct_optimizer(make, [nn.Parameter(torch.ones(1))], lr=0.5), torch.optim.SGD)
    assert made == [0.5]


def test_a_wrong_argument_is_torchs_own_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'speed'"):
        fast_optimizer.construct_optimizer(torch.optim.SGD, [nn.Parameter(torch.ones(1))], speed=1)
