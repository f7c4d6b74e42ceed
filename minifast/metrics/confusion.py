"""Metrics computed from the confusion matrix of the whole validation set."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from minifast.errors import DataError
from minifast.metrics.base import add_metrics, name_of
from minifast.training.callback import Callback
from minifast.utils.checks import check_number, check_word
from minifast.utils.tensors import to_cpu

AVERAGES = ("binary", "micro", "macro", "weighted")


def count_pairs(predicted: Tensor, actual: Tensor, n_classes: int) -> Tensor:
    """Return how often each class was taken for each, ``(actual, predicted)``; the numbers stay on their device.

    A target that is no class, such as the -100 that torch's losses ignore, is not counted.

    >>> count_pairs(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2)
    tensor([[1, 1],
            [0, 1]])
    """
    predicted, actual = predicted.flatten(), actual.flatten().long()
    counted = (actual >= 0) & (actual < n_classes)
    pairs = torch.where(counted, actual * n_classes + predicted, 0)
    # torch's bincount would wait for a GPU to tell the largest number.
    return counted.new_zeros(n_classes**2, dtype=torch.int64).index_add_(0, pairs, counted.long()).view(n_classes, -1)


class ConfusionMatrix(Callback):
    """The counts of the validation set's classes, in ``cm`` after each epoch: a row for each actual class.

    It adds no column to the table; the metrics derived from it do.
    """

    cm: Tensor | None = None

    @property
    def columns(self) -> list[str]:
        """The names of the values that it adds."""
        return []

    def on_epoch_begin(self) -> None:
        """Start anew."""
        self.cm = None

    def on_batch_end(self, last_output: Tensor, last_target: Tensor) -> None:
        """Add a batch of outputs ``(n, ..., classes)``."""
        n_classes = last_output.shape[-1] if last_output.ndim > 1 else 1
        if n_classes < 2:
            raise DataError(
                f"{type(self).__name__} takes an output for each class, and these have the shape "
                f"{tuple(last_output.shape)}; torchmetrics has the same for one output, such as BinaryPrecision()."
            )
        counts = count_pairs(last_output.argmax(dim=-1), last_target, n_classes)
        self.cm = counts if self.cm is None else self.cm + counts

    def on_epoch_end(self, last_metrics: list[Any]) -> dict[str, list[Any]] | None:
        """Bring the counts to the CPU."""
        if self.cm is not None:
            self.cm = to_cpu(self.cm)
        return None


class Score(ConfusionMatrix):
    """The base of metrics that are a function of the confusion matrix: override ``score``."""

    @property
    def columns(self) -> list[str]:
        """The names of the values that it adds."""
        return [name_of(self)]

    def score(self, cm: Tensor) -> Any:
        """Return the metric from counts ``(actual, predicted)`` in float64, on the CPU."""
        raise NotImplementedError

    def on_epoch_end(self, last_metrics: list[Any]) -> dict[str, list[Any]]:
        """Hand back the value."""
        super().on_epoch_end(last_metrics)
        return add_metrics(last_metrics, [None if self.cm is None else self.score(self.cm.double())])


class FBeta(Score):
    """The F score over the whole validation set: precision and recall in one, recall weighted ``beta`` times.

    Args:
        average: ``"binary"``, the score of the class ``pos_label``; ``"macro"``, the mean of all classes' scores;
            ``"weighted"``, the same weighted by the classes' sizes; ``"micro"``, of all counts together; or None, a
            list with the score of each class. With more than two classes ``"binary"`` warns and is ``"macro"``.
        pos_label: the positive class, 0 or 1.
        eps: divides where there is nothing to divide by: the score is then 0.
        beta: the weight.

    In fastai v1 a class that was never predicted made the score NaN, and ``"micro"`` was weighted by predictions.

    >>> FBeta("macro", beta=1).score(torch.tensor([[3.0, 1.0], [1.0, 3.0]], dtype=torch.float64))
    0.75
    """

    def __init__(self, average: str | None = "binary", pos_label: int = 1, eps: float = 1e-9, beta: float = 2) -> None:
        self.average = average if average is None else check_word("average", average, AVERAGES)
        if pos_label not in (0, 1):
            raise ValueError(f"pos_label is {pos_label!r}; it must be 0 or 1.")
        self.pos_label = pos_label
        self.eps = check_number("eps", eps, above=0)
        self.beta = check_number("beta", beta, low=0)

    def share(self, right: Tensor, predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is divided by what, from the counts of each class, or of all."""
        weight = self.beta**2
        return (1 + weight) * right, weight * actual + predicted

    def score(self, cm: Tensor) -> Any:
        """Return the metric from counts ``(actual, predicted)``: a number, or a list without ``average``."""
        counts = [cm.diagonal(), cm.sum(dim=0), cm.sum(dim=1)]
        if self.average == "binary" and len(cm) > 2:
            self.average = "macro"
            warnings.warn(
                f"{type(self).__name__} has the average 'binary', but there are {len(cm)} classes; it takes the mean "
                f"of their scores: say average='macro', or another.",
                stacklevel=2,
            )
        if self.average == "micro":
            counts = [count.sum() for count in counts]
        above, below = self.share(*counts)
        each = above / below.clamp(min=self.eps)
        if self.average == "binary":
            each = each[self.pos_label]
        elif self.average == "macro":
            each = each.mean()
        elif self.average == "weighted":
            each = (each * cm.sum(dim=1)).sum() / cm.sum().clamp(min=self.eps)
        return each.tolist()


class Precision(FBeta):
    """The share of right ones among those predicted to be of a class, over the whole validation set; see ``FBeta``.

    >>> Precision().score(torch.tensor([[3.0, 1.0], [2.0, 4.0]], dtype=torch.float64))
    0.8
    """

    def __init__(self, average: str | None = "binary", pos_label: int = 1, eps: float = 1e-9) -> None:
        super().__init__(average, pos_label, eps)

    def share(self, right: Tensor, predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
        """Return right ones and predicted ones."""
        return right, predicted


class Recall(FBeta):
    """The share of a class's items that were predicted to be of it, over the whole validation set; see ``FBeta``.

    >>> Recall(pos_label=0).score(torch.tensor([[3.0, 1.0], [2.0, 4.0]], dtype=torch.float64))
    0.75
    """

    def __init__(self, average: str | None = "binary", pos_label: int = 1, eps: float = 1e-9) -> None:
        super().__init__(average, pos_label, eps)

    def share(self, right: Tensor, predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
        """Return right ones and actual ones."""
        return right, actual


class KappaScore(Score):
    """Cohen's kappa of predicted and actual classes: how far they agree beyond chance, 1 is perfect and 0 chance.

    Args:
        weights: None, each disagreement weighs the same; ``"linear"`` or ``"quadratic"``, by its distance, for classes
            in an order.

    Source: J. Cohen, "Weighted kappa" (1968).

    >>> KappaScore().score(torch.tensor([[4.0, 1.0], [1.0, 4.0]], dtype=torch.float64))
    0.6
    """

    def __init__(self, weights: str | None = None) -> None:
        self.weights = weights if weights is None else check_word("weights", weights, ("linear", "quadratic"))

    def score(self, cm: Tensor) -> float:
        """Return the metric from counts ``(actual, predicted)``."""
        numbers = torch.arange(len(cm), dtype=cm.dtype)
        distance = (numbers[:, None] - numbers).abs() ** {None: 0, "linear": 1, "quadratic": 2}[self.weights]
        distance.fill_diagonal_(0)
        by_chance = (distance * cm.sum(dim=1)[:, None] * cm.sum(dim=0)).sum() / cm.sum()
        return 1 - float((distance * cm).sum() / by_chance) if by_chance > 0 else 0.0


class MatthewsCorreff(Score):
    """Matthews' correlation of predicted and actual classes: 1 is perfect, 0 chance, also where it is undefined.

    Source: J. Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient" (2004).

    >>> round(MatthewsCorreff().score(torch.tensor([[4.0, 1.0], [1.0, 4.0]], dtype=torch.float64)), 4)
    0.6
    """

    def score(self, cm: Tensor) -> float:
        """Return the metric from counts ``(actual, predicted)``."""
        n, actual, predicted = cm.sum(), cm.sum(dim=1), cm.sum(dim=0)
        together = cm.trace() * n - actual @ predicted
        spread = (n**2 - actual @ actual) * (n**2 - predicted @ predicted)
        return float(together / spread.sqrt()) if spread > 0 else 0.0
