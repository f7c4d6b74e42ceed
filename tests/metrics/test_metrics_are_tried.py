"""A metric that does not fit the outputs ends a fit before its first step, and trying it changes nothing."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from conftest import toy_learner
from torch import nn

from minifast import AUROC, Callback, DataError, FBeta, MixUpCallback, accuracy, dice, fbeta, top_k_accuracy


class Scores:
    """Accumulates by itself, in the style of torchmetrics, and draws random numbers."""

    def __init__(self, fails):
        self.fails, self.seen = fails, []

    def reset(self):
        self.seen = []

    def update(self, output, target):
        self.seen.append(torch.rand(()))
        if self.fails:
            raise IndexError("target 7 is out of bounds")

    def compute(self):
        return float(len(self.seen))


def raises(output, target):
    raise KeyError("labels")


def writes(output, target):
    output.zero_()
    return torch.rand(())


FAILING = {
    "dice": dice,
    "fbeta": lambda output, target: fbeta(output[:, :1], target),
    "top_k_accuracy": partial(top_k_accuracy, k=7),
    "raises": raises,
    "scores": Scores(fails=True),
    "per sample": lambda output, target: output,
}


@pytest.mark.parametrize("name", FAILING)
def test_a_metric_that_fails_ends_the_fit_before_the_first_step(name) -> None:
    learn = toy_learner(metrics=[accuracy, FAILING[name]])
    weights = [parameter.detach().clone() for parameter in learn.model.parameters()]
    words = r"The metric .* fails on the first validation batch, outputs \(\d+, 2\) and targets \(\d+,\): "
    with pytest.raises(DataError, match=words):
        learn.fit(2)
    assert all(map(torch.equal, weights, learn.model.parameters()))
    assert not learn.recorder.rows


METRICS = [accuracy, writes, Scores(fails=False), FBeta(), AUROC()]


def test_trying_metrics_does_not_change_the_training() -> None:
    def losses(**options) -> list[float]:
        torch.manual_seed(0)
        learn = toy_learner(**options)
        learn.model.append(nn.Dropout(0.1))
        learn.fit(1)
        return learn.recorder.raw_losses

    assert losses(metrics=METRICS) == losses()


class OnlyInEvaluation(nn.Module):
    """Gives two outputs in training, as models with auxiliary classifiers do."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        output = self.model(x)
        return (output, output) if self.training else output


def first_loss(output, target):
    return nn.functional.cross_entropy(output[0] if isinstance(output, tuple) else output, target)


def test_a_metric_that_fits_the_validation_alone_is_accepted() -> None:
    learn = toy_learner(metrics=[accuracy], loss_func=first_loss)
    learn.model = OnlyInEvaluation(learn.model)
    learn.fit(1)
    assert 0 <= learn.recorder.metrics[0][0] <= 1
    toy_learner(metrics=[accuracy], loss_func=nn.CrossEntropyLoss()).fit(1, callbacks=MixUpCallback())


def test_outputs_that_a_callback_changes_are_not_judged() -> None:
    class Pads(Callback):
        def on_loss_begin(self, last_output, train):
            return None if train else {"last_output": torch.cat([last_output, last_output], dim=1)}

    def four_columns(output, target):
        assert output.shape[1] == 4
        return output.mean()

    toy_learner(metrics=[four_columns]).fit(1, callbacks=Pads())
