"""Regression metrics over the whole validation set, against torchmetrics and formulas."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torchmetrics.functional as oracle
from torch.utils.data import DataLoader, TensorDataset

import minifast
from minifast import (
    RMSE,
    DataBunch,
    ExplainedVariance,
    ExpRMSPE,
    Learner,
    R2Score,
    exp_rmspe,
    explained_variance,
    mae,
    mse,
    msle,
    r2_score,
    rmse,
    simple_ann,
)
from minifast.errors import DataError
from minifast.metrics.base import as_metric
from minifast.metrics.regression import combine_moments, moments


def numbers(n=50, shift=0.0, seed=0):
    """Predictions (n, 1) and targets (n,) that have something to do with each other."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(n, generator=generator) + shift
    return (targets + 0.5 * torch.randn(n, generator=generator) + 0.2)[:, None], targets


def exp_rmspe_by_formula(pred, targ):
    return ((targ.exp() - pred.exp()) / targ.exp()).square().mean().sqrt()


def learner(n, bs, metrics, targets=None):
    torch.manual_seed(0)
    x = torch.randn(n, 4)
    items = TensorDataset(x, x.sum(dim=1) / 2 + 1 if targets is None else targets)
    data = DataBunch(DataLoader(items, bs), DataLoader(items, bs), device="cpu")
    return Learner(data, simple_ann(4, 1, 8), metrics=metrics, silent=True)


@pytest.mark.parametrize(
    ("metric", "wanted"),
    [
        (mse, oracle.mean_squared_error),
        (mae, oracle.mean_absolute_error),
        (rmse, functools.partial(oracle.mean_squared_error, squared=False)),
        (r2_score, oracle.r2_score),
        (explained_variance, oracle.explained_variance),
        (exp_rmspe, exp_rmspe_by_formula),
    ],
)
def test_a_function_equals_the_definition(metric, wanted):
    pred, targ = numbers()
    found = metric(pred, targ)
    assert found.shape == ()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted(pred[:, 0], targ).item(), rel=1e-5)


def test_logarithmic_errors_are_of_numbers_above_minus_one():
    pred, targ = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([0.5, 1.0, 2.0])
    assert msle(pred, targ).item() == pytest.approx(oracle.mean_squared_log_error(pred, targ).item())


# --- over all predictions at once, whether the function is given, its alias, a partial of it or the class

OVER_ALL = [
    (rmse, "root_mean_squared_error", rmse),
    (functools.partial(r2_score), "r2_score", r2_score),
    (explained_variance, "explained_variance", explained_variance),
    (exp_rmspe, "exp_rmspe", exp_rmspe),
    (RMSE(), "rmse", rmse),
    (R2Score(), "r2_score", r2_score),
    (ExplainedVariance(), "explained_variance", explained_variance),
    (ExpRMSPE(), "exp_rmspe", exp_rmspe),
]


@pytest.mark.parametrize("n", [2, 19, 20, 21, 45])
def test_over_uneven_batches_a_metric_is_that_of_all_predictions(n):
    learn = learner(n, 20, [metric for metric, _, _ in OVER_ALL])
    learn.fit(1)
    pred, targ = learn.get_preds()
    wanted = [function(pred, targ).item() for _, _, function in OVER_ALL]
    names = [name for _, name, _ in OVER_ALL]
    assert learn.recorder.metrics_names == [*names[:5], *(f"{name}_2" for name in names[5:])]
    assert learn.recorder.metrics[-1] == pytest.approx(wanted, rel=1e-4)
    assert learn.validate()[1:] == learn.recorder.metrics[-1]
    assert learn.recorder.rows[-1][3:-1] == learn.recorder.metrics[-1]


def test_the_mean_of_the_batches_would_be_another_number():
    learn = learner(45, 20, [r2_score, lambda pred, targ: r2_score(pred, targ)])
    _, over_all, averaged = learn.validate()
    assert over_all != pytest.approx(averaged, rel=1e-3)


def test_the_last_epoch_is_measured_alone():
    learn = learner(45, 20, [R2Score(), rmse])
    learn.fit(3)
    pred, targ = learn.get_preds()
    wanted = [r2_score(pred, targ).item(), rmse(pred, targ).item()]
    assert learn.recorder.metrics[-1] == pytest.approx(wanted, rel=1e-4)


def test_targets_far_from_zero_lose_nothing():
    pred, targ = numbers(1000, shift=1e4)
    parts = [moments(t.double() - p[:, 0], t) for p, t in zip(pred.split(64), targ.split(64), strict=True)]
    found = R2Score().value(combine_moments(torch.stack(parts))).item()
    pred, targ = pred[:, 0].double(), targ.double()
    wanted = 1 - (targ - pred).square().sum() / (targ - targ.mean()).square().sum()
    assert found == pytest.approx(wanted.item(), rel=1e-9)


def test_five_numbers_per_batch_stay_in_memory_until_the_epoch_ends():
    metric = RMSE()
    metric.on_epoch_begin()
    for _ in range(3):
        metric.on_batch_end(*numbers(1000))
    assert [part.shape for part in metric._parts] == [(5,)] * 3
    metric.on_epoch_end([])
    assert metric._parts == []


def test_targets_that_are_all_the_same_have_nothing_to_explain():
    targ = torch.ones(3)
    assert not math.isfinite(r2_score(torch.tensor([1.0, 2.0, 3.0]), targ).item())


@pytest.mark.parametrize("metric", [mse, mae, msle, rmse, r2_score, explained_variance, exp_rmspe])
def test_outputs_and_targets_that_do_not_fit_are_an_error_in_words(metric):
    with pytest.raises(
        DataError, match=r"outputs have the shape \(4, 2\) and the targets \(4,\).*broadcast; give both the same shape"
    ):
        metric(torch.zeros(4, 2), torch.zeros(4))


def test_the_short_names_are_the_long_ones():
    assert (mse, mae) == (minifast.mean_squared_error, minifast.mean_absolute_error)
    assert (rmse, msle) == (minifast.root_mean_squared_error, minifast.mean_squared_logarithmic_error)


def test_no_batch_gives_no_value():
    for metric in map(as_metric, (rmse, R2Score())):
        metric.on_epoch_begin()
        assert metric.on_epoch_end([0.5])["last_metrics"] == [0.5, None]
