"""Complex outputs and targets: metrics are right or refuse them, and no default loss takes them for class numbers."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minifast import DataBunch, DataError, Learner, TensorDataBunch, metrics
from minifast.metrics import mae, mse, rmse

DEFINED = {
    "mse": lambda p, t: (p - t).abs().square().mean(),
    "mae": lambda p, t: (p - t).abs().mean(),
    "rmse": lambda p, t: (p - t).abs().square().mean().sqrt(),
}
SAME = {"mean_squared_error": "mse", "mean_absolute_error": "mae", "root_mean_squared_error": "rmse", "RMSE": "rmse"}
NO_METRIC = {"AverageMetric", "add_metrics", "ConfusionMatrix"}
METRICS = sorted(set(metrics.__all__) - NO_METRIC)


def metric_named(name):
    metric = getattr(metrics, name)
    if name == "top_k_accuracy":
        return partial(metric, k=1)
    return metric() if isinstance(metric, type) else metric


def complex_loss(output, target):
    return (output - target).abs().square().mean()


class Rotated(nn.Module):
    """A model of complex outputs."""

    def __init__(self, columns=1):
        super().__init__()
        self.layer = nn.Linear(4, 2 * columns)

    def forward(self, x):
        return torch.view_as_complex(self.layer(x).reshape(len(x), -1, 2))


@settings(deadline=None, max_examples=3)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3), columns=st.integers(1, 3), real=st.booleans())
@pytest.mark.parametrize("name", METRICS)
def test_a_metric_of_complex_numbers_is_right_or_an_error(name, sizes, columns, real):
    batches = [(torch.randn(n, 4), torch.randn(n, columns, dtype=torch.complex64)) for n in sizes]
    if real:  # complex outputs alone
        batches = [(x, y.real.contiguous()) for x, y in batches]
    data = DataBunch(batches, batches, device="cpu", loss_func=complex_loss)
    learn = Learner(data, Rotated(columns), metrics=[metric_named(name)], silent=True)
    wanted = DEFINED.get(SAME.get(name, name))
    if wanted is None:
        before = learn.model.layer.weight.detach().clone()
        with pytest.raises(DataError, match="complex numbers, for which this function is not defined"):
            learn.fit(1)
        assert torch.equal(learn.model.layer.weight, before)
        return
    outputs = torch.cat([learn.model(x) for x, _ in batches]).detach()
    targets = torch.cat([y for _, y in batches])
    assert learn.validate()[1] == pytest.approx(float(wanted(outputs, targets)), rel=1e-5)


@pytest.mark.parametrize("metric", [mse, mae, rmse])
def test_a_metric_of_complex_numbers_is_real(metric):
    found = metric(torch.tensor([3 + 4j, 0]), torch.tensor([0, 0]))
    assert found.dtype is torch.float32
    assert found.item() == pytest.approx({mse: 12.5, mae: 2.5, rmse: 12.5**0.5}[metric])


@pytest.mark.parametrize("kind", ["loader", "arrays", "tensors"])
@pytest.mark.parametrize("columns", [1, 3])
def test_complex_targets_have_no_default_loss(kind, columns):
    x, y = torch.randn(20, 4), torch.randn(20, columns, dtype=torch.complex64)
    if kind == "loader":
        loader = DataLoader(TensorDataset(x, y), 5)
        data = DataBunch(loader, loader, device="cpu")
    else:
        data = TensorDataBunch.from_arrays(x, y.numpy() if kind == "arrays" else y, bs=5, device="cpu")
        assert f"each target is {'3' if columns > 1 else 'a'} complex number" in repr(data)
    with pytest.raises(DataError, match="targets are complex numbers; pass `loss_func`"):
        Learner(data, Rotated(columns))
    learn = Learner(data, Rotated(columns), loss_func=complex_loss, metrics=[rmse], silent=True)
    loss, error = learn.fit(1).metrics and learn.validate()
    assert error == pytest.approx(loss**0.5, rel=1e-5)


def test_arrays_of_complex_numbers_keep_their_imaginary_part():
    x = np.arange(8).reshape(8, 1) * (1 + 2j)
    data = TensorDataBunch.from_arrays(x, x[:, 0], dtype=torch.float64, valid=(x, x[:, 0]), bs=2, device="cpu")
    values, targets = data.valid_dl.x, data.valid_dl.y
    assert values.dtype is targets.dtype is torch.complex128
    assert values[:, 0].tolist() == targets.tolist() == x[:, 0].tolist()
