"""Parameters that the loss depends on, but that no optimizer has, are named when the fit begins."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from minifast import Callback, DataBunch, Learner

SHARED = nn.Linear(2, 2)


def with_head(output, target, head):
    return functional.cross_entropy(head(output), target)


def with_global(output, target):
    return with_head(output, target, SHARED)


def enclosed():
    inner = nn.Linear(2, 2)
    return lambda output, target: with_head(output, target, inner)


class Held:
    def __init__(self):
        self.head = nn.Linear(2, 2)

    def __call__(self, output, target):
        return with_head(output, target, self.head)


class InList(nn.Module):
    """Holds a layer in a plain list, where torch does not see it."""

    def __init__(self):
        super().__init__()
        self.first, self.others = nn.Linear(4, 4), [nn.Linear(4, 2)]

    def forward(self, x):
        return self.others[0](self.first(x))


def learner(loss_func, model=None) -> Learner:
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(8, 4, generator=generator), torch.arange(8) % 2) for _ in range(2)]
    data = DataBunch(batches, device="cpu")
    return Learner(data, nn.Linear(4, 2) if model is None else model, loss_func=loss_func, silent=True)


@pytest.mark.parametrize("of_the_fit", [False, True])
@pytest.mark.parametrize("parameters", [0, 1])
def test_parameters_that_a_callback_trains_are_trained(of_the_fit, parameters):
    head = nn.Linear(2, 2)

    class Step(Callback):
        def __init__(self):
            self.optimizers = {"head": torch.optim.SGD(list(head.parameters())[parameters:], 0.1)}

    learn = learner(partial(with_head, head=head), nn.Linear(4, 2))
    if not of_the_fit:
        learn.callbacks.append(Step())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if parameters:  # not all of them
            with pytest.raises(UserWarning, match=r"parameters that are not trained: .*weight"):
                learn.fit(1, callbacks=[Step()] if of_the_fit else None)
        else:
            learn.fit(1, callbacks=[Step()] if of_the_fit else None)


def default():
    return lambda output, target, head=SHARED: with_head(output, target, head)


CASES = {
    "a closure": (enclosed, None, "inner.bias, inner.weight"),
    "a global variable": (lambda: with_global, None, "SHARED.bias, SHARED.weight"),
    "a default": (default, None, "head|default0"),
    "a partial": (lambda: partial(with_head, head=nn.Linear(2, 2)), None, r"loss_func.*head.*\.weight"),
    "an object": (Held, None, "loss_func.head.bias, loss_func.head.weight"),
    "a list of the model": (nn.CrossEntropyLoss, InList, r"model.others\[0\].bias"),
}


@pytest.mark.parametrize("case", CASES)
def test_parameters_that_nothing_trains_are_named(case) -> None:
    make_loss, make_model, words = CASES[case]
    learn = learner(make_loss(), make_model and make_model())
    with pytest.warns(UserWarning, match=f"depends on parameters that are not trained: .*{words}.*an nn.Module"):
        learn.fit(1)
    assert any("not trained" in finding.what for finding in learn.check().findings)


def frozen():
    head = nn.Linear(2, 2).requires_grad_(False)
    return lambda output, target: with_head(output, target, head)


def teacher():
    other = nn.Linear(4, 2)

    def loss(output, target):
        with torch.no_grad():
            probabilities = other(torch.ones(len(output), 4)).softmax(1)
        return functional.cross_entropy(output, probabilities)

    return loss


class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)

    def forward(self, output, target):
        return with_head(output, target, self.head)


@pytest.mark.parametrize("make", [frozen, teacher, Module, lambda: Module().forward, lambda: partial(Module())])
def test_what_is_trained_frozen_or_without_gradient_is_not_named(make) -> None:
    learn = learner(make())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn.fit(1)
    assert not any("not trained" in finding.what for finding in learn.check().findings)
