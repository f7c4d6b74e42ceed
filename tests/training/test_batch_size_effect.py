"""A fit with steps of several batches or processes warns of a loss whose gradients do not add up, and of no other."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from test_loss_weights import LOSSES, WEIGHT, model_of, targets_of
from torch import nn
from torch.nn import functional

from minifast import AccumulateScheduler, DataBunch, Learner
from minifast.losses import MixUpLoss
from minifast.training.batch_size_effect import loss_effect
from minifast.utils.random import get_rng_states


class Learned(nn.Module):
    """A loss with a parameter, a buffer that each call changes, and random numbers that do not decide it."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("calls", torch.zeros(()))
        self.history: list[float] = []

    def forward(self, output, target):
        self.calls += 1
        self.history.append(float(torch.rand(())))
        return functional.cross_entropy(self.scale * output, target)


class Noisy(nn.Module):
    def forward(self, output, target):
        return functional.cross_entropy(functional.dropout(output, 0.5), target)


class Own(nn.Module):
    """A model that returns its loss, the mean over its targets or a comparison of all samples of the batch."""

    def __init__(self, compares=False, noisy=False):
        super().__init__()
        self.layer, self.norm, self.dropout = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout()
        self.compares, self.noisy = compares, noisy

    def forward(self, x, labels=None):
        logits = self.dropout(self.norm(self.layer(x)))
        if self.noisy:
            logits = functional.dropout(logits, 0.5)
        target = torch.arange(len(x)) if self.compares else labels
        loss = (
            None if labels is None else functional.cross_entropy(logits @ logits.T if self.compares else logits, target)
        )
        return {"loss": loss, "logits": logits}


def penalized(output, target):
    (gradient,) = torch.autograd.grad(output.square().sum(), output, create_graph=True)
    return functional.mse_loss(output, target) + gradient.square().mean()


MEANS = {
    **LOSSES,
    "learned": (Learned(), "whole class"),
    "noisy": (Noisy(), "whole class"),
    "a smoothed function": (partial(functional.cross_entropy, label_smoothing=0.1), "class"),
    "mixup of a function": (MixUpLoss(lambda output, target: functional.cross_entropy(output, target)), "whole class"),
    "a gradient inside": (penalized, "float"),
    "of two outputs": (lambda output, target: functional.mse_loss(output.chunk(3, 1)[0], target[:, :1]), "float"),
    "in half precision": (lambda output, target: functional.mse_loss(output.bfloat16(), target.bfloat16()), "float"),
}
OTHERS = {
    "a contrastive loss": lambda output, target: functional.cross_entropy(output @ output.T, torch.arange(len(output))),
    "hidden weights": lambda output, target: functional.cross_entropy(output, target, weight=WEIGHT),
    "a hidden sum": lambda output, target: functional.cross_entropy(output, target, reduction="sum"),
}


def learner_of(loss, kind, n=12, model=None, **options):
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(n, 4, generator=generator), targets_of(kind, n, generator)
    batch = {"x": x, "labels": y} if isinstance(model, Own) else (x, y)
    data = DataBunch([batch] * 4, None, device="cpu", loss_func=loss)
    return Learner(data, model or model_of(kind), torch.optim.SGD, silent=True, **options)


def warnings_of(learn, n_step=2):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        learn.fit(2, 1e-3, callbacks=AccumulateScheduler(n_step=n_step))
    return [str(warning.message) for warning in shown if "is not the mean over the samples" in str(warning.message)]


@pytest.mark.parametrize("name", MEANS)
def test_no_warning_of_a_loss_that_is_a_mean_or_weighted_as_torch_does(name):
    loss, kind = MEANS[name]
    assert warnings_of(learner_of(loss, kind)) == []


@pytest.mark.parametrize("noisy", [False, True])
def test_no_warning_of_a_model_that_returns_its_own_mean(noisy):
    assert warnings_of(learner_of(None, "class", model=Own(noisy=noisy))) == []


@pytest.mark.parametrize("name", OTHERS)
def test_one_warning_names_a_loss_whose_gradients_do_not_add_up(name):
    (told,) = warnings_of(learner_of(OTHERS[name], "whole class"))
    assert told.startswith(f"The loss in line {OTHERS[name].__code__.co_firstlineno} of {__file__} is not the mean")
    assert "the gradients of the accumulated batches do not add up to that of the whole batch" in told
    assert "nn.CrossEntropyLoss(weight=...)" in told
    assert "distributed" not in told
    assert warnings_of(learner_of(OTHERS[name], "whole class"), n_step=1) == []


def test_one_warning_of_a_model_that_compares_the_samples_of_a_batch():
    (told,) = warnings_of(learner_of(None, "whole class", model=Own(compares=True)))
    assert told.startswith("The loss that the model returns is not the mean")


@pytest.mark.parametrize("kind", ["learned", "own"])
def test_nothing_is_changed(kind):
    learn = learner_of(*((Learned(), "whole class") if kind == "learned" else (None, "class", 12, Own())))
    x, y = learn.data.one_batch(denorm=False)
    output = learn.output_of(x, y)
    modules = [learn.model, *([learn.loss_func] if kind == "learned" else [])]
    before = [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]
    states = get_rng_states()
    assert loss_effect(learn, output, x, y) is None
    assert str(get_rng_states()) == str(states)
    for module, values in zip(modules, before, strict=True):
        assert all(torch.equal(module.state_dict()[name], value) for name, value in values.items())
        assert all(parameter.grad is None for parameter in module.parameters())
    assert kind == "own" or learn.loss_func.history == []
    assert learn.model.training
