"""Metrics of numbers: means of differences, and those that are no mean, over all predictions at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from minifast.errors import DataError
from minifast.metrics.base import add_metrics, over_all
from minifast.training.callback import Callback
from minifast.utils.tensors import to_cpu


def flat(pred: Tensor, targ: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs and targets laid flat, so that ``(n, 1)`` and ``(n,)`` fit each other.

    Raises:
        DataError: they are not equally many.
    """
    if pred.numel() != targ.numel():
        raise DataError(
            f"The outputs have the shape {tuple(pred.shape)} and the targets {tuple(targ.shape)}; this metric compares "
            f"them number by number, so they must be equally many."
        )
    return pred.flatten(), targ.flatten()


def mean_squared_error(pred: Tensor, targ: Tensor) -> Tensor:
    """Return the mean of the squared differences; also called ``mse``.

    >>> mse(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0]))
    tensor(2.)
    """
    return functional.mse_loss(*flat(pred, targ))


def mean_absolute_error(pred: Tensor, targ: Tensor) -> Tensor:
    """Return the mean of the absolute differences; also called ``mae``.

    >>> mae(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    tensor(1.)
    """
    return functional.l1_loss(*flat(pred, targ))


def mean_squared_logarithmic_error(pred: Tensor, targ: Tensor) -> Tensor:
    """Return the mean of the squared differences of log(1 + x), for numbers above -1; also called ``msle``.

    >>> msle(torch.tensor([0.0]), torch.tensor([1.0]))
    tensor(0.4805)
    """
    pred, targ = flat(pred, targ)
    return functional.mse_loss(pred.log1p(), targ.log1p())


def moments(errors: Tensor, targets: Tensor) -> Tensor:
    """Return the count of numbers, then of errors and of targets the mean and the sum of squared deviations from it."""
    exact = torch.float32 if errors.device.type == "mps" else torch.float64
    both = torch.stack([errors, targets]).to(exact)
    means = both.mean(dim=1)
    deviations = (both - means[:, None]).square().sum(dim=1)
    return torch.cat([means.new_tensor([both.shape[1]]), torch.stack([means, deviations], dim=1).flatten()])


def concatenate(parts: Tensor) -> Tensor:
    """Return the moments of all from those of the parts, a row each: deviations inside the parts and between them."""
    counts, means, deviations = parts[:, :1], parts[:, 1::2], parts[:, 2::2]
    mean = (counts * means).sum(dim=0) / counts.sum()
    total = deviations.sum(dim=0) + (counts * (means - mean).square()).sum(dim=0)
    return torch.cat([counts.sum(dim=0), torch.stack([mean, total], dim=1).flatten()])


class RMSE(Callback):
    """The root of the mean squared error over the whole validation set.

    Of each batch five numbers are kept, on its device, and joined at the end of the epoch.
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def errors(self, pred: Tensor, targ: Tensor) -> Tensor:
        """Return the error of each number."""
        return targ - pred

    def value(self, moments: Tensor) -> Tensor:
        """Return the metric from the moments of errors and targets."""
        return (_squares(moments) / moments[0]).sqrt()

    def at_once(self, pred: Tensor, targ: Tensor) -> Tensor:
        """Return the metric of one batch alone."""
        return self.value(self._moments(pred, targ)).to(pred.dtype)

    def _moments(self, pred: Tensor, targ: Tensor) -> Tensor:
        pred, targ = flat(pred, targ)
        return moments(self.errors(pred, targ), targ)

    def on_epoch_begin(self) -> None:
        """Start anew."""
        self._parts = []

    def on_batch_end(self, last_output: Tensor, last_target: Tensor) -> None:
        """Add a batch."""
        self._parts.append(self._moments(last_output, last_target))

    def on_epoch_end(self, last_metrics: list[Any]) -> dict[str, list[Any]]:
        """Hand back the value."""
        parts, self._parts = self._parts, []
        if not parts:
            return add_metrics(last_metrics, None)
        return add_metrics(last_metrics, self.value(concatenate(to_cpu(torch.stack(parts)).double())).item())


class ExpRMSPE(RMSE):
    """The root mean squared relative error of targets that are logarithms, over the whole validation set."""

    def errors(self, pred: Tensor, targ: Tensor) -> Tensor:
        """Return (exp t - exp p) / exp t of each number."""
        return -torch.expm1(pred - targ)


class R2Score(RMSE):
    """The share of the targets' variance that the predictions explain, over the whole validation set.

    That is 1 - (sum of squared errors) / (sum of the targets' squared deviations from their mean).
    """

    def value(self, moments: Tensor) -> Tensor:
        """Return the metric from the moments of errors and targets."""
        return 1 - _squares(moments) / moments[4]


class ExplainedVariance(RMSE):
    """1 - (variance of the errors) / (variance of the targets), over the whole validation set."""

    def value(self, moments: Tensor) -> Tensor:
        """Return the metric from the moments of errors and targets."""
        return 1 - moments[2] / moments[4]


def _squares(moments: Tensor) -> Tensor:
    return moments[2] + moments[0] * moments[1].square()


@over_all(RMSE)
def root_mean_squared_error(pred: Tensor, targ: Tensor) -> Tensor:
    """Return the root of the mean squared error; also called ``rmse``.

    As a metric it is taken over all predictions at once; the mean over the batches, as in fastai v1, would be less.

    >>> rmse(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0]))
    tensor(1.4142)
    """
    return RMSE().at_once(pred, targ)


@over_all(ExpRMSPE)
def exp_rmspe(pred: Tensor, targ: Tensor) -> Tensor:
    """Return the root mean squared relative error of predictions and targets that are logarithms.

    As a metric it is taken over all predictions at once, not averaged over the batches as in fastai v1.

    >>> exp_rmspe(torch.tensor([0.0]), torch.tensor([2.0]).log())
    tensor(0.5000)
    """
    return ExpRMSPE().at_once(pred, targ)


@over_all(R2Score)
def r2_score(pred: Tensor, targ: Tensor) -> Tensor:
    """Return the coefficient of determination: 1 is best, 0 is that of always predicting the mean.

    As a metric it is taken over all predictions at once, not averaged over the batches as in fastai v1.

    >>> r2_score(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0]))
    tensor(0.5000)
    """
    return R2Score().at_once(pred, targ)


@over_all(ExplainedVariance)
def explained_variance(pred: Tensor, targ: Tensor) -> Tensor:
    """Return 1 - variance of the errors / variance of the targets; an error that is everywhere the same costs nothing.

    As a metric it is taken over all predictions at once, not averaged over the batches as in fastai v1.

    >>> explained_variance(torch.tensor([2.0, 3.0, 4.0]), torch.tensor([1.0, 2.0, 3.0]))
    tensor(1.)
    """
    return ExplainedVariance().at_once(pred, targ)


mse = mean_squared_error


mae = mean_absolute_error


msle = mean_squared_logarithmic_error


rmse = root_mean_squared_error
