"""Regression metrics: means over the batches, and metrics computed over the whole validation set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from minifast.metrics.functions import count_numbers, mark
from minifast.metrics.loss_options import loss_options
from minifast.metrics.wrappers import add_metrics
from minifast.training.callback import Callback
from minifast.utils.shapes import counted_only, match_shapes
from minifast.utils.tensors import to_cpu


def flat(pred: Tensor, targ: Tensor, may_be_complex: bool = False) -> tuple[Tensor, Tensor]:
    """Return outputs and targets of one shape, but for dimensions of size 1, as vectors of floats."""
    pred, targ = match_shapes(pred, targ, may_be_complex)
    is_float = targ.is_floating_point() or targ.is_complex()
    return pred.flatten(), targ.flatten() if is_float else targ.flatten().to(pred.dtype)


def distances(pred: Tensor, targ: Tensor) -> tuple[Tensor, Tensor]:
    """Return two vectors of real numbers with the differences of outputs and targets; for complex ones, |p - t|."""
    pred, targ = flat(pred, targ, may_be_complex=True)
    if pred.is_complex() or targ.is_complex():
        pred = (pred - targ).abs()
        targ = torch.zeros_like(pred)
    return pred, targ


@mark(higher_is_better=False, count=count_numbers, elementwise=True)
def mean_squared_error(pred: Tensor, targ: Tensor) -> Tensor:
    """Return the mean of the squared differences, also called ``mse``; of complex numbers ``|pred - targ|²``.

    Args:
        pred: outputs.
        targ: targets of the same shape; ``(n,)`` fits outputs ``(n, 1)``.

    Raises:
        DataError: if the shapes differ.

    >>> mse(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0]))
    tensor(2.)
    """
    return functional.mse_loss(*distances(pred, targ))


@mark(higher_is_better=False, count=count_numbers, elementwise=True)
def mean_absolute_error(pred: Tensor, targ: Tensor) -> Tensor:
    """Return the mean of the absolute differences, also called ``mae``; of complex numbers ``|pred - targ|``.

    Args:
        pred: outputs.
        targ: targets of the same shape; ``(n,)`` fits outputs ``(n, 1)``.

    Raises:
        DataError: if the shapes differ.

    >>> mae(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    tensor(1.)
    """
    return functional.l1_loss(*distances(pred, targ))


@mark(higher_is_better=False, count=count_numbers, elementwise=True)
def mean_squared_logarithmic_error(pred: Tensor, targ: Tensor) -> Tensor:
    """Return the mean of the squared differences of log(1 + x), also called ``msle``.

    Args:
        pred: outputs above -1.
        targ: targets above -1, of the same shape; ``(n,)`` fits outputs ``(n, 1)``.

    Raises:
        DataError: if the shapes differ.

    >>> msle(torch.tensor([0.0]), torch.tensor([1.0]))
    tensor(0.4805)
    """
    pred, targ = flat(pred, targ)
    return functional.mse_loss(pred.log1p(), targ.log1p())


def moments(errors: Tensor, targets: Tensor) -> Tensor:
    """Return five numbers: the count, then mean and sum of squared deviations of the errors, and of the targets."""
    exact = torch.float32 if errors.device.type == "mps" else torch.float64
    if not len(errors):
        return errors.new_zeros(5, dtype=exact)
    both = torch.stack([errors, targets]).to(exact)
    means = both.mean(dim=1)
    deviations = (both - means[:, None]).square().sum(dim=1)
    return torch.cat([means.new_tensor([both.shape[1]]), torch.stack([means, deviations], dim=1).flatten()])


def combine_moments(parts: Tensor) -> Tensor:
    """Return the moments of all numbers from those of the parts, one row each."""
    counts, means, deviations = parts[:, :1], parts[:, 1::2], parts[:, 2::2]
    mean = (counts * means).sum(dim=0) / counts.sum()
    total = deviations.sum(dim=0) + (counts * (means - mean).square()).sum(dim=0)
    return torch.cat([counts.sum(dim=0), torch.stack([mean, total], dim=1).flatten()])


class MomentMetric(Callback):
    """The base of metrics that are a function of the moments of errors and targets.

    Five numbers of each batch stay on its device and are combined at the end of the epoch. Targets that the loss
    ignores do not count.
    """

    _ignored: int | None = None

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def follow_loss(self, loss_func: Any) -> None:
        """Ignore the targets that a loss ignores."""
        self._ignored = loss_options(loss_func).get("ignore_index")

    def flatten(self, pred: Tensor, targ: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs and targets as vectors of real numbers."""
        return flat(pred, targ)

    def errors(self, pred: Tensor, targ: Tensor) -> Tensor:
        """Return the error of each number."""
        return targ - pred

    def value(self, moments: Tensor) -> Tensor:
        """Return the metric from the moments of errors and targets."""
        raise NotImplementedError

    def at_once(self, pred: Tensor, targ: Tensor) -> Tensor:
        """Return the metric of one batch."""
        return self.value(self._moments(pred, targ)).to(pred.real.dtype)

    def _moments(self, pred: Tensor, targ: Tensor) -> Tensor:
        if self._ignored is not None:
            pred, targ = counted_only(pred, targ, self._ignored)
        pred, targ = self.flatten(pred, targ)
        return moments(self.errors(pred, targ), targ)

    def on_epoch_begin(self) -> None:
        """Forget all batches."""
        self._parts = []

    def on_batch_end(self, last_output: Tensor, last_target: Tensor) -> None:
        """Add a batch."""
        self._parts.append(self._moments(last_output, last_target))

    def on_epoch_end(self, last_metrics: list[Any]) -> dict[str, list[Any]]:
        """Return the value."""
        parts, self._parts = self._parts, []
        if not parts:
            return add_metrics(last_metrics, None)
        return add_metrics(last_metrics, self.value(combine_moments(to_cpu(torch.stack(parts)).double())).item())


class RMSE(MomentMetric):
    """Compute the root mean squared error over the whole validation set; of complex numbers that of ``|p - t|``."""

    higher_is_better = False

    def flatten(self, pred: Tensor, targ: Tensor) -> tuple[Tensor, Tensor]:
        """Return two vectors of real numbers with the differences of outputs and targets."""
        return distances(pred, targ)

    def value(self, moments: Tensor) -> Tensor:
        """Return the metric from the moments of errors and targets."""
        return (_squares(moments) / moments[0]).sqrt()


class ExpRMSPE(RMSE):
    """Compute the root mean squared relative error of targets that are logarithms, over the whole validation set."""

    def flatten(self, pred: Tensor, targ: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs and targets as vectors of real numbers."""
        return flat(pred, targ)

    def errors(self, pred: Tensor, targ: Tensor) -> Tensor:
        """Return (exp t - exp p) / exp t of each number."""
        return -torch.expm1(pred - targ)


class R2Score(MomentMetric):
    """Compute the fraction of the targets' variance that the predictions explain, over the whole validation set.

    That is 1 - (sum of squared errors) / (sum of the targets' squared deviations from their mean). Several columns are
    flattened: the mean is that of all numbers, not one for each column as in scikit-learn's ``uniform_average``.
    """

    higher_is_better = True

    def value(self, moments: Tensor) -> Tensor:
        """Return the metric from the moments of errors and targets."""
        return 1 - _squares(moments) / moments[4]


class ExplainedVariance(MomentMetric):
    """Compute 1 - (variance of the errors) / (variance of the targets), over the whole validation set.

    Several columns are flattened: the variances are those of all numbers, not one for each column.
    """

    higher_is_better = True

    def value(self, moments: Tensor) -> Tensor:
        """Return the metric from the moments of errors and targets."""
        return 1 - moments[2] / moments[4]


def _squares(moments: Tensor) -> Tensor:
    return moments[2] + moments[0] * moments[1].square()


@mark(over_all=RMSE, higher_is_better=False)
def root_mean_squared_error(pred: Tensor, targ: Tensor) -> Tensor:
    """Return the root mean squared error, also called ``rmse``; of complex numbers that of ``|pred - targ|``.

    As a metric of a learner it is computed over all predictions. fastai v1 averages over the batches, which is less.

    Args:
        pred: outputs.
        targ: targets of the same shape; ``(n,)`` fits outputs ``(n, 1)``.

    >>> rmse(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0]))
    tensor(1.4142)
    """
    return RMSE().at_once(pred, targ)


@mark(over_all=ExpRMSPE, higher_is_better=False)
def exp_rmspe(pred: Tensor, targ: Tensor) -> Tensor:
    """Return the root mean squared relative error of outputs and targets that are logarithms.

    As a metric of a learner it is computed over all predictions. fastai v1 averages over the batches.

    Args:
        pred: outputs.
        targ: targets of the same shape; ``(n,)`` fits outputs ``(n, 1)``.

    >>> exp_rmspe(torch.tensor([0.0]), torch.tensor([2.0]).log())
    tensor(0.5000)
    """
    return ExpRMSPE().at_once(pred, targ)


@mark(over_all=R2Score, higher_is_better=True)
def r2_score(pred: Tensor, targ: Tensor) -> Tensor:
    """Return the coefficient of determination: 1 is perfect, 0 is as good as predicting the mean.

    As a metric of a learner it is computed over all predictions. fastai v1 averages over the batches. Several columns
    are flattened: the mean is that of all numbers, not one for each column as in scikit-learn's ``uniform_average``.

    Args:
        pred: outputs.
        targ: targets of the same shape; ``(n,)`` fits outputs ``(n, 1)``.

    >>> r2_score(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0]))
    tensor(0.5000)
    """
    return R2Score().at_once(pred, targ)


@mark(over_all=ExplainedVariance, higher_is_better=True)
def explained_variance(pred: Tensor, targ: Tensor) -> Tensor:
    """Return 1 - (variance of the errors) / (variance of the targets), which a constant error does not change.

    As a metric of a learner it is computed over all predictions. fastai v1 averages over the batches. Several columns
    are flattened: the variances are those of all numbers, not one for each column.

    Args:
        pred: outputs.
        targ: targets of the same shape; ``(n,)`` fits outputs ``(n, 1)``.

    >>> explained_variance(torch.tensor([2.0, 3.0, 4.0]), torch.tensor([1.0, 2.0, 3.0]))
    tensor(1.)
    """
    return ExplainedVariance().at_once(pred, targ)


mse = mean_squared_error
mae = mean_absolute_error
msle = mean_squared_logarithmic_error
rmse = root_mean_squared_error
